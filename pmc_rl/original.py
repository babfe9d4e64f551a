"""The model before unlearning: its answers to the questions to forget and to rows to retain that have none, and how
likely it finds an answer. All its answers are made here, before the trainer exists."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.errors import RecipeError
from pmc_rl.generation import Sampling, autocast, generate_together, sample_seeds
from pmc_rl.likelihood import Row, mean_log_probs
from pmc_rl.models import end_token_ids
from pmc_rl.prompts import decode_completion, encode_prompt, format_prompt


def with_original_answers(
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PMCConfig,
    saved: list[str] | None = None,
) -> Dataset:
    """
    Forget prompts (`prompt`, unique `pmc_id`, reward columns) as the trainer takes them: with `original_completion`,
    which rewards compare with. Where the data has none, it is the model's greedy answer before any step, never the
    ground truth; `saved` are those that a checkpoint holds.

    Raises:
        RecipeError: over half of the answers had to be cut, and `allow_unfinished` is not set.
    """
    if "original_completion" in dataset.column_names:
        return dataset
    texts = _greedy_answers(dataset, model, tokenizer, args) if saved is None else saved
    return dataset.add_column("original_completion", texts)


def answer_retain_rows(
    args: PMCArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    training_args: PMCConfig,
) -> list[dict]:
    """
    Rows of which those without an answer have the model's greedy one: what it says is to be kept.

    Answers that are empty or cut at the limit would teach the model to say nothing or to stop anywhere: left out.
    """
    column = args.answer_column or "answer"
    missing = [i for i, row in enumerate(rows) if row.get(column) is None]
    if not missing:
        return rows
    prompts = [format_prompt(args, tokenizer, rows[i][args.question_column]) for i in missing]
    completions = _answer(prompts, model, tokenizer, training_args, "answers of retain rows that have none")
    answers = {i: text if ended else None for i, (text, ended) in zip(missing, completions, strict=True)}
    answered = [
        {**row, column: answers[i]} if i in answers else row for i, row in enumerate(rows) if answers.get(i, column)
    ]
    PartialState().print(
        f"{len(missing)} retain rows had no answer and got the model's own; "
        f"{len(rows) - len(answered)} of them left out: empty, or cut at max_completion_length."
    )
    if not answered:
        raise RecipeError(["no retain row is left; raise max_completion_length or give answers"])
    return answered


def _greedy_answers(
    dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: PMCConfig
) -> list[str]:
    answers = _answer(list(dataset), model, tokenizer, args, "original answers")
    clipped = sum(not ended for _, ended in answers)
    if clipped > len(answers) / 2 and not args.allow_unfinished:
        raise RecipeError(
            [
                f"{clipped} of {len(answers)} original answers hit max_completion_length = "
                f"{args.max_completion_length}: the limit is too small, the prompt template or the end token "
                "is not the one the model was trained with, or the model does not end its answers "
                "(--allow_unfinished true goes on all the same)"
            ]
        )
    return [text for text, _ in answers]


def _answer(
    prompts: list[dict], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: PMCConfig, progress: str
) -> list[tuple[str, bool]]:
    """The greedy answer to each row's prompt, and whether it ended by itself."""
    end_ids = end_token_ids(model.generation_config, tokenizer.eos_token_id)
    prompt_ids = [encode_prompt(tokenizer, row) for row in prompts]
    completions = generate_together(model, prompt_ids, args, end_ids, progress=progress)
    return [(decode_completion(tokenizer, ids), ids[-1] in end_ids) for ids in completions]


class OriginalLogLikelihood:
    """
    `(prompts, completion_ids) -> list[float]`: the mean log-probability a token under the model before unlearning, of
    prompts as text or messages; NaN for an answer without tokens.

    Rewards that ask for it are built before any model loads, so the model comes later, by [`remember`].
    """

    def __init__(self):
        self.model: PreTrainedModel | PeftModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.chat_template_kwargs: dict = {}

    def remember(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict | None = None,
    ) -> None:
        """Keeps the model as it is now: an adapter's base is shared, of anything else there is a frozen copy, bfloat16
        on an accelerator: it only ranks answers."""
        self.tokenizer, self.chat_template_kwargs = tokenizer, chat_template_kwargs or {}
        if isinstance(model, PeftModel):
            self.model = model
        else:
            dtype = model.dtype if model.device.type == "cpu" else torch.bfloat16
            self.model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
            # TRL's, with the fused head: called for logits, even a copy's would answer by the model that is trained
            self.model.__dict__.pop("forward", None)

    def __call__(self, prompts: list, completion_ids: list[list[int]]) -> list[float]:
        rows: list[Row] = []
        for i, (prompt, ids) in enumerate(zip(prompts, completion_ids, strict=True)):
            if i == 0 or prompt != prompts[i - 1]:  # samples of a question stand together
                row = {"prompt": prompt, "chat_template_kwargs": self.chat_template_kwargs}
                prompt_ids = encode_prompt(self.tokenizer, row)
            rows.append((prompt_ids, ids))
        with self.before() as model:
            return mean_log_probs(model, rows)

    @contextmanager
    def before(self) -> Iterator[PreTrainedModel | PeftModel]:
        """The model before unlearning, in eval mode."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
                yield self.model
        finally:
            self.model.train(was_training)


class Predictions(NamedTuple):
    """What a model says at the target tokens of a batch, in order of its rows."""

    log_probs: torch.Tensor  # (n, vocabulary)
    targets: torch.Tensor  # (n,) the true tokens
    rows: torch.Tensor  # (n,) the row that each stands in

    @property
    def target_log_probs(self) -> torch.Tensor:
        """Log-probability of each true token, `(n,)`."""
        return self.log_probs.gather(1, self.targets[:, None])[:, 0]


def predict_targets(model: PreTrainedModel | PeftModel, inputs: dict[str, torch.Tensor]) -> Predictions:
    """One forward pass over a batch of TRL's collator; logits are made from the end of the shortest prompt on."""
    labels = inputs["labels"][:, 1:]
    labels = labels[:, (labels != -100).any(0).int().argmax() :]
    is_target = labels != -100
    texts = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    logits = model(**texts, logits_to_keep=labels.shape[1] + 1, use_cache=False).logits[:, :-1][is_target]
    return Predictions(logits.float().log_softmax(-1), labels[is_target], is_target.nonzero()[:, 0])


def losses_by_row(
    model: PreTrainedModel | PeftModel,
    original: OriginalLogLikelihood,
    inputs: dict[str, torch.Tensor],
    is_retained: torch.Tensor,
) -> torch.Tensor:
    """
    Losses of each row's target tokens, summed, `(rows,)`: NLL, but of the rows `is_retained`, `(rows,)`, the
    divergence KL(before || now) of the next token, over the whole vocabulary. It is 0 where nothing has changed, so
    that rows to retain teach nothing new, whereas NLL makes their answers ever more certain.

    Source: the retain loss "KL" of TOFU (https://huggingface.co/papers/2401.06121).
    """
    now = predict_targets(model, inputs)
    losses = -now.target_log_probs
    if is_retained.any():
        with torch.no_grad(), original.before() as before:
            expected = predict_targets(before, {name: rows[is_retained] for name, rows in inputs.items()}).log_probs
        retained = is_retained[now.rows]
        divergence = (expected.exp() * (expected - now.log_probs[retained])).sum(-1)
        losses = losses.masked_scatter(retained, divergence)
    return losses.new_zeros(len(is_retained)).index_add(0, now.rows, losses)


def kl_to_original(
    model: PreTrainedModel | PeftModel,
    original: OriginalLogLikelihood,
    rows: list[dict],
    args: PMCConfig,
    end_ids: list[int],
    step: int,
) -> float:
    """KL divergence to the model before, a token: mean log p_now - log p_before of a plain sample a question."""
    seeds = sample_seeds(args.seed, f"kl {step}", [row["pmc_id"] for row in rows], 1)
    prompt_ids = [encode_prompt(original.tokenizer, row) for row in rows]
    samples = generate_together(model, prompt_ids, args, end_ids, Sampling(1.0, top_k=0, top_p=1.0, seeds=seeds))
    before = original([row["prompt"] for row in rows], samples)
    model.eval()
    with autocast(model.device, args):
        now = mean_log_probs(model, list(zip(prompt_ids, samples, strict=True)))
    model.train()
    lengths = np.array([len(ids) for ids in samples])
    return float((np.array(now) - np.array(before)) @ lengths / lengths.sum())
