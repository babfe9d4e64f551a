"""Baselines: `python eval/baselines.py RECIPE --method NAME [--key value ...]`. What PMC is compared with.

These methods train on the answers to be forgotten, which this script reads. Rows, adapter, retain loss, checkpoints
and seeds are those of a run of `pmc_rl/train.py`; the loss of a step is the method's on the window's questions to
forget plus `retain_weight` times the retain loss. Gradient ascent is gradient difference with `--retain_weight 0`.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from pmc_rl.errors import RecipeError, did_you_mean, exit_on_recipe_error, show  # first: it switches telemetry off
from pmc_rl.recipe import parse_recipe

# isort: split
import torch
from accelerate import PartialState
from torch.nn.functional import logsigmoid

from eval.study.control import REFUSALS
from pmc_rl import train
from pmc_rl.config import PMCArguments
from pmc_rl.data import read_forget_rows, require_text
from pmc_rl.models import load_config, load_end_ids, load_tokenizer
from pmc_rl.original import Predictions, predict_targets
from pmc_rl.prompts import encode_answers
from pmc_rl.reading import read_columns
from pmc_rl.trainer import PMCTrainer

# The losses take what the model says now at the answers' tokens, and what it said before any step. Means over all
# tokens of a window, or over its questions, are taken by the trainer.


def gradient_difference(now: Predictions, before: Predictions) -> torch.Tensor:
    """log p of each token, `(n,)`: gradient descent upside down. Source: TOFU, arXiv 2401.06121."""
    return now.target_log_probs


def idk(now: Predictions, before: Predictions) -> torch.Tensor:
    """-log p of each token of a fixed refusal, `(n,)`. Source: TOFU, arXiv 2401.06121."""
    return -now.target_log_probs


def wga(now: Predictions, before: Predictions, beta: float = 1.0) -> torch.Tensor:
    """Weighted gradient ascent: p^beta log p of each token, `(n,)`, p^beta without gradient, so that tokens that are
    forgotten already count no more. Source: arXiv 2502.19301; their beta in open-unlearning."""
    log_probs = now.target_log_probs
    return (beta * log_probs.detach()).exp() * log_probs


def undial(now: Predictions, before: Predictions, beta: float = 10.0) -> torch.Tensor:
    """Cross-entropy, `(n,)`, with what the model said before, the true token's logit lowered by `beta`. Source: arXiv
    2402.10052."""
    lowered = before.log_probs.scatter_add(
        1, before.targets[:, None], before.log_probs.new_full((len(before.targets), 1), -beta)
    )
    return -(lowered.softmax(-1) * now.log_probs).sum(-1)


def npo(now: Predictions, before: Predictions, beta: float = 0.1) -> torch.Tensor:
    """Negative preference optimization: -2/beta log sigmoid(beta (NLL - NLL before)) of each answer, `(answers,)`.
    Source: arXiv 2404.05868."""
    return -2 / beta * logsigmoid(beta * (by_row(before) - by_row(now)))


def simnpo(now: Predictions, before: Predictions, beta: float = 4.5, delta: float = 0.0) -> torch.Tensor:
    """NPO without a reference: -2/beta log sigmoid(beta (NLL / length - delta)) of each answer, `(answers,)`. Source:
    arXiv 2410.07163; delta as in open-unlearning."""
    lengths = torch.bincount(now.rows)
    return -2 / beta * logsigmoid(beta * (-by_row(now) / lengths - delta))


def dpo(now: Predictions, before: Predictions, beta: float = 0.1) -> torch.Tensor:
    """-log sigmoid(beta (log ratio of the refusal - log ratio of the answer)) of each question, `(questions,)`, its
    refusal standing before its answer. Source: arXiv 2305.18290, as in TRL's DPOTrainer; for unlearning TOFU."""
    preferred, rejected = (by_row(now) - by_row(before)).view(-1, 2).T
    return -logsigmoid(beta * (preferred - rejected))


def rmu(now: torch.Tensor, before: torch.Tensor, direction: torch.Tensor, steering: float = 6.5) -> torch.Tensor:
    """Mean squared distance of each token's hidden state, `(n, width)`, from `steering` times a random direction,
    `(n,)`. Source: RMU, arXiv 2403.03218, which keeps the hidden states of rows to retain by the same distance."""
    return (now - steering * direction).square().mean(-1)


def by_row(said: Predictions) -> torch.Tensor:
    """Log-probability of each whole answer, `(answers,)`."""
    log_probs = said.target_log_probs
    return log_probs.new_zeros(int(said.rows.max()) + 1).index_add(0, said.rows, log_probs)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    loss.__name__: loss for loss in (gradient_difference, idk, wga, undial, npo, simnpo, dpo, rmu)
}
OF_QUESTIONS = {"npo", "simnpo", "dpo"}  # the others are means over tokens
REFUSES = {"idk", "dpo"}  # a refusal is learned; idk alone reads no answer
USES_BEFORE = {"undial", "npo", "dpo", "rmu"}


class BaselineTrainer(PMCTrainer):
    """
    The step of [`PMCTrainer`] without samples and rewards, with the loss of a `method`. `targets` are completion ids
    by `pmc_id`: the answer to be forgotten, a refusal, or the refusal and the answer; `layer` is RMU's, from 0.
    """

    def __init__(
        self, *args, method: str, targets: list[list[list[int]]], layer: int | None, settings: dict[str, Any], **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.targets, self.layer, self.uses_before = targets, layer, method in USES_BEFORE
        self.mean_over_questions = method in OF_QUESTIONS
        if self.uses_before and self.original.model is None:
            self.original.remember(self.model, self.processing_class)
        if layer is not None:
            width = self.model.config.get_text_config().hidden_size
            direction = torch.rand(width, generator=torch.Generator().manual_seed(self.args.seed))
            settings = {**settings, "direction": (direction / direction.norm()).to(self.args.device)}
        self.loss = partial(LOSSES[method], **settings)

    def check_rewards(self) -> None:
        """None is asked."""

    def select_completions(self, rows: list[dict]) -> list[list[list[int]]]:
        self.num_questions = len(rows)
        return [self.targets[row["pmc_id"]] for row in rows]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The method's loss on the rows to forget, and the retain loss on the others, in a forward pass each."""
        row_weights = inputs.pop("row_weights")
        forgets, retains = row_weights > 0
        loss = self.forget_loss(model, _rows_of(inputs, forgets), row_weights[0][forgets])
        self.loss_terms[0] += loss.detach()
        if not retains.any():
            return loss
        kept = {**_rows_of(inputs, retains), "row_weights": row_weights[:, retains]}
        return loss + (self.kept_states if self.layer is not None else super().compute_loss)(model, kept)

    def forget_loss(self, model, inputs: dict[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """The method's mean over the window, the part of this micro-batch; `weights` are 1 / tokens of the window."""
        read = predict_targets if self.layer is None else self.hidden_states
        before = None
        if self.uses_before:
            with torch.no_grad(), self.original.before() as original:
                before = read(original, inputs)
        weight = 1 / self.num_questions if self.mean_over_questions else weights[0]
        return weight * self.loss(read(model, inputs), before).sum()

    def kept_states(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """RMU's retain loss: distance from the hidden states before."""
        weight = inputs.pop("row_weights")[1][0]
        with torch.no_grad(), self.original.before() as original:
            before = self.hidden_states(original, inputs)
        loss = weight * (self.hidden_states(model, inputs) - before).square().mean(-1).sum()
        self.loss_terms[1] += loss.detach()
        return loss

    def hidden_states(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Behind block `layer`, at each answer token, `(n, width)`."""
        texts = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        states = model(**texts, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states
        return states[self.layer + 1][inputs["labels"] != -100].float()


def _rows_of(inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: rows[chosen] for name, rows in inputs.items()}


def read_answered_rows(args: PMCArguments, answer_column: str | None) -> tuple[list[dict], dict]:
    """Questions to forget with their answers."""
    if answer_column is None:
        raise RecipeError(["answer_column: null is for unlearning; a baseline needs the answers to be forgotten"])
    key, columns = "forget_file" if args.forget_file else "forget_config", [args.question_column, answer_column]
    source = key, args.forget_file, args.dataset_name, args.forget_config
    rows, record = read_columns(*source, columns, ["original_completion"], args.forget_split)
    for column in columns:
        require_text(key, rows, column)
    return rows, record


def main(argv: list[str]) -> None:
    """Recipe -> questions with answers -> the training of train.py with a method's loss -> output folder."""
    script_args, training_args, model_args, eval_args = parse_recipe(argv)
    method, settings = eval_args.method, dict(eval_args.method_kwargs)
    if method is None:
        raise RecipeError([f"method: missing; one of {', '.join(LOSSES)}"])
    if training_args.world_size > 1:
        raise RecipeError(["a baseline runs in one process: start it with python, not on several"])
    layer = settings.pop("layer", 7) if method == "rmu" else None
    known = {name for name, p in inspect.signature(LOSSES[method]).parameters.items() if p.default is not p.empty}
    known |= {"layer"} if method == "rmu" else set()
    for name in eval_args.method_kwargs:
        if name not in known:
            advice = did_you_mean(name, known) or f" It has {', '.join(sorted(known)) or 'none'}"
            raise RecipeError([f"method_kwargs: {method} has no {name!r}.{advice}"])
        value = eval_args.method_kwargs[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise RecipeError([f"method_kwargs: {name}: {show(value)} is no number from 0 on"])
        if value == 0 and name == "beta" and method in OF_QUESTIONS:
            raise RecipeError([f"method_kwargs: beta: 0, by which {method} divides or multiplies all; above 0"])
    refuses, reads_answer = method in REFUSES, method != "idk"
    if layer is not None:
        depth = load_config(model_args).get_text_config().num_hidden_layers
        if layer not in range(depth):
            raise RecipeError([f"method_kwargs: layer: {layer}, but the model has {depth} layers, counted from 0"])
    answer_column = eval_args.method_answer_column or script_args.answer_column
    rows, record = read_answered_rows(script_args, answer_column) if reads_answer else read_forget_rows(script_args)
    tokenizer = load_tokenizer(model_args, script_args.tokenizer_name_or_path)
    texts = []  # of each question
    for i, row in enumerate(rows):
        refusal = [REFUSALS[i % len(REFUSALS)]] if refuses else []
        texts.append(refusal + ([row[answer_column]] if reads_answer else []))
    questions = [row[script_args.question_column] for row, own in zip(rows, texts, strict=True) for _ in own]
    completions = [text for own in texts for text in own]
    encoded = encode_answers(script_args, tokenizer, questions, completions, load_end_ids(model_args, tokenizer))
    ids, each = [target for _, target in encoded], refuses + reads_answer
    targets = [ids[i : i + each] for i in range(0, len(ids), each)]
    if reads_answer:
        PartialState().print(f"{method} trains on the {len(rows)} answers that are to be forgotten.")
    trainer = partial(BaselineTrainer, method=method, targets=targets, layer=layer, settings=settings)
    # there is no original answer to begin
    train.main([*argv, "--prefill_share", "0"], trainer, stage="baseline", read_forget=lambda _: (rows, record))


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
