"""Unlearn: `accelerate launch pmc_rl/train.py RECIPE [--key value ...]`. Reads no answer that is to be forgotten."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pmc_rl.errors import check_all, exit_on_recipe_error  # first: it switches telemetry off
from pmc_rl.recipe import parse_recipe

# isort: split
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from pmc_rl.adapters import make_peft_config
from pmc_rl.checkpoints import (
    begin_run,
    check_resume,
    is_this_run,
    last_checkpoint,
    read_state,
    remove_checkpoints,
)
from pmc_rl.data import check_no_overlap, read_forget_rows, read_retain_rows
from pmc_rl.generation import check_generation
from pmc_rl.likelihood import OriginalLogLikelihood
from pmc_rl.memory import accelerator_memory, count_parameters
from pmc_rl.models import (
    check_model,
    check_processes,
    load_config,
    load_end_ids,
    load_model_to_train,
    load_tokenizer,
    merged_copy,
    training_dtype,
)
from pmc_rl.original import answer_retain_rows, with_original_answers
from pmc_rl.output import check_output_dir, holds_a_run, is_finished_run, remove_unfinished, save_run
from pmc_rl.plan import make_plan, plan_lines
from pmc_rl.prompt_checks import Limits, check_prompt_format, check_rows, context_length
from pmc_rl.prompts import answer_start, answered_dataset, encode_prompt, forget_dataset
from pmc_rl.scoring import load_reward_functions, maximal_reward
from pmc_rl.template_date import pin_date, pinned_by
from pmc_rl.trainer import PMCTrainer


def main(argv: list[str], make_trainer: Callable[..., PMCTrainer] = PMCTrainer, stage: str = "train") -> None:
    """Recipe -> rewards and data -> model -> PMCTrainer, or a control of it -> output folder."""
    script_args, training_args, model_args, _ = parse_recipe(argv)
    output_dir = Path(training_args.output_dir)
    # the main process decides: a folder on a network may look older elsewhere
    checkpoint = last_checkpoint(output_dir) if training_args.resume_from_checkpoint == "auto" else None
    [checkpoint] = broadcast_object_list([checkpoint])
    original_log_likelihood = OriginalLogLikelihood(script_args.chat_template_kwargs)
    reward_funcs, tokenizer, (forget_rows, forget_record), (retain_rows, retain_record), counts, *_ = check_all(
        lambda: load_reward_functions(
            script_args.reward_funcs,
            script_args.reward_kwargs,
            training_args.reward_weights,
            training_args.max_completion_length,
            original_log_likelihood,
            script_args.reward_floors,
            script_args.reward_columns,
        ),
        lambda: load_tokenizer(model_args, script_args.tokenizer_name_or_path),
        lambda: read_forget_rows(script_args),
        lambda: read_retain_rows(script_args) if training_args.retain_weight > 0 else ([], None),
        lambda: count_parameters(load_config(model_args), model_args),
        lambda: check_model(model_args, training_args),
        lambda: check_output_dir(training_args, model_args, resume=checkpoint is not None),
        lambda: check_processes(training_args),
    )
    check_prompt_format(script_args, tokenizer)
    earlier = pinned_by(model_args.model_name_or_path)
    if checkpoint is not None:
        earlier = read_state(checkpoint)["record"]["recipe"].get("chat_template_kwargs") or {}
    elif training_args.resume_from_checkpoint == "auto" and not training_args.overwrite:
        earlier |= pinned_by(output_dir)  # which may hold this run, finished
    pin_date(script_args, tokenizer, earlier)
    original_log_likelihood.chat_template_kwargs = script_args.chat_template_kwargs or {}
    end_ids, context = load_end_ids(model_args, tokenizer), context_length(load_config(model_args))
    limits = Limits(training_args.max_length, training_args.max_completion_length, context)
    forget_key = "forget_file" if script_args.forget_file else "forget_config"
    retain_key = "retain_file" if script_args.retain_file else "retain_config"
    check = partial(check_rows, script_args, tokenizer, end_ids)
    train_dataset, *_ = check_all(
        lambda: forget_dataset(script_args, tokenizer, forget_rows),
        lambda: check_no_overlap(forget_rows, retain_rows, script_args.question_column),
        lambda: check(forget_key, forget_rows, replace(limits, max_length=None)),  # what is sampled is never cut
        lambda: check(retain_key, retain_rows, limits),
        lambda: maximal_reward(reward_funcs, training_args.max_reward),
    )
    read = {"forget": forget_record, "retain": retain_record}
    record = {"recipe": script_args.given, "read": read, "processes": training_args.world_size}
    state = PartialState()
    if checkpoint is not None:
        check_resume(checkpoint, record)
    elif (
        training_args.resume_from_checkpoint == "auto" and not training_args.overwrite and is_finished_run(output_dir)
    ):
        # a run killed at its very end, or started once more
        if not is_this_run(output_dir, stage, record):
            raise holds_a_run(output_dir)
        state.wait_for_everyone()  # all have read the folder
        if state.is_main_process:
            remove_unfinished(output_dir) if training_args.keep_checkpoints else remove_checkpoints(output_dir)
        state.print(f"{training_args.output_dir} holds this run, finished; --overwrite true makes it again.")
        return

    plan = make_plan(
        counts,
        load_config(model_args),
        model_args,
        training_args,
        prompt_length=max(len(encode_prompt(tokenizer, row)) for row in train_dataset),
        asks_original=any(reward.asks_original for reward in reward_funcs),
        num_processes=training_args.world_size,
        device_memory=accelerator_memory(training_args.device),
    )
    if training_args.dry_run:
        sizes = {"num_questions": len(forget_rows), "num_retain_rows": len(retain_rows)}
        sizes["num_processes"] = training_args.world_size
        state.print("\n".join(plan_lines(plan, script_args, training_args, **sizes)))
        return
    training_args.generation_batch_size = plan.generation_batch_size

    state.wait_for_everyone()  # all have checked the folder
    if state.is_main_process:
        begin_run(output_dir, keep=checkpoint)
    if checkpoint is not None:
        state.print(f"Going on from {checkpoint}.")
    model = load_model_to_train(model_args, training_args)
    check_generation(model, tokenizer)
    answered_rows = answer_retain_rows(script_args, model, tokenizer, retain_rows, training_args)
    if answered_rows is not retain_rows:  # else they are checked
        check(retain_key, answered_rows, limits)
    if stage == "train":  # a control compares with no original answer
        saved = read_state(checkpoint)["original_completions"] if checkpoint else None
        start = answer_start(script_args, tokenizer)
        train_dataset = with_original_answers(train_dataset, model, tokenizer, training_args, start, saved)
    trainer = make_trainer(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        retain_dataset=answered_dataset(script_args, tokenizer, answered_rows) if answered_rows else None,
        processing_class=tokenizer,
        peft_config=make_peft_config(model_args),
        original_log_likelihood=original_log_likelihood,
        record=record,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.checkpoints.stopped_by:
        step = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        state.print(f"Stopped after {step}; --resume_from_checkpoint auto goes on. Private files left: checkpoints.")
        state.wait_for_everyone()  # a launcher stops the others when the first one is gone
        sys.exit(128 + trainer.checkpoints.stopped_by)
    if state.is_main_process:
        dtype = training_dtype(model_args, training_args)
        save_run(
            training_args,
            trainer.model,
            tokenizer,
            recipe=script_args.given,
            log_history=trainer.state.log_history,
            manifest={"stage": stage, "read": read},
            merged_model=merged_copy(trainer.model, model_args, dtype) if training_args.save_merged else None,
        )
        if not training_args.keep_checkpoints:
            remove_checkpoints(output_dir)
        left = f"{output_dir / 'private'} (hashes of the data, by which an audit knows it, and paths)"
        if training_args.keep_checkpoints:
            left += ", and checkpoints, which hold what is to be forgotten"
        print(f"Saved to {training_args.output_dir}. Private files left: {left}.")


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
