"""First stage: `accelerate launch pmc_rl/finetune.py RECIPE [--key value ...]`. TRL's SFT on rows with answers.

Makes the model that has something to forget, or a retain-only model to compare with (`--train_configs retain90`).
"""

import sys

from pmc_rl.errors import all_problems, exit_on_recipe_error  # first: it switches telemetry off
from pmc_rl.recipe import parse_finetune_recipe

# isort: split
from accelerate import PartialState
from trl import SFTTrainer

from pmc_rl import models
from pmc_rl.adapters import make_peft_config
from pmc_rl.data import read_finetune_rows
from pmc_rl.gradients import GradientCheck
from pmc_rl.memory import count_parameters
from pmc_rl.models import load_config, load_model_to_train, load_tokenizer
from pmc_rl.output import check_output_dir, save_run
from pmc_rl.prompt_checks import Limits, check_prompt_format, check_rows, context_length
from pmc_rl.prompts import answered_dataset
from pmc_rl.run_folder import begin
from pmc_rl.template_date import pin_date, pinned_by


def main(argv: list[str]) -> None:
    """Recipe -> data -> model -> SFTTrainer -> output folder; an adapter is merged before saving."""
    data_args, args, model_args = parse_finetune_recipe(argv)
    with all_problems() as check:
        tokenizer = check(load_tokenizer, model_args, data_args.tokenizer_name_or_path)
        data = check(read_finetune_rows, data_args)
        check(lambda: count_parameters(load_config(model_args), model_args))
        check(models.check_model, model_args, args)
        check(check_output_dir, args, model_args)
        check(models.check_processes, args)
    rows, read = data
    check_prompt_format(data_args, tokenizer)
    pin_date(data_args, tokenizer, pinned_by(model_args.model_name_or_path))
    limits = Limits(args.max_length, 0, context_length(load_config(model_args)))
    key = "train_file" if data_args.train_file else "train_configs"
    check_rows(data_args, tokenizer, models.load_end_ids(model_args, tokenizer), key, rows, limits)
    begin(args)
    trainer = SFTTrainer(
        model=load_model_to_train(model_args, args),
        args=args,
        train_dataset=answered_dataset(data_args, tokenizer, rows),
        processing_class=tokenizer,
        peft_config=make_peft_config(model_args),
        callbacks=[GradientCheck()],
    )
    trainer.train()
    if PartialState().is_main_process:
        dtype = models.training_dtype(model_args, args)
        model = models.merged_copy(trainer.model, model_args, dtype) if model_args.use_peft else trainer.model
        manifest = {"stage": "finetune", "read": read}
        save_run(args, model, tokenizer, data_args.given, trainer.state.log_history, manifest)
        left = f"{args.output_dir}/private (hashes of the data, by which an audit knows it, and paths)"
        print(f"Saved to {args.output_dir}. Private files left: {left}.")


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
