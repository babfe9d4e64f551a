"""Checkpoints beyond the Trainer's own: when one is complete, what a resumed run must share, stopping by a signal."""

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType

import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from pmc_rl.config import EvalArguments
from pmc_rl.errors import RecipeError
from pmc_rl.folders import CHECKPOINT_MARK, checkpoint_folders, remove_folder, temporary_folder
from pmc_rl.output import (
    MANIFEST,
    private_record,
    published_recipe,
    read_manifest,
    read_record,
    remove_unfinished,
    write_text,
)

STATE = "pmc_state.json"  # written last, so a checkpoint that has it is complete
PRIVATE = """\
PRIVATE: this checkpoint holds what is to be forgotten: the model's original answers, and the best ones so far.

It is removed when the run is finished, unless the recipe says keep_checkpoints.
"""
# Keys of the recipe that change neither samples nor weights.
FREE_KEYS = {
    *("output_dir", "overwrite", "resume_from_checkpoint", "save_strategy", "save_steps", "save_total_limit"),
    *("keep_checkpoints", "save_merged", "generation_batch_size", "dry_run", "report_to", "run_name", "disable_tqdm"),
    *("logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_completions"),
    *("num_completions_to_print", "snapshot_steps"),
    *(key.name for key in fields(EvalArguments)),
}


def last_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint of the latest step; None if there is none, or a run was finished after it."""
    complete = [folder for folder in checkpoint_folders(output_dir) if (folder / STATE).exists()]
    manifest = output_dir / MANIFEST
    if not complete:
        return None
    saved = (complete[-1] / STATE).stat().st_mtime_ns
    return None if manifest.exists() and manifest.stat().st_mtime_ns > saved else complete[-1]


def read_state(checkpoint: Path) -> dict:
    """What [`CheckpointCallback`] wrote there."""
    return json.loads((checkpoint / STATE).read_text())


def check_resume(checkpoint: Path, record: dict) -> None:
    """
    A run that goes on is the run that was stopped; a RecipeError tells every difference.

    `record` holds `recipe` (all keys given), `read` (hashes of what was read) and the number of `processes`.
    """
    saved = read_state(checkpoint)["record"]
    where = f"but {str(checkpoint)!r} was made with"
    anew = "begin anew with --overwrite true and without --resume_from_checkpoint"
    errors = []
    for key in sorted((saved["recipe"].keys() | record["recipe"].keys()) - FREE_KEYS):
        before, now = (side["recipe"].get(key, "(not given)") for side in (saved, record))
        if before != now:
            errors.append(f"{key}: {now!r}, {where} {before!r}; say so again, or {anew}")
    for name in ("forget", "retain"):
        # not paths: data may move
        before, now = ((side["read"][name] or {}).get("columns") for side in (saved, record))
        if before != now:
            errors.append(f"the {name} rows have changed since {str(checkpoint)!r} was made; {anew}")
    if saved["processes"] != record["processes"]:
        why = "launch as many, since sums over other parts are rounded otherwise"
        errors.append(f"num_processes: {record['processes']}, {where} {saved['processes']}: {why}")
    if errors:
        raise RecipeError(errors)


def is_this_run(output_dir: Path, stage: str, record: dict) -> bool:
    """Whether a finished run is the one that this record is of: same stage, same recipe, same data."""
    recipe = yaml.safe_load((output_dir / "recipe.yaml").read_text(encoding="utf-8"))
    return (
        read_manifest(output_dir).get("stage") == stage
        and recipe == published_recipe(record["recipe"])
        # None where private/ was deleted: then nobody knows
        and read_record(output_dir) == private_record(record["recipe"], record["read"])
    )


def remove_checkpoints(output_dir: Path, keep: Path | None = None, mark: Path | None = None) -> None:
    """Removes what interrupted runs left in a folder: checkpoints but `keep`, and runs half saved."""
    for folder in checkpoint_folders(output_dir):
        if folder != keep:
            remove_folder(output_dir, folder)
    remove_unfinished(output_dir, keep=mark)


class CheckpointCallback(TrainerCallback):
    """
    Completes the Trainer's checkpoints, for their owner's eyes only, and ends training at a signal with one.

    A checkpoint counts once [`STATE`] stands in it: what `state` returns, which is asked for in every process. Only
    then older ones of ours beyond `save_total_limit` go, so a kill at any moment leaves one. SIGTERM and Ctrl-C are
    answered at the end of the step, on which all processes agree, a further Ctrl-C at once.
    """

    def __init__(self, state: Callable[[], dict]):
        self.state = state
        self.stopped_by: int | None = None
        self.limit: int | None = None
        self.handlers: dict[int, Callable | int | None] = {}

    def on_train_begin(self, args: TrainingArguments, *_, **kwargs) -> None:
        self.stopped_by = None
        self.limit, args.save_total_limit = args.save_total_limit, None
        if threading.current_thread() is threading.main_thread():  # only there handlers can be set
            self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number
        # SIGTERM often comes twice: from the scheduler, and from a launcher that passes it on
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self.handlers[signal.SIGINT])
        os.write(2, b"\nStopping at the end of this step; Ctrl-C stops at once.\n")  # print may be what it interrupts

    def restore_handlers(self) -> None:
        """Gives the signals back to those who had them before training."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.stopped_by = max(gather_object([self.stopped_by or 0])) or None
        if self.stopped_by:
            control.should_save = control.should_training_stop = True
        if control.should_save and PartialState().is_main_process:
            output_dir, name = Path(args.output_dir), f"checkpoint-{state.global_step}"
            if output_dir / name in checkpoint_folders(output_dir):
                remove_folder(output_dir, output_dir / name)
            # before the Trainer makes it, for its owner's eyes only from the first moment, and marked
            temporary = temporary_folder(output_dir)
            (temporary / CHECKPOINT_MARK).write_text(PRIVATE)
            os.rename(temporary, output_dir / name)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        state_now = self.state()
        PartialState().wait_for_everyone()  # each process writes its own part
        if PartialState().is_main_process:
            output_dir = Path(args.output_dir)
            write_text(output_dir / f"checkpoint-{state.global_step}" / STATE, json.dumps(state_now))
            if self.limit is not None:
                for older in checkpoint_folders(output_dir)[: -self.limit]:
                    remove_folder(output_dir, older)

    def on_train_end(self, args: TrainingArguments, *_, **kwargs) -> None:
        args.save_total_limit = self.limit
        self.restore_handlers()
