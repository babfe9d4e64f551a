"""Prompts to completion token ids: greedy, or sampled with one random generator per sample. Knows no rewards.

On the reading path behind rejection.py, before scoring.py: [`generate_together`], then [`generate_completions`].
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, logging
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.utils import ModelOutput

from pmc_rl.config import PMCConfig

logger = logging.get_logger(__name__)

# Tokens a `generate` call makes before the rows that have ended leave the batch.
STRIDE = 16
# Likeliest tokens among which a sample is looked for first: to sort a whole vocabulary takes longer than the model.
HEAD = 1024


@dataclass
class Sampling:
    """`temperature` > 0, then `top_k` (0: off), then `top_p` in (0, 1], as in transformers; one seed a prompt row."""

    temperature: float
    top_k: int
    top_p: float
    seeds: list[int]
    suppressed: list[list[int]] = field(default_factory=list)  # token ids that a row never gets; empty: none


def sample_seeds(seed: int, step: int | str, row_ids: list[int], num_generations: int) -> list[int]:
    """One seed a sample, prompt-major (`len(row_ids) * num_generations`), from nothing but what names the sample:
    so it depends neither on the batch it is drawn in, nor on which questions are skipped. What is no step of training
    has a word in place of `step`, such as `audit`, and so draws from streams of its own."""
    return [
        int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{row}/{i}".encode(), digest_size=8).digest(), "big") >> 1
        for row in row_ids
        for i in range(num_generations)
    ]


@dataclass
class InverseCDFSampler(LogitsProcessor):
    """Leaves a single token a row: the one at which the filtered distribution's CDF passes that row's uniform number.

    `uniforms` in [0, 1) have the shape `(rows, max_new_tokens)`; which is next is told by the padded `prompt_length`.
    """

    uniforms: torch.Tensor
    prompt_length: int
    sampling: Sampling

    def __post_init__(self):
        pairs = [(row, token) for row, tokens in enumerate(self.sampling.suppressed) for token in tokens]
        self.suppressed = tuple(torch.tensor(pairs, dtype=torch.long, device=self.uniforms.device).reshape(-1, 2).T)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float() / self.sampling.temperature
        scores[self.suppressed] = -torch.inf
        probs = scores.softmax(-1)
        uniforms = self.uniforms[:, input_ids.shape[1] - self.prompt_length, None]
        tokens, found = self._choose(probs, uniforms, HEAD)
        if not found.all():
            tokens[~found] = self._choose(probs[~found], uniforms[~found], probs.shape[-1])[0]
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)

    def _choose(self, probs: torch.Tensor, uniforms: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A token a row, and whether the `size` likeliest ones are enough to tell it."""
        vocabulary = probs.shape[-1]
        count = min(self.sampling.top_k or vocabulary, vocabulary)
        size = size if count == vocabulary > size else count  # without top_k one may look at the likeliest alone
        probs, tokens = probs.topk(size, dim=-1)  # sorted, largest first
        if size == count:
            probs = probs / probs.sum(-1, keepdim=True)
        # a token stays while the mass before it is below top_p; the first one always stays
        kept = probs * (probs.cumsum(-1) - probs < self.sampling.top_p)
        cdf = kept.cumsum(-1)
        complete = (kept[:, -1:] == 0) | (size == count)  # no token behind these stays
        threshold = uniforms * torch.where(complete, cdf[:, -1:], 1.0)
        found = complete | ((self.sampling.top_p == 1) & (threshold < cdf[:, -1:]))
        # rounding may put the threshold on the total itself: the last kept token is the largest valid index
        last = (kept > 0).sum(-1, keepdim=True) - 1
        index = torch.searchsorted(cdf, threshold, right=True).minimum(last)
        return tokens.gather(-1, index)[:, 0], found[:, 0]


@contextmanager
def inference_mode_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The bare model in eval mode, without the defaults of its checkpoint's generation config; restored on exit. Eval
    mode keeps gradient checkpointing from dropping the KV cache: silent garbage (huggingface/transformers#36051)."""
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


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    *,
    max_completion_length: int,
    generation_batch_size: int,
    end_ids: list[int],
    sampling: Sampling | None = None,
    progress: str | None = None,
) -> list[list[int]]:
    """
    Answers each row of prompt ids, greedily or by sampling: k samples take k equal rows. Returns completion ids in the
    order of `prompt_ids`, up to and with the first of `end_ids`, or cut at `max_completion_length` new tokens.

    Rows are sorted by length, then answered `generation_batch_size` at a time; which rows share a batch changes memory
    and speed, never the samples (up to rounding of the logits in 16 bit). `progress` is the name of a progress bar.
    """
    completions: dict[int, list[int]] = {}
    with inference_mode_of(model) as base:
        rows = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
        groups = [rows]
        if is_recurrent(base):
            groups = [list(group) for _, group in groupby(rows, key=lambda row: len(prompt_ids[row]))]
        size = generation_batch_size
        batches = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
        for batch in tqdm(batches, desc=progress, disable=progress is None):
            prompts = [prompt_ids[row] for row in batch]
            answers = _complete(base, prompts, max_completion_length, end_ids, _part(sampling, batch))
            completions |= zip(batch, answers, strict=True)
    return [completions[row] for row in range(len(prompt_ids))]


def generate_together(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    args: PMCConfig,
    end_ids: list[int],
    sampling: Sampling | None = None,
    progress: str | None = None,
) -> list[list[int]]:
    """[`generate_completions`] in the precision and batches of a recipe, shared out evenly among all processes: each
    calls this with all prompts and gets all completions. Where memory is too small for `generation_batch_size` rows,
    it is halved for the rest of the run, and the share begun again."""
    state = PartialState()
    start, end = (len(prompt_ids) * i // state.num_processes for i in (state.process_index, state.process_index + 1))
    while True:
        try:
            with autocast(model.device, args):
                completions = generate_completions(
                    model,
                    prompt_ids[start:end],
                    max_completion_length=args.max_completion_length,
                    generation_batch_size=args.generation_batch_size,
                    end_ids=end_ids,
                    sampling=_part(sampling, range(start, end)),
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


def _part(sampling: Sampling | None, rows: Sequence[int]) -> Sampling | None:
    if sampling is None:
        return None
    suppressed = [sampling.suppressed[row] for row in rows] if sampling.suppressed else []
    return replace(sampling, seeds=[sampling.seeds[row] for row in rows], suppressed=suppressed)


def _complete(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    max_completion_length: int,
    end_ids: list[int],
    sampling: Sampling | None,
) -> list[list[int]]:
    """Completions of one batch: equal prompts are read once, and every `STRIDE` tokens the finished rows leave. A
    recurrent model is given prompts of equal length, and answers them in one call."""
    input_ids, attention_mask = _padded_on_the_left(prompt_ids, model.device)
    prompt_length = input_ids.shape[1]
    if sampling is not None:  # numbers in [0, 1), each row's from a generator of its own
        seeded = (torch.Generator().manual_seed(seed) for seed in sampling.seeds)
        uniforms = torch.stack([torch.rand(max_completion_length, generator=generator) for generator in seeded])
        uniforms = uniforms.to(model.device)
    in_one_call = is_recurrent(model)
    stride = max_completion_length if in_one_call else STRIDE
    cache = {} if in_one_call else read_prompts(model, prompt_ids)
    completions: list[list[int]] = [[] for _ in prompt_ids]
    rows = list(range(len(prompt_ids)))  # that go on
    while rows:
        part = _part(sampling, rows)
        processors = [] if part is None else [InverseCDFSampler(uniforms[rows], prompt_length, part)]
        left = prompt_length + max_completion_length - input_ids.shape[1]
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=_greedy_config(min(stride, left), end_ids),
            logits_processor=LogitsProcessorList(processors),
            **cache,
        )
        going_on = []
        for i, ids in enumerate(output.sequences[:, prompt_length:].tolist()):
            end = next((position + 1 for position, token in enumerate(ids) if token in end_ids), None)
            if end is None and len(ids) < max_completion_length:
                going_on.append(i)
            else:
                completions[rows[i]] = ids[:end]
        rows = [rows[i] for i in going_on]
        if rows:
            input_ids = output.sequences[going_on]
            new_tokens = input_ids.shape[1] - attention_mask.shape[1]
            attention_mask = pad(attention_mask[going_on], (0, new_tokens), value=1)
            cache = {} if in_one_call else _cache_of(output, going_on)
    return completions


def read_prompts(model: PreTrainedModel, prompt_ids: list[list[int]]) -> dict[str, Cache]:
    """The cache behind all but the last token of each prompt, equal ones read once; empty where that saves nothing."""
    numbers = {ids: number for number, ids in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
    # a row without any token to read would attend to nothing
    if len(numbers) == len(prompt_ids) or min(map(len, prompt_ids)) == 1:
        return {}
    input_ids, attention_mask = _padded_on_the_left([ids[:-1] for ids in numbers], model.device)
    config = _greedy_config(1, end_ids=[0])  # the token is not used; the cache is
    output = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
    return _cache_of(output, [numbers[tuple(ids)] for ids in prompt_ids])


def _cache_of(output: ModelOutput, rows: list[int]) -> dict[str, Cache]:
    """The cache of some rows under the name by which the next call takes it: `past_key_values`, `cache` from
    transformers 5.24. Empty where the model uses none (GPT-1): the next call reads all again."""
    cache = {name: value for name, value in output.items() if name != "sequences" and value.get_seq_length()}
    for value in cache.values():
        value.reorder_cache(torch.tensor(rows, device=output.sequences.device))
    return cache


def _padded_on_the_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask of a batch."""
    length = max(map(len, rows))
    input_ids = [[0] * (length - len(ids)) + list(ids) for ids in rows]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in rows]
    return torch.tensor(input_ids, device=device), torch.tensor(mask, device=device)


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a layer keeps more than keys and values: a convolution's or a recurrent state (Mamba, LFM2, RWKV). It
    may take padding for text, lie in the model itself, or be read wrongly by a second `generate` call, all silently,
    and differently by architecture. So only prompts of one length share a batch, and a batch is a call."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    has_its_own_state = model._is_stateful or not model._supports_default_dynamic_cache()
    return has_its_own_state or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def _greedy_config(max_new_tokens: int, end_ids: list[int]) -> GenerationConfig:
    """Every setting that would else come from somewhere; sampling is the processor's affair."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],  # `generate` wants one; what stands behind an end token is cut off
        return_dict_in_generate=True,
    )
