"""Likelihood of answers, of which logits are never kept for a whole batch, and the model before unlearning to ask."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.prompts import encode_prompt

# Tokens of a teacher-forced batch, padding included, and numbers of logits made at a time, never for a whole batch. A
# CPU is fastest where they fit into its cache; an accelerator wants to be filled.
TOKENS_PER_BATCH = {"cpu": 4096, "accelerator": 8192}
LOGITS_PER_CHUNK = {"cpu": 2**18, "accelerator": 2**24}

# What some architectures do to the logits behind the head, by the name in their config.
LOGIT_TRANSFORMS = {
    "logits_scaling": lambda logits, value: logits / value,  # Granite
    "logit_scale": lambda logits, value: logits * value,  # Cohere
    "final_logit_softcapping": lambda logits, value: (logits / value).tanh() * value,  # Gemma
}

# Token ids of a prompt, and of the tokens after it that are scored.
Row = tuple[list[int], list[int]]


def kind_of_device(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "accelerator"


@torch.no_grad()
def target_logits(model: PreTrainedModel | PeftModel, rows: list[Row]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Teacher-forced logits at the target tokens of one batch, a chunk at a time.

    Yields:
        logits of shape `(n, vocabulary)` and the n target ids, in the order of the rows; nothing for no target.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # padded on the right, where a causal model does not look, so no mask is needed
    input_ids = torch.zeros(len(rows), max(len(prompt) + len(target) for prompt, target in rows), dtype=torch.long)
    predicting = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (prompt, target) in enumerate(rows):
        input_ids[i, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        predicting[i, len(prompt) - 1 : len(prompt) + len(target) - 1] = True
    hidden = base.get_decoder()(input_ids=input_ids.to(base.device), use_cache=False).last_hidden_state
    hidden = hidden[predicting.to(base.device)]
    targets = torch.tensor([token for _, target in rows for token in target], device=base.device)
    settings = base.config.get_text_config().to_dict()
    chunk = max(1, LOGITS_PER_CHUNK[kind_of_device(base.device)] // settings["vocab_size"])
    for start in range(0, len(targets), chunk):
        logits = base.get_output_embeddings()(hidden[start : start + chunk])
        for name, transform in LOGIT_TRANSFORMS.items():
            if settings.get(name) is not None:
                logits = transform(logits, settings[name])
        yield logits, targets[start : start + chunk]


def mean_log_probs(model: PreTrainedModel | PeftModel, rows: list[Row]) -> list[float]:
    """
    Mean natural log-probability of a row's target tokens; equal rows are computed once. The model is in eval mode.

    Returns:
        `list[float]`: one mean a row, at most 0; NaN for a row without targets.
    """
    unique = {(tuple(prompt), tuple(target)): (prompt, target) for prompt, target in rows}
    # similar lengths share a batch
    keys = sorted(unique, key=lambda key: len(key[0]) + len(key[1]))
    means: dict[tuple, float] = {}
    tokens = TOKENS_PER_BATCH[kind_of_device(model.device)]
    while keys:
        batch_size = max(1, tokens // (len(keys[-1][0]) + len(keys[-1][1])))
        batch, keys = keys[-batch_size:], keys[:-batch_size]
        own = [
            -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            for logits, targets in target_logits(model, [unique[key] for key in batch])
        ]
        lengths = [len(target) for _, target in batch]
        parts = torch.cat(own).cpu().split(lengths) if own else [torch.empty(0)] * len(batch)
        means |= {key: float(part.mean()) for key, part in zip(batch, parts, strict=True)}
    return [means[tuple(prompt), tuple(target)] for prompt, target in rows]


class OriginalLogLikelihood:
    """
    Answers `(prompts, completion_ids) -> list[float]`: the mean log-probability a token under the model before
    unlearning, each prompt as text or messages, NaN for an answer without tokens.

    Rewards are checked and built before any model loads, so the model comes later, by [`remember`].

    Args:
        chat_template_kwargs (`dict`, *optional*): variables of the chat template, as in the recipe.
    """

    def __init__(self, chat_template_kwargs: dict | None = None):
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.model: PreTrainedModel | PeftModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None

    def remember(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keeps the model as it is now: an adapter's base is shared, of anything else there is a frozen copy.

        The copy is bfloat16 on an accelerator: it only ranks answers.
        """
        self.tokenizer = tokenizer
        if isinstance(model, PeftModel):
            self.model = model
        else:
            dtype = model.dtype if model.device.type == "cpu" else torch.bfloat16
            self.model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)

    def __call__(self, prompts: list, completion_ids: list[list[int]]) -> list[float]:
        rows: list[Row] = []
        for i, (prompt, ids) in enumerate(zip(prompts, completion_ids, strict=True)):
            if i == 0 or prompt != prompts[i - 1]:  # samples of a question stand together
                row = {"prompt": prompt, "chat_template_kwargs": self.chat_template_kwargs}
                prompt_ids = encode_prompt(self.tokenizer, row)
            rows.append((prompt_ids, ids))
        was_training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
                return mean_log_probs(self.model, rows)
        finally:
            self.model.train(was_training)
