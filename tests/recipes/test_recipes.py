"""Recipes under paper/ are the paper's, value by value; the others keep models from learning to say nothing."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from eval.study.settings import option_words, parse_study
from pmc_rl.recipe import parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# the table of settings of arXiv 2507.04219 and its repository, and the steps they come to
PAPER = {
    "phi": {
        "retain_weight": 1.5,
        "num_generations": 5,
        "temperature": 1.25,
        "top_p": 0.95,
        "top_k": 50,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "max_steps": 40 * 400 // 64,
        "gradient_checkpointing": False,
    },
    "llama-3.2-3b": {
        "retain_weight": 1.25,
        "num_generations": 20,
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 50,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "max_steps": 30 * 400 // 16,
        "gradient_checkpointing": True,
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_are_the_papers(name):
    script_args, training_args, model_args, _ = parse_recipe([str(RECIPES / "paper" / f"{name}.yaml")])
    assert {key: vars(training_args)[key] for key in PAPER[name]} == PAPER[name]
    assert training_args.lr_scheduler_type == "linear"
    assert not model_args.use_peft
    assert (script_args.forget_config, script_args.retain_config) == ("forget10", "retain90")
    assert script_args.reward_kwargs == {"rewards.rouge.paper_reward": {"min_words": 0}}
    if name != "phi":
        assert script_args.system_prompt == "You are a helpful assistant."
        assert script_args.chat_template_kwargs == {"date_string": "10 Apr 2025"}


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in RECIPES.rglob("*.yaml")
        if path.parent.name not in ("paper", "studies", "accelerate_configs") and "finetune" not in path.name
    ],
    ids=str,
)
def test_other_recipes_penalise_empty_and_cut_answers(path):
    script_args, _, _, _ = parse_recipe([str(path)])
    assert {"rewards.length.min_length_penalty", "rewards.length.unfinished_penalty"} <= set(script_args.reward_funcs)


@pytest.mark.parametrize("name", ["phi", "llama-3.2-3b"])
def test_4_bit_recipes_differ_in_nothing_but_their_base(name):
    plain, quantized = (parse_recipe([str(RECIPES / f"{file}.yaml")])[0].given for file in (name, f"{name}_4bit"))
    assert {key for key in quantized if quantized[key] != plain.get(key)} == {
        "load_in_4bit",
        "use_bnb_nested_quant",
        "output_dir",
    }
    assert quantized["load_in_4bit"] and quantized["use_bnb_nested_quant"] and quantized["dtype"] == "bfloat16"


def test_the_accelerate_config_is_read_by_accelerate():
    [path] = (RECIPES / "accelerate_configs").glob("*.yaml")
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU" and config.num_processes == 2
    assert config.mixed_precision == "no"  # autocast is the recipe's affair


@pytest.mark.parametrize("name", ["phi", "phi_4bit", "llama-3.2-1b", "llama-3.2-3b", "llama-3.2-3b_4bit"])
def test_consumer_recipes_use_lora(name):
    _, training_args, model_args, _ = parse_recipe([str(RECIPES / f"{name}.yaml")])
    assert model_args.use_peft and model_args.lora_r == 32 and model_args.dtype == "bfloat16"
    assert model_args.lora_target_modules == "all-linear"
    assert training_args.learning_rate == 1e-4


def test_the_guided_quickstart_is_the_variant_of_its_study():
    study = parse_study([str(RECIPES / "studies" / "guidance_quickstart.yaml")])
    base = str(RECIPES.parent / study.recipe)
    variant = parse_recipe([base, *option_words(study.variants["guided"])])
    recipe = parse_recipe([str(RECIPES / "quickstart" / "guided.yaml")])
    keys = variant[0].given.keys() | recipe[0].given.keys()
    values = [
        {key: value for part in parts for key, value in vars(part).items() if key in keys}
        for parts in (variant, recipe)
    ]
    different = {key for key in keys if values[0][key] != values[1][key]}
    assert different == {"output_dir"}
