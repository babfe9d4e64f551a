"""Prompts to completion token ids: greedy, or sampled with one random generator per sample. Knows no rewards."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel


@dataclass
class Sampling:
    """How to sample: `temperature` > 0, `top_k` (0: off), `top_p` in (0, 1], and one 64-bit seed a row of the prompts.

    Filters apply in the order of transformers: temperature, top-k, top-p.
    """

    temperature: float
    top_k: int
    top_p: float
    seeds: list[int]


def sample_seeds(seed: int, step: int, row_ids: list[int], num_generations: int) -> list[int]:
    """One seed a sample, prompt-major (`len(row_ids) * num_generations`), from nothing but what names the sample.

    So a sample depends neither on the batch it is drawn in, nor on which other questions are skipped.
    """
    return [
        int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{row}/{i}".encode(), digest_size=8).digest(), "big") >> 1
        for row in row_ids
        for i in range(num_generations)
    ]


class InverseCDFSampler(LogitsProcessor):
    """Leaves a single token a row: the one at which the filtered distribution's CDF passes that row's uniform number.

    Args:
        uniforms (`torch.Tensor` of shape `(rows, max_new_tokens)`): numbers in [0, 1), one a row and step.
        prompt_length (`int`): padded length of the prompts, so that the step can be told from the input.
    """

    def __init__(self, uniforms: torch.Tensor, prompt_length: int, temperature: float, top_k: int, top_p: float):
        self.uniforms = uniforms
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        probs = (scores.float() / self.temperature).softmax(-1)
        count = min(self.top_k, probs.shape[-1]) if self.top_k else probs.shape[-1]
        probs, tokens = probs.topk(count, dim=-1)  # sorted, largest first
        probs = probs / probs.sum(-1, keepdim=True)
        # a token stays while the mass before it is below top_p; the first one always stays
        kept = probs * (probs.cumsum(-1) - probs < self.top_p)
        cdf = kept.cumsum(-1)
        threshold = self.uniforms[:, input_ids.shape[1] - self.prompt_length, None] * cdf[:, -1:]
        # rounding may put the threshold on the total itself: the last kept token is the largest valid index
        last = (kept > 0).sum(-1, keepdim=True) - 1
        index = torch.searchsorted(cdf, threshold, right=True).minimum(last)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens.gather(-1, index), 0.0)


@contextmanager
def _inference_mode_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The bare model in eval mode, without the defaults of its checkpoint's generation config; restored on exit.

    Eval mode switches dropout off and keeps gradient checkpointing from dropping the KV cache, which would sample
    garbage silently (huggingface/transformers#36051).
    """
    was_training = model.training
    # adapters are layers inside the base model, which `disable_adapter` switches there
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    checkpoint_defaults = base.generation_config
    model.eval()
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = checkpoint_defaults
        model.train(was_training)


def end_token_ids(model: PreTrainedModel, eos_token_id: int) -> list[int]:
    """Every id that ends an answer: the tokenizer's end token and those of the model's generation config, sorted."""
    configured = model.generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else configured
    return sorted({eos_token_id, *configured})


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    *,
    max_completion_length: int,
    generation_batch_size: int,
    end_ids: list[int],
    sampling: Sampling | None = None,
    progress: str | None = None,
) -> list[list[int]]:
    """
    Answers prompts, greedily or by sampling.

    Args:
        prompt_ids (`list[list[int]]`): one row of token ids an answer wanted; k samples take k equal rows.
        max_completion_length (`int`): limit in new tokens; an answer cut there has no end token.
        generation_batch_size (`int`): rows a `generate` call. Rows are sorted by length first; which rows share a call
            changes memory and speed, never the samples (up to rounding of the logits in 16 bit).
        end_ids (`list[int]`): ids that end an answer. The first one found is kept as the last id of the answer.
        sampling ([`Sampling`], *optional*): greedy if not given.
        progress (`str`, *optional*): what to call a progress bar; none if not given.

    Returns:
        `list[list[int]]`: completion ids in the order of `prompt_ids`.
    """
    # `generate` wants a pad id; the attention mask hides the padding, so any id will do
    config = GenerationConfig(
        max_new_tokens=max_completion_length,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
    )
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
    chunks = [order[i : i + generation_batch_size] for i in range(0, len(order), generation_batch_size)]
    completions: list[list[int]] = [[] for _ in prompt_ids]
    with _inference_mode_of(model) as base:
        for chunk in tqdm(chunks, desc=progress, disable=progress is None):
            length = max(len(prompt_ids[row]) for row in chunk)
            input_ids = torch.full((len(chunk), length), end_ids[0])
            attention_mask = torch.zeros_like(input_ids)
            for i, row in enumerate(chunk):
                input_ids[i, length - len(prompt_ids[row]) :] = torch.tensor(prompt_ids[row])
                attention_mask[i, length - len(prompt_ids[row]) :] = 1
            processors = LogitsProcessorList()
            if sampling is not None:
                uniforms = torch.stack(
                    [
                        torch.rand(max_completion_length, generator=torch.Generator().manual_seed(sampling.seeds[row]))
                        for row in chunk
                    ]
                ).to(base.device)
                processors.append(
                    InverseCDFSampler(uniforms, length, sampling.temperature, sampling.top_k, sampling.top_p)
                )
            output = base.generate(
                input_ids=input_ids.to(base.device),
                attention_mask=attention_mask.to(base.device),
                generation_config=config,
                logits_processor=processors,
            )
            for row, ids in zip(chunk, output[:, length:].tolist(), strict=True):
                end = next((i for i, token in enumerate(ids) if token in end_ids), len(ids) - 1)
                completions[row] = ids[: end + 1]
    return completions


def decode_completion(tokenizer, completion_ids: list[int]) -> str:
    """The text of an answer, without end tokens and outer white space."""
    return tokenizer.decode(completion_ids, skip_special_tokens=True).strip()
