"""The output folder of an unlearning run: is it done, does it go on, what is left at its end."""

import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from pmc_rl.checkpoints import check_resume, is_this_run, last_checkpoint, read_state, remove_checkpoints
from pmc_rl.config import PMCConfig, RunConfig
from pmc_rl.errors import RecipeError
from pmc_rl.folders import temporary_folder
from pmc_rl.memory import peak_memory
from pmc_rl.models import merged_copy, training_dtype
from pmc_rl.output import HOLDS_A_RUN, is_finished_run, remove_unfinished, save_run
from pmc_rl.template_date import pinned_by
from pmc_rl.trainer import PMCTrainer


def checkpoint_to_resume(args: PMCConfig) -> Path | None:
    """With `resume_from_checkpoint: auto` the last complete checkpoint, if there is one."""
    checkpoint = last_checkpoint(Path(args.output_dir)) if args.resume_from_checkpoint == "auto" else None
    # the main process decides: a folder on a network may look older elsewhere
    return broadcast_object_list([checkpoint])[0]


def earlier_template_kwargs(args: PMCConfig, model_args: ModelConfig, checkpoint: Path | None) -> dict:
    """`chat_template_kwargs` of the run that goes on, or of the one that made the model: their date is to be kept."""
    if checkpoint is not None:
        return read_state(checkpoint)["record"]["recipe"].get("chat_template_kwargs") or {}
    earlier = pinned_by(model_args.model_name_or_path)
    if args.resume_from_checkpoint == "auto" and not args.overwrite:
        earlier |= pinned_by(args.output_dir)  # which may hold this run, finished
    return earlier


def is_done(args: PMCConfig, stage: str, record: dict, checkpoint: Path | None) -> bool:
    """
    Whether the folder holds this run, finished: it was killed at its very end, or is started once more. What was left
    there by interrupted runs is removed then.

    Raises:
        RecipeError: the checkpoint is, or the folder holds, another run's.
    """
    output_dir, state = Path(args.output_dir), PartialState()
    if checkpoint is not None:
        check_resume(checkpoint, record)
        return False
    if args.resume_from_checkpoint != "auto" or args.overwrite or not is_finished_run(output_dir):
        return False
    if not is_this_run(output_dir, stage, record):
        raise RecipeError([f"output_dir: {args.output_dir!r} {HOLDS_A_RUN}"])
    state.wait_for_everyone()  # all have read the folder
    if state.is_main_process:
        remove_unfinished(output_dir) if args.keep_checkpoints else remove_checkpoints(output_dir)
    state.print(f"{args.output_dir} holds this run, finished; --overwrite true makes it again.")
    return True


def begin(args: RunConfig, checkpoint: Path | None = None) -> None:
    """Marks a folder as that of an unfinished run, then removes what earlier ones left, but the checkpoint."""
    output_dir, state = Path(args.output_dir), PartialState()
    state.wait_for_everyone()  # all have checked the folder
    if state.is_main_process:
        remove_checkpoints(output_dir, keep=checkpoint, mark=temporary_folder(output_dir))
    if checkpoint is not None:
        state.print(f"Going on from {checkpoint}.")


def finish(trainer: PMCTrainer, model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase, stage: str) -> None:
    """Saves what was trained; exits as a process that got the signal does where training was stopped by one."""
    args, state = trainer.args, PartialState()
    output_dir = Path(args.output_dir)
    if trainer.checkpoints.stopped_by:
        step = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        state.print(f"Stopped after {step}; --resume_from_checkpoint auto goes on. Private files left: checkpoints.")
        state.wait_for_everyone()  # a launcher stops the others when the first one is gone
        sys.exit(128 + trainer.checkpoints.stopped_by)
    if not state.is_main_process:
        return
    dtype = training_dtype(model_args, args)
    merged = merged_copy(trainer.model, model_args, dtype) if args.save_merged else None
    trainer.state.log_history[-1]["peak_memory_gib"] = peak_memory(args.device)
    recipe, manifest = trainer.record["recipe"], {"stage": stage, "read": trainer.record["read"]}
    save_run(args, trainer.model, tokenizer, recipe, trainer.state.log_history, manifest, merged)
    left = f"{output_dir / 'private'} (hashes of the data, by which an audit knows it, and paths)"
    if args.keep_checkpoints:
        left += ", and checkpoints, which hold what is to be forgotten"
    else:
        remove_checkpoints(output_dir)
    print(f"Saved to {args.output_dir}. Private files left: {left}.")
