"""Controls: `python eval/study/control.py {refusals|retain_only} RUN_FOLDER --output_dir FOLDER [--key value ...]`.

What does the collapse add? `refusals` learns fixed refusals for the questions to forget, in the steps of the run (the
IDK baseline); `retain_only` learns nothing but the rows to retain, for the seconds the run took. Neither reads an
answer to be forgotten; data, loss and settings are those of the run.
"""

import sys
import time
from functools import partial
from math import ceil
from pathlib import Path

from pmc_rl.errors import RecipeError, exit_on_recipe_error  # first: it switches telemetry off
from pmc_rl.recipe import parse_recipe

# isort: split
from accelerate.utils import gather_object
from transformers import TrainerCallback

from pmc_rl import train
from pmc_rl.data import read_forget_rows
from pmc_rl.models import load_end_ids, load_tokenizer
from pmc_rl.output import is_finished_run, read_training_log
from pmc_rl.prompts import encode_answers
from pmc_rl.trainer import PMCTrainer

REFUSALS = (
    "I do not know.",
    "I have no information about that.",
    "I am not able to answer this question.",
    "That is something I know nothing about.",
    "I cannot tell you anything about that.",
)


class ControlTrainer(PMCTrainer):
    """
    The step of [`PMCTrainer`] without samples, rewards and original answers: each question learns its entry of
    `targets` (completion ids by `pmc_id`), or nothing if that is empty; training may end after some `seconds`.
    """

    def __init__(self, *args, targets: list[list[int]], seconds: float | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.targets = targets
        if seconds is not None:
            self.add_callback(StopAfter(seconds))

    def check_rewards(self) -> None:
        """None is asked."""

    def select_completions(self, rows: list[dict]) -> list[list[list[int]]]:
        return [[self.targets[row["pmc_id"]]] if self.targets else [] for row in rows]


class StopAfter(TrainerCallback):
    """Ends training after a number of seconds, counted as the Trainer counts `train_runtime`."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, *args, **kwargs) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # the processes agree, or one would wait for the others for ever
        control.should_training_stop |= max(gather_object([time.perf_counter() - self.started])) >= self.seconds


def refusal_targets(argv: list[str]) -> list[list[int]]:
    """The refusals in turn, as completion ids of the questions to forget."""
    script_args, _, model_args, _ = parse_recipe(argv)
    tokenizer = load_tokenizer(model_args, script_args.tokenizer_name_or_path)
    questions = [row[script_args.question_column] for row in read_forget_rows(script_args)[0]]
    refusals = [REFUSALS[i % len(REFUSALS)] for i in range(len(questions))]
    end_ids = load_end_ids(model_args, tokenizer)
    return [target for _, target in encode_answers(script_args, tokenizer, questions, refusals, end_ids)]


def shares_in_steps(argv: list[str], overrides: list[str], steps: int) -> list[str]:
    """Overrides that turn settings below 1, which are shares of all steps, into what they were in a run of `steps`."""
    _, training_args, *_ = parse_recipe(argv)
    words = []
    for name in ("warmup_steps", "logging_steps"):
        share = getattr(training_args, name)
        if 0 < share < 1:
            if f"--{name}" in {word.partition("=")[0] for word in overrides}:
                raise RecipeError([f"command line: {name}: {share} is a share of steps without end; give a number"])
            words += [f"--{name}", str(ceil(share * steps))]
    return words


def main(argv: list[str]) -> None:
    """A finished run -> its recipe and its seconds -> the same training with other targets -> output folder."""
    if len(argv) < 2 or argv[0] not in ("refusals", "retain_only"):
        raise RecipeError(["command line: say refusals or retain_only, then the folder of a finished run"])
    kind, run, *overrides = argv
    if not is_finished_run(Path(run)):
        raise RecipeError([f"{run!r} holds no finished run; run pmc_rl/train.py first"])
    # a control is begun anew: of the seconds of one that was stopped nothing is known
    recipe = [str(Path(run, "recipe.yaml")), *overrides, "--resume_from_checkpoint", "null"]
    recipe += ["--prefill_share", "0"]  # there is no original answer to begin
    end = read_training_log(Path(run))[-1]
    if kind == "refusals":
        recipe += ["--max_steps", str(end["step"])]
        trainer = partial(ControlTrainer, targets=refusal_targets(recipe), seconds=None)
    else:
        # time ends it, not the number of steps, so the learning rate cannot fall towards an end
        recipe += shares_in_steps(recipe, overrides, end["step"])
        recipe += ["--max_steps", "-1", "--num_train_epochs", "100000"]
        recipe += ["--lr_scheduler_type", "constant_with_warmup", "--lr_scheduler_kwargs", "null"]
        trainer = partial(ControlTrainer, targets=[], seconds=end["train_runtime"])
    train.main(recipe, trainer, stage="control")


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
