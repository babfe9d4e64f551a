"""Unlearn: `accelerate launch pmc_rl/train.py RECIPE [--key value ...]`. Reads no answer that is to be forgotten."""

import sys
from collections.abc import Callable

from pmc_rl.config import check_all, exit_on_recipe_error, parse_recipe  # first: it switches telemetry off

# isort: split
from trl import get_peft_config

from pmc_rl.data import (
    answer_retain_rows,
    answer_start,
    answered_dataset,
    check_no_overlap,
    check_prompt_format,
    forget_dataset,
    read_forget_rows,
    read_retain_rows,
)
from pmc_rl.likelihood import OriginalLogLikelihood
from pmc_rl.models import check_one_process, check_output_dir, load_model_to_train, load_tokenizer, save_run
from pmc_rl.scoring import load_reward_functions
from pmc_rl.trainer import PMCTrainer


def main(argv: list[str], make_trainer: Callable[..., PMCTrainer] = PMCTrainer, stage: str = "train") -> None:
    """Recipe -> rewards and data -> model -> PMCTrainer, or a control of it -> output folder."""
    script_args, training_args, model_args, _ = parse_recipe(argv)
    original_log_likelihood = OriginalLogLikelihood(script_args.chat_template_kwargs)
    reward_funcs, tokenizer, (forget_rows, forget_record), (retain_rows, retain_record), _, _ = check_all(
        lambda: load_reward_functions(
            script_args.reward_funcs,
            script_args.reward_kwargs,
            training_args.reward_weights,
            training_args.max_completion_length,
            original_log_likelihood,
            script_args.reward_floors,
        ),
        lambda: load_tokenizer(model_args, script_args.tokenizer_name_or_path),
        lambda: read_forget_rows(script_args),
        lambda: read_retain_rows(script_args) if training_args.retain_weight > 0 else ([], None),
        lambda: check_output_dir(training_args, model_args),
        lambda: check_one_process(training_args),
    )
    train_dataset, _, _ = check_all(
        lambda: forget_dataset(script_args, tokenizer, forget_rows),
        lambda: check_no_overlap(forget_rows, retain_rows, script_args.question_column),
        lambda: check_prompt_format(script_args, tokenizer),
    )

    model = load_model_to_train(model_args, training_args)
    retain_rows = answer_retain_rows(script_args, model, tokenizer, retain_rows, training_args)
    trainer = make_trainer(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        retain_dataset=answered_dataset(script_args, tokenizer, retain_rows) if retain_rows else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        original_log_likelihood=original_log_likelihood,
        answer_start=answer_start(script_args, tokenizer),
    )
    trainer.train()
    save_run(
        training_args,
        trainer.model,
        tokenizer,
        recipe=script_args.given,
        log_history=trainer.state.log_history,
        manifest={"stage": stage, "read": {"forget": forget_record, "retain": retain_record}},
    )
    print(f"Saved to {training_args.output_dir}. Private files left: none.")


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
