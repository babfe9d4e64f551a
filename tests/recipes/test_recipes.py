"""Recipes under paper/ are the paper's, value by value; the others keep models from learning to say nothing."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from eval.study.commands import option_words
from eval.study.settings import parse_study
from pmc_rl.recipe import parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# the table of settings of arXiv 2507.04219 and its repository, and the steps they come to
PAPER = {"top_p": 0.95, "top_k": 50, "learning_rate": 1e-5, "weight_decay": 0.01, "lr_scheduler_type": "linear"}
PAPER_PHI = PAPER | {"retain_weight": 1.5, "num_generations": 5, "temperature": 1.25, "gradient_checkpointing": False}
PAPER_PHI |= {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "max_steps": 40 * 400 // 64}
PAPER_LLAMA = PAPER | {
    "retain_weight": 1.25,
    "num_generations": 20,
    "temperature": 0.9,
    "gradient_checkpointing": True,
}
PAPER_LLAMA |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 30 * 400 // 16}


@pytest.mark.parametrize(("name", "paper"), [("phi", PAPER_PHI), ("llama-3.2-3b", PAPER_LLAMA)])
def test_paper_recipes_are_the_papers(name, paper):
    script_args, training_args, model_args, _ = parse_recipe([str(RECIPES / "paper" / f"{name}.yaml")])
    assert {key: vars(training_args)[key] for key in paper} == paper
    assert not model_args.use_peft
    assert (script_args.forget_config, script_args.retain_config) == ("forget10", "retain90")
    assert script_args.reward_kwargs == {"rewards.rouge.paper_reward": {"min_words": 0}}
    if name != "phi":
        assert script_args.system_prompt == "You are a helpful assistant."
        assert script_args.chat_template_kwargs == {"date_string": "10 Apr 2025"}


def test_other_recipes_penalise_empty_and_cut_answers_and_those_of_consumer_gpus_use_lora():
    names = ["phi", "llama-3.2-1b", "llama-3.2-3b", "phi_4bit", "llama-3.2-3b_4bit", "llama-3.1-8b_4bit"]
    names += ["quickstart/unlearn", "quickstart/guided", "tofu_small/unlearn"]
    names += ["smollm2/facts/unlearn", "smollm2/tofu/unlearn"]
    for name in names:
        script_args, training_args, model_args, _ = parse_recipe([str(RECIPES / f"{name}.yaml")])
        penalties = {"rewards.length.min_length_penalty", "rewards.length.unfinished_penalty"}
        assert penalties <= set(script_args.reward_funcs), name
        if "/" not in name:
            assert model_args.use_peft and model_args.lora_r == 32 and model_args.dtype == "bfloat16", name
            assert model_args.lora_target_modules == "all-linear" and training_args.learning_rate == 1e-4, name


@pytest.mark.parametrize("name", ["phi", "llama-3.2-3b"])
def test_4_bit_recipes_differ_in_nothing_but_their_base(name):
    plain, quantized = (parse_recipe([str(RECIPES / f"{file}.yaml")])[0].given for file in (name, f"{name}_4bit"))
    different = {key for key in quantized if quantized[key] != plain.get(key)}
    assert different == {"load_in_4bit", "use_bnb_nested_quant", "output_dir"}
    assert quantized["load_in_4bit"] and quantized["use_bnb_nested_quant"] and quantized["dtype"] == "bfloat16"


def test_the_accelerate_config_is_read_by_accelerate():
    config = load_config_from_file(str(RECIPES / "accelerate_configs" / "multi_gpu.yaml"))
    assert config.distributed_type == "MULTI_GPU" and config.num_processes == 2
    assert config.mixed_precision == "no"  # autocast is the recipe's affair


def test_the_guided_quickstart_is_the_variant_of_its_study():
    study = parse_study([str(RECIPES / "studies" / "guidance_quickstart.yaml")])
    base = str(RECIPES.parent / study.recipe)
    variant = parse_recipe([base, *option_words(study.variants["guided"])])
    recipe = parse_recipe([str(RECIPES / "quickstart" / "guided.yaml")])
    of_study, own = (
        {key: value for part in parts for key, value in vars(part).items()} for parts in (variant, recipe)
    )
    keys = variant[0].given.keys() | recipe[0].given.keys()
    assert {key for key in keys if of_study[key] != own[key]} == {"output_dir"}
