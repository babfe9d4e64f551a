"""Snapshots: the weights every so many steps, so that the course of a run can be audited afterwards."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerState
from transformers.training_args import TrainingArguments

from pmc_rl.folders import SNAPSHOT_RECORD, SNAPSHOTS, remove_snapshots, temporary_folder


class SnapshotCallback(TrainerCallback):
    """
    Writes model and tokenizer to `output_dir/snapshots/step-N/` every `steps` optimizer steps, the last step left out.

    `snapshot.json` there holds the step and the seconds of training until then, less what saving took. Snapshots of
    later steps than the one training begins at, of an earlier run or of this one before it was killed, are removed.
    """

    def __init__(self, steps: int, training_seconds: Callable[[], float]):
        self.steps, self.training_seconds, self.saving = steps, training_seconds, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_, **kwargs) -> None:
        if args.should_save:
            remove_snapshots(Path(args.output_dir), after=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_, model, processing_class, **kwargs) -> None:
        if state.global_step % self.steps or state.global_step == state.max_steps or not args.should_save:
            return
        reached = self.training_seconds()
        temporary = temporary_folder(Path(args.output_dir))
        model.save_pretrained(temporary / "model")
        processing_class.save_pretrained(temporary / "model")
        record = {"step": state.global_step, "seconds": reached - self.saving}
        (temporary / "model" / SNAPSHOT_RECORD).write_text(json.dumps(record) + "\n")
        folder = Path(args.output_dir, SNAPSHOTS, f"step-{state.global_step}")
        folder.parent.mkdir(exist_ok=True)
        os.rename(temporary / "model", folder)
        temporary.rmdir()
        self.saving += self.training_seconds() - reached
