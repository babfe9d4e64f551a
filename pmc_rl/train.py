"""Unlearn: `accelerate launch pmc_rl/train.py RECIPE [--key value ...]`. Reads no answer that is to be forgotten.

The method in reading order: this file, then trainer, rejection, generation, scoring, selection, likelihood.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from pmc_rl.errors import RecipeError, all_problems, exit_on_recipe_error  # first: it switches telemetry off
from pmc_rl.recipe import parse_recipe

# isort: split
from accelerate import PartialState

from pmc_rl.adapters import make_peft_config
from pmc_rl.checkpoints import read_state
from pmc_rl.data import check_no_overlap, read_forget_rows, read_retain_rows
from pmc_rl.generation_check import check_generation
from pmc_rl.memory import accelerator_memory, count_parameters
from pmc_rl.models import check_model, check_processes, load_config, load_end_ids, load_model_to_train, load_tokenizer
from pmc_rl.original import OriginalLogLikelihood, answer_retain_rows, with_original_answers
from pmc_rl.output import check_output_dir
from pmc_rl.plan import make_plan, plan_lines
from pmc_rl.prompt_checks import Limits, check_prompt_format, check_rows, context_length
from pmc_rl.prompts import answer_start, answered_dataset, encode_prompt, forget_dataset
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.run_folder import begin, checkpoint_to_resume, earlier_template_kwargs, finish, is_done
from pmc_rl.scoring import maximal_reward
from pmc_rl.template_date import pin_date
from pmc_rl.trainer import PMCTrainer


def main(
    argv: list[str],
    make_trainer: Callable[..., PMCTrainer] = PMCTrainer,
    stage: str = "train",
    read_forget: Callable[..., tuple[list[dict], dict]] = read_forget_rows,
) -> None:
    """Recipe -> rewards, data -> model, its own answers -> PMCTrainer, or a baseline -> output folder."""
    data_args, args, model_args, eval_args = parse_recipe(argv)
    if eval_args.method and stage == "train":
        raise RecipeError([f"method: {eval_args.method} reads answers to be forgotten; run eval/baselines.py"])
    checkpoint = checkpoint_to_resume(args)
    original = OriginalLogLikelihood()
    with all_problems() as check:
        rewards = check(
            load_reward_functions,
            data_args.reward_funcs,
            data_args.reward_kwargs,
            args.reward_weights,
            args.max_completion_length,
            original,
            data_args.reward_floors,
            data_args.reward_columns,
        )
        tokenizer = check(load_tokenizer, model_args, data_args.tokenizer_name_or_path)
        forget = check(read_forget, data_args)
        retain = check(read_retain_rows, data_args) if args.retain_weight > 0 else ([], None)
        parameter_counts = check(lambda: count_parameters(load_config(model_args), model_args))
        check(check_model, model_args, args)
        check(check_output_dir, args, model_args, resume=checkpoint is not None)
        check(check_processes, args)
    (forget_rows, forget_read), (retain_rows, retain_read) = forget, retain

    check_prompt_format(data_args, tokenizer)
    pin_date(data_args, tokenizer, earlier_template_kwargs(args, model_args, checkpoint))
    config, end_ids = load_config(model_args), load_end_ids(model_args, tokenizer)
    limits = Limits(args.max_length, args.max_completion_length, context_length(config))
    begun = args.max_completion_length if args.prefill_share else 0  # tokens of an answer that stand in the prompt
    # what is sampled is never cut
    sampled_limits = replace(limits, max_length=None, max_completion_length=args.max_completion_length + begun)
    forget_key = "forget_file" if data_args.forget_file else "forget_config"
    retain_key = "retain_file" if data_args.retain_file else "retain_config"
    with all_problems() as check:
        forget_prompts = check(forget_dataset, data_args, tokenizer, forget_rows)
        check(check_no_overlap, forget_rows, retain_rows, data_args.question_column)
        check(check_rows, data_args, tokenizer, end_ids, forget_key, forget_rows, sampled_limits)
        check(check_rows, data_args, tokenizer, end_ids, retain_key, retain_rows, limits)
        check(maximal_reward, rewards, args.max_reward)
    read = {"forget": forget_read, "retain": retain_read}
    record = {"recipe": data_args.given, "read": read, "processes": args.world_size}
    if is_done(args, stage, record, checkpoint):
        return

    plan = make_plan(
        parameter_counts,
        config,
        model_args,
        args,
        prompt_length=begun + max(len(encode_prompt(tokenizer, row)) for row in forget_prompts),
        asks_original=any(reward.asks_original for reward in rewards),
        num_processes=args.world_size,
        device_memory=accelerator_memory(args.device),
    )
    if args.dry_run:
        sizes = {"num_questions": len(forget_rows), "num_retain_rows": len(retain_rows)}
        PartialState().print("\n".join(plan_lines(plan, data_args, args, **sizes, num_processes=args.world_size)))
        return
    args.generation_batch_size = plan.generation_batch_size

    begin(args, checkpoint)
    model = load_model_to_train(model_args, args)
    check_generation(model, tokenizer)
    answered_rows = answer_retain_rows(data_args, model, tokenizer, retain_rows, args)
    if answered_rows is not retain_rows:  # else they are checked
        check_rows(data_args, tokenizer, end_ids, retain_key, answered_rows, limits)
    if stage == "train":  # nothing else compares with original answers
        saved = read_state(checkpoint)["original_completions"] if checkpoint else None
        forget_prompts = with_original_answers(forget_prompts, model, tokenizer, args, saved)
    trainer = make_trainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=forget_prompts,
        retain_dataset=answered_dataset(data_args, tokenizer, answered_rows) if answered_rows else None,
        processing_class=tokenizer,
        peft_config=make_peft_config(model_args),
        original_log_likelihood=original,
        answer_start=answer_start(data_args, tokenizer),
        record=record,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, model_args, tokenizer, stage)


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
