"""Snapshots: the weights every so many steps, so that the course of a run can be audited afterwards."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

SNAPSHOTS = "snapshots"


class SnapshotCallback(TrainerCallback):
    """
    Writes model and tokenizer to `output_dir/snapshots/step-N/` every `steps` optimizer steps, the last step left out.

    `snapshot.json` there holds the step and the seconds of training until then, less what saving took. Snapshots of an
    earlier run in the folder, which may be replaced by then, are removed before the first step.
    """

    def __init__(self, steps: int, training_seconds: Callable[[], float]):
        self.steps = steps
        self.training_seconds = training_seconds
        self.saving = 0.0

    def on_train_begin(self, args: TrainingArguments, *_, **kwargs) -> None:
        if args.should_save and args.resume_from_checkpoint is None:
            shutil.rmtree(Path(args.output_dir, SNAPSHOTS), ignore_errors=True)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        **kwargs,
    ) -> None:
        if state.global_step % self.steps or state.global_step == state.max_steps or not args.should_save:
            return
        reached = self.training_seconds()
        folder = Path(args.output_dir, SNAPSHOTS, f"step-{state.global_step}")
        temporary = folder.with_name(f".{folder.name}")
        model.save_pretrained(temporary)
        processing_class.save_pretrained(temporary)
        record = {"step": state.global_step, "seconds": reached - self.saving}
        (temporary / "snapshot.json").write_text(json.dumps(record) + "\n")
        os.replace(temporary, folder)
        self.saving += self.training_seconds() - reached
