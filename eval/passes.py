"""Passes of one model over rows of token ids: teacher-forced, greedy, sampled. A row is computed once, then cached."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.cache import RowCache
from eval.metrics.semantic import Similarity
from pmc_rl.config import DataArguments, PMCConfig
from pmc_rl.generation import Sampling, autocast, generate_completions, sample_seeds
from pmc_rl.likelihood import TOKENS_PER_BATCH, kind_of_device, target_logits
from pmc_rl.prompts import answer_start, begin_answer, decode_completion, encode_answers, encode_prompt, format_prompt

# Part of every key: to be raised when a pass computes something else than before.
CACHE_VERSION = 3
# Token ids of a prompt, and of a target, the seed of a sample, or nothing.
Row = tuple[list[int], list[int]]
Compute = Callable[[list[Row]], list[bytes]]


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of the L target tokens of one row; all arrays have shape `(L,)`."""

    log_probs: np.ndarray  # natural log of the probability of each target token
    ranks: np.ndarray  # 1 for the most probable token of the vocabulary, 2 for the next; equal ones share the better
    means: np.ndarray  # of log p over the vocabulary, under the model's own distribution p
    stds: np.ndarray  # standard deviation of the same

    @property
    def hits(self) -> np.ndarray:
        """Whether each target token is the most probable one, shape `(L,)`."""
        return self.ranks == 1

    @property
    def loss(self) -> float | None:
        """Mean negative log-likelihood a token; None for a row without target tokens."""
        return float(-self.log_probs.mean()) if len(self.log_probs) else None


class Answer(NamedTuple):
    text: str
    ended: bool  # by itself


class SamplingSettings(NamedTuple):
    """As in [`~pmc_rl.generation.Sampling`], without seeds."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(eq=False)
class ModelPasses:
    """
    What one model answers to questions; what the cache has is not computed again, and equal rows are one row.

    Several processes share the rows and all get all results; batches are dealt out whole, so none is padded by copies.
    """

    name: str  # in progress bars
    fingerprint: str  # equal ones are the same model
    load: Callable[[], PreTrainedModel]  # called when the first row is missing in the cache
    tokenizer: PreTrainedTokenizerBase
    end_ids: list[int]  # every id that ends an answer
    script_args: DataArguments  # the templates
    args: PMCConfig  # precision, answer limit, batch size, seed
    cache: RowCache | None  # of the main process; the others need none
    similarity: Similarity | None = None  # by which answers are compared with the truth beside recall, if at all
    model: PreTrainedModel | None = field(default=None, init=False)

    def altered(self, name: str, fingerprint: str, load: Callable[[], PreTrainedModel]) -> "ModelPasses":
        """Passes of another state of this model, with the same tokenizer and settings."""
        return replace(self, name=name, fingerprint=fingerprint, load=load)

    def score(self, questions: list[str], answers: list[str], what: str = "teacher-forced") -> list[TokenScores]:
        """Scores of the tokens of each answer, its end token included, after the prompt of its question."""
        return self._scores(encode_answers(self.script_args, self.tokenizer, questions, answers, self.end_ids), what)

    def score_text(self, chunks: list[list[int]], what: str) -> list[TokenScores]:
        """Scores of all tokens of running text but the first of each chunk."""
        return self._scores([(ids[:1], ids[1:]) for ids in chunks], what)

    def answer(self, questions: list[str], prefixes: list[str] | None = None, what: str = "greedy") -> list[Answer]:
        """Greedy answers; prefixes are the forced beginnings of each, and no part of the texts."""
        rows = [(prompt, []) for prompt in self._prompts(questions, prefixes)]
        return self._answers(what, "greedy", rows, lambda rows: self._generate(rows, None))

    def sample(
        self,
        questions: list[str],
        count: int,
        settings: SamplingSettings,
        prefixes: list[str] | None = None,
        what: str = "sampling",
    ) -> list[list[str]]:
        """Texts of `count` sampled answers to each question; a larger count adds to the samples of a smaller one."""
        seeds = sample_seeds(self.args.seed, "audit", list(range(len(questions))), count)
        prompts = [prompt for prompt in self._prompts(questions, prefixes) for _ in range(count)]

        def compute(rows: list[Row]) -> list[bytes]:
            return self._generate(rows, Sampling(*settings, seeds=[seed for _, [seed] in rows]))

        rows = [(prompt, [seed]) for prompt, seed in zip(prompts, seeds, strict=True)]
        texts = [answer.text for answer in self._answers(what, str(settings), rows, compute)]
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def release(self) -> None:
        """Lets go of the model; the cache still answers."""
        self.model = None

    def loaded(self) -> PreTrainedModel:
        """The model, in eval mode."""
        if self.model is None:
            self.model = self.load().eval()
        return self.model

    def _prompts(self, questions: list[str], prefixes: list[str] | None) -> list[list[int]]:
        rows = [format_prompt(self.script_args, self.tokenizer, question) for question in questions]
        if prefixes is not None:
            start = answer_start(self.script_args, self.tokenizer)
            rows = [begin_answer(row, prefix, start) for row, prefix in zip(rows, prefixes, strict=True)]
        return [encode_prompt(self.tokenizer, row) for row in rows]

    def _scores(self, rows: list[Row], what: str) -> list[TokenScores]:
        longest = max(len(prompt) + len(target) for prompt, target in rows)
        batch_size = max(1, TOKENS_PER_BATCH[kind_of_device(self.args.device)] // longest)
        scores = []
        for value in self._values(what, "score", rows, batch_size, self._score):
            log_probs, ranks, means, stds = np.frombuffer(value, np.float32).reshape(4, -1)
            scores.append(TokenScores(log_probs, ranks.astype(int), means, stds))
        return scores

    def _answers(self, what: str, kind: str, rows: list[Row], compute: Compute) -> list[Answer]:
        kind = f"{kind} {self.args.max_completion_length} {self.end_ids}"
        answers = []
        for value in self._values(what, kind, rows, self.args.generation_batch_size, compute):
            ended, *ids = np.frombuffer(value, np.int32).tolist()
            answers.append(Answer(decode_completion(self.tokenizer, ids), bool(ended)))
        return answers

    def _values(self, what: str, kind: str, rows: list[Row], batch_size: int, compute: Compute) -> list[bytes]:
        """One value a row: from the cache, else computed in batches of rows of similar length and put there."""
        state = PartialState()
        keys = [self._key(kind, row) for row in rows]
        unique = dict(zip(keys, rows, strict=True))
        [values] = broadcast_object_list([self.cache.get(list(unique)) if state.is_main_process else None])
        # the longest first: what does not fit into memory shows at once, and the time left is not underestimated
        missing = sorted(unique.keys() - values.keys(), key=lambda key: (-sum(map(len, unique[key])), key))
        hidden = not (missing and state.is_main_process)
        with tqdm(total=len(missing), desc=f"{self.name}: {what}", disable=hidden) as progress:
            while missing:
                started = time.perf_counter()
                turn = missing[: batch_size * state.num_processes]
                missing = missing[len(turn) :]
                share = turn[state.process_index * batch_size :][:batch_size]
                results, batch_size = self._fitting([unique[key] for key in share], batch_size, compute)
                gathered = gather_object([(dict(zip(share, results, strict=True)), batch_size)])
                batch_size = min(size for _, size in gathered)
                for part, _ in gathered:
                    values |= part
                if state.is_main_process:
                    seconds = time.perf_counter() - started
                    self.cache.put({key: values[key] for key in turn}, self.fingerprint, what, seconds)
                progress.update(len(turn))
        return [values[key] for key in keys]

    def _key(self, kind: str, row: Row) -> bytes:
        """Everything that decides a row's value; what only decides speed is not in it."""
        precision = f"bf16={self.args.bf16} fp16={self.args.fp16}"
        context = f"{CACHE_VERSION} {transformers.__version__} {self.fingerprint} {precision} {kind}"
        return hashlib.blake2b(json.dumps([context, *row]).encode(), digest_size=16).digest()

    def _fitting(self, rows: list[Row], batch_size: int, compute: Compute) -> tuple[list[bytes], int]:
        """Values of the rows, and the batch size for which memory was enough."""
        if not rows:  # of several processes, one may have none left
            return [], batch_size
        device = self.loaded().device
        values: list[bytes] = []
        while len(values) < len(rows):
            batch = rows[len(values) :][:batch_size]
            try:
                with autocast(device, self.args):
                    values += compute(batch)
                continue
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = max(1, min(batch_size, len(batch)) // 2)
            # outside the handler, which keeps the tensors of the failed call alive
            torch.accelerator.empty_cache()
        return values, batch_size

    def _generate(self, rows: list[Row], sampling: Sampling | None) -> list[bytes]:
        completions = generate_completions(
            self.loaded(),
            [prompt for prompt, _ in rows],
            max_completion_length=self.args.max_completion_length,
            generation_batch_size=len(rows),
            end_ids=self.end_ids,
            sampling=sampling,
        )
        # the first number tells whether the answer ended
        return [np.array([ids[-1] in self.end_ids, *ids], np.int32).tobytes() for ids in completions]

    def _score(self, rows: list[Row]) -> list[bytes]:
        parts = [_token_scores(logits, targets) for logits, targets in target_logits(self.loaded(), rows)]
        scores = torch.cat(parts, dim=1).cpu() if parts else torch.zeros(4, 0)
        return [part.numpy().tobytes() for part in scores.split([len(target) for _, target in rows], dim=1)]


def _token_scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability, rank, mean and standard deviation of log p, shape `(4, n)`, of logits `(n, vocabulary)`."""
    log_probs = logits.float().log_softmax(-1)
    target_log_probs = log_probs.gather(-1, targets[:, None])
    ranks = 1 + (log_probs > target_log_probs).sum(-1)
    probs = log_probs.exp()
    means = torch.linalg.vecdot(probs, log_probs)
    deviations = log_probs.sub_(means[:, None])  # in place: this is the hottest spot of the pass
    variances = torch.linalg.vecdot(probs.mul_(deviations), deviations)
    return torch.stack([target_log_probs[:, 0], ranks.float(), means, variances.sqrt()])
