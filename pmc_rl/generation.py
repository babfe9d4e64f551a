"""Prompts to completion token ids: greedy, or sampled with one random generator per sample. Knows no rewards."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import ModelOutput

from pmc_rl.config import PMCConfig
from pmc_rl.errors import RecipeError

logger = logging.get_logger(__name__)

# Tokens a `generate` call makes before the rows that have ended leave the batch.
STRIDE = 16
# How far logits of a right model may be off in a batch, relative to their spread over the vocabulary, in float32 and
# in fewer bits. Rounding decides near ties, so answers cannot be compared. SmolLM2: 0.00001 in float32, 0.06 in
# bfloat16, 0.32 in 8 bit, whose outliers go by batch; a lost state or shifted positions: 0.15 to 1.5, mostly 1.
LOGITS_TOLERANCE = (0.02, 0.5)


@dataclass
class Sampling:
    """How to sample: `temperature` > 0, `top_k` (0: off), `top_p` in (0, 1], and one 64-bit seed a row of the prompts.

    Filters apply in the order of transformers: temperature, top-k, top-p.
    """

    temperature: float
    top_k: int
    top_p: float
    seeds: list[int]


def sample_seeds(seed: int, step: int | str, row_ids: list[int], num_generations: int) -> list[int]:
    """One seed a sample, prompt-major (`len(row_ids) * num_generations`), from nothing but what names the sample.

    So a sample depends neither on the batch it is drawn in, nor on which other questions are skipped. What is no step
    of training has a word in place of `step`, such as `audit`, and so draws from streams of its own.
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


def autocast(device: torch.device, args: PMCConfig) -> torch.autocast:
    """The mixed precision of a recipe; without it around generation each decoding step casts all weights again."""
    return torch.autocast(device.type, torch.float16 if args.fp16 else torch.bfloat16, enabled=args.bf16 or args.fp16)


def end_token_ids(config: GenerationConfig, eos_token_id: int) -> list[int]:
    """Every id that ends an answer: the tokenizer's end token and those of the model's generation config, sorted."""
    configured = config.eos_token_id
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
    completions: list[list[int]] = [[] for _ in prompt_ids]
    with _inference_mode_of(model) as base:
        order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
        groups = [order]
        if _is_recurrent(base):
            groups = [list(rows) for _, rows in groupby(order, key=lambda row: len(prompt_ids[row]))]
        chunks = [
            group[i : i + generation_batch_size]
            for group in groups
            for i in range(0, len(group), generation_batch_size)
        ]
        for chunk in tqdm(chunks, desc=progress, disable=progress is None):
            own = None if sampling is None else replace(sampling, seeds=[sampling.seeds[row] for row in chunk])
            answers = _complete(base, [prompt_ids[row] for row in chunk], max_completion_length, end_ids, own)
            for row, ids in zip(chunk, answers, strict=True):
                completions[row] = ids
    return completions


def generate_together(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    args: PMCConfig,
    end_ids: list[int],
    sampling: Sampling | None = None,
    progress: str | None = None,
) -> list[list[int]]:
    """
    [`generate_completions`] in the precision and batches of a recipe, the prompts shared out evenly among all
    processes: each calls this with all of them and gets all completions.

    Where memory is too small for `generation_batch_size` rows, it is halved for the rest of the run, and the share
    begun again.
    """
    state = PartialState()
    start, end = (len(prompt_ids) * i // state.num_processes for i in (state.process_index, state.process_index + 1))
    own = None if sampling is None else replace(sampling, seeds=sampling.seeds[start:end])
    while True:
        try:
            with autocast(model.device, args):
                completions = generate_completions(
                    model,
                    prompt_ids[start:end],
                    max_completion_length=args.max_completion_length,
                    generation_batch_size=args.generation_batch_size,
                    end_ids=end_ids,
                    sampling=own,
                    progress=progress if state.is_main_process else None,
                )
            break
        except torch.OutOfMemoryError:
            if args.generation_batch_size == 1:
                raise
            args.generation_batch_size = max(1, min(args.generation_batch_size, end - start) // 2)
        # outside the handler, which keeps the tensors of the failed call alive
        torch.accelerator.empty_cache()
        logger.warning(f"Out of memory: generation_batch_size is {args.generation_batch_size} from now on.")
    return gather_object(completions)


def _complete(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    max_completion_length: int,
    end_ids: list[int],
    sampling: Sampling | None,
) -> list[list[int]]:
    """
    Completions of one batch: prompts are read once each, and every `STRIDE` tokens the finished rows leave.

    A recurrent model is given prompts of equal length, and answers them in one call.
    """
    length = max(map(len, prompt_ids))
    input_ids = torch.zeros(len(prompt_ids), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(prompt_ids):
        input_ids[i, length - len(ids) :] = torch.tensor(ids)
        attention_mask[i, length - len(ids) :] = 1
    input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
    uniforms = None if sampling is None else _uniforms(sampling.seeds, max_completion_length).to(model.device)
    is_recurrent = _is_recurrent(model)
    stride = max_completion_length if is_recurrent else STRIDE
    cache = {} if is_recurrent else _read_prompts(model, input_ids, attention_mask, prompt_ids, end_ids)
    ends = torch.tensor(end_ids, device=model.device)
    completions: list[list[int]] = [[] for _ in prompt_ids]
    rows = torch.arange(len(prompt_ids), device=model.device)
    while len(rows):
        processors = LogitsProcessorList()
        if sampling is not None:
            processors.append(
                InverseCDFSampler(uniforms[rows], length, sampling.temperature, sampling.top_k, sampling.top_p)
            )
        left = length + max_completion_length - input_ids.shape[1]
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=_greedy_config(min(stride, left), end_ids),
            logits_processor=processors,
            **cache,
        )
        input_ids, cache = output.sequences, {} if is_recurrent else _cache_of(output)
        is_end = torch.isin(input_ids[:, length:], ends)
        finished = is_end.any(1) | (input_ids.shape[1] == length + max_completion_length)
        # up to and with the first end token, or all there is room for
        lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, max_completion_length)
        for row, ids, count in zip(
            rows[finished].tolist(), input_ids[finished, length:].tolist(), lengths[finished].tolist(), strict=True
        ):
            completions[row] = ids[:count]
        going_on = (~finished).nonzero()[:, 0]
        if len(going_on):
            rows, input_ids = rows[going_on], input_ids[going_on]
            for state in cache.values():
                state.reorder_cache(going_on)
            new = attention_mask.new_ones(len(rows), input_ids.shape[1] - attention_mask.shape[1])
            attention_mask = torch.cat([attention_mask[going_on], new], dim=1)
        else:
            rows = going_on
    return completions


def _read_prompts(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    prompt_ids: list[list[int]],
    end_ids: list[int],
) -> dict[str, Cache]:
    """The cache behind all but the last token of each prompt, equal ones read once; empty where that saves nothing."""
    first_rows: dict[tuple[int, ...], int] = {}
    for row, ids in enumerate(prompt_ids):
        first_rows.setdefault(tuple(ids), row)
    # a row without any token to read would attend to nothing
    if len(first_rows) == len(prompt_ids) or min(map(len, prompt_ids)) == 1:
        return {}
    numbers = {ids: number for number, ids in enumerate(first_rows)}
    own = [numbers[tuple(ids)] for ids in prompt_ids]
    first = torch.tensor(list(first_rows.values()), device=model.device)
    output = model.generate(
        input_ids=input_ids[first, :-1],
        attention_mask=attention_mask[first, :-1],
        generation_config=_greedy_config(1, end_ids),  # the token is not used; the cache is
    )
    cache = _cache_of(output)
    for state in cache.values():
        state.reorder_cache(torch.tensor(own, device=model.device))
    return cache


def _cache_of(output: ModelOutput) -> dict[str, Cache]:
    """
    The cache under the name by which the next call takes it: `past_key_values`, `cache` from transformers 5.24.

    Empty where the model uses none (GPT-1), and takes none: the next call reads all again.
    """
    return {name: value for name, value in output.items() if name != "sequences" and value.get_seq_length()}


def _is_recurrent(model: PreTrainedModel) -> bool:
    """
    Whether a layer keeps more than keys and values: a convolution's or a recurrent state (Mamba, LFM2, RWKV).

    Such a state may take padding for text, lie in the model itself, or be read wrongly by a second `generate` call,
    all silently, and differently by architecture. So only prompts of one length share a batch, and a batch is a call.
    """
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    own = model._is_stateful or not model._supports_default_dynamic_cache()
    return own or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def _greedy_config(max_new_tokens: int, end_ids: list[int]) -> GenerationConfig:
    """Every setting that would else come from somewhere; sampling is the processor's affair."""
    # `generate` wants a pad id; what stands behind an end token is cut off, so any id will do
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
        return_dict_in_generate=True,
    )


def _uniforms(seeds: list[int], count: int) -> torch.Tensor:
    """Numbers in [0, 1), `(len(seeds), count)`: each row from a generator of its own."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def decode_completion(tokenizer, completion_ids: list[int]) -> str:
    """The text of an answer, without end tokens and outer white space."""
    return tokenizer.decode(completion_ids, skip_special_tokens=True).strip()


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
    with _inference_mode_of(model) as base:
        if _is_recurrent(base):  # which is never given other lengths together
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
    error = max(float(own.quantile(0.75)) for own in errors)
    is_exact = all(parameter.dtype == torch.float32 for parameter in base.parameters())
    if not error < LOGITS_TOLERANCE[0 if is_exact else 1]:  # NaN is refused too
        raise RecipeError(
            [
                f"model_name_or_path: a {type(base).__name__} cannot be sampled here: in a batch it says something "
                f"else than alone (its logits are off by {error:.0%}); take a model of another architecture"
            ]
        )
