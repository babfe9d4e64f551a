"""A self-check before the first answer: does an architecture say in a batch what it says alone?

Off the reading path. Some keep a state or count positions in a way that padding and a handed-on cache break silently.
"""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.errors import RecipeError
from pmc_rl.generation import STRIDE, generate_completions, inference_mode_of, is_recurrent

# How far logits of a right model may be off in a batch, relative to their spread over the vocabulary, in float32 and
# in fewer bits. Rounding decides near ties, so answers cannot be compared. SmolLM2: 0.00001 in float32, 0.06 in
# bfloat16, 0.32 in 8 bit, whose outliers go by batch; a lost state or shifted positions: 0.15 to 1.5, mostly 1.
LOGITS_TOLERANCE = (0.02, 0.5)


@torch.no_grad()
def check_generation(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Answers questions in a batch, one of them twice, and reads each answer again, alone and without a cache.

    Raises:
        RecipeError: the logits are not the same, so that samples would not be the model's.
    """
    texts = [
        "Who wrote it?",
        "Who wrote it?",
        "Where was its author born?",
        "What is the name of her first book, and why?",
    ]
    prompt_ids = sorted((tokenizer(text)["input_ids"] for text in texts), key=len)  # in the order they are answered
    with inference_mode_of(model) as base:
        if is_recurrent(base):  # which is never given other lengths together
            prompt_ids = [ids[-len(prompt_ids[0]) :] for ids in prompt_ids]
        outputs = []
        hook = base.register_forward_hook(lambda module, args, output: outputs.append(output.logits[:, -1].float()))
        count = STRIDE + 8  # the cache goes from one `generate` call into the next
        end_ids = [base.config.get_text_config().vocab_size]  # of no token: no answer ends before
        try:
            answers = generate_completions(
                base, prompt_ids, max_completion_length=count, generation_batch_size=len(texts), end_ids=end_ids
            )
        finally:
            hook.remove()
        together = torch.stack(outputs[-count:], dim=1)
        errors = []
        for prompt, answer, logits in zip(prompt_ids, answers, together, strict=True):
            ids = torch.tensor([prompt + answer], device=base.device)
            alone = base(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            errors.append((logits - alone).norm(dim=-1) / (alone - alone.mean(-1, keepdim=True)).norm(dim=-1))
    # few tokens may differ more: rounding may turn the router of a mixture of experts
    error = max(float(of_answer.quantile(0.75)) for of_answer in errors)
    is_exact = all(parameter.dtype == torch.float32 for parameter in base.parameters())
    if not error < LOGITS_TOLERANCE[0 if is_exact else 1]:  # NaN is refused too
        raise RecipeError(
            [
                f"model_name_or_path: a {type(base).__name__} cannot be sampled here: in a batch it says something "
                f"else than alone (its logits are off by {error:.0%}); take a model of another architecture"
            ]
        )
