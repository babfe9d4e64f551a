"""The recipe: the exact line for each mistake, all mistakes at once, overrides, defaults, and mangled recipes."""

import json
import shlex
from dataclasses import MISSING, asdict, fields

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from trl import ModelConfig

from pmc_rl.config import EvalArguments, FinetuneArguments, FinetuneConfig, PMCArguments, PMCConfig, RunConfig
from pmc_rl.errors import RecipeError, all_problems, exit_on_recipe_error
from pmc_rl.recipe import REFUSED, parse_finetune_recipe, parse_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own defaults cause some

VALID = {"model_name_or_path": "m", "output_dir": "out", "forget_file": "f.jsonl", "retain_file": "r.jsonl"}
VALID_FINETUNE = {"model_name_or_path": "m", "output_dir": "out", "train_file": "t.jsonl"}
SETS = "forget, forget_paraphrased, retain, retain_holdout, real_authors, world_facts"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(recipe):
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())


def write(text):
    with open("bad.yaml", "w", encoding="utf-8") as file:
        file.write(text)
    return "bad.yaml"


def parse(extra="", *argv, recipe=VALID):
    """Parses a valid recipe of four lines with further lines, from line 5 on."""
    return parse_recipe([write(lines(recipe) + extra), *argv])


def errors_of(function, *args, **kwargs):
    with pytest.raises(RecipeError) as raised:
        function(*args, **kwargs)
    assert str(raised.value) == "\n".join(raised.value.errors)
    assert not any("\n" in line for line in raised.value.errors)
    return raised.value.errors


def errors(extra="", *argv, recipe=VALID):
    return errors_of(parse, extra, *argv, recipe=recipe)


def without(*names):
    return {key: value for key, value in VALID.items() if key not in names}


def default(key):
    return key.default if key.default_factory is MISSING else key.default_factory()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("num_generation: 5", "bad.yaml:5: unknown key 'num_generation'. Did you mean 'num_generations'?"),
        (
            "\n# comment\nnum_generation: 5",
            "bad.yaml:7: unknown key 'num_generation'. Did you mean 'num_generations'?",
        ),
        ("env: {PATH: x}", "bad.yaml:5: unknown key 'env'. See --help"),
        ("given: {}", "bad.yaml:5: unknown key 'given'. See --help"),
        ("[a, b]: 5", "bad.yaml:5: a list or a mapping cannot be a key"),
        ("5: 5", "bad.yaml:5: unknown key '5'. See --help"),
        ("top_k: 5\ntop_k: 6", "bad.yaml:6: 'top_k' is given twice (first at line 5)"),
        # types
        ("num_generations: 5.5", "bad.yaml:5: num_generations: 5.5 is not an int"),
        ("num_generations: 5.0", "bad.yaml:5: num_generations: 5.0 is not an int"),
        ("num_generations: '5'", 'bad.yaml:5: num_generations: "5" is not an int'),
        ("num_generations: five", 'bad.yaml:5: num_generations: "five" is not an int'),
        ("num_generations: true", "bad.yaml:5: num_generations: true is not an int"),
        ("num_generations: [1, 2]", "bad.yaml:5: num_generations: [1, 2] is not an int"),
        ("num_generations:", "bad.yaml:5: num_generations: null is not an int"),
        ("top_p: null", "bad.yaml:5: top_p: null is not a finite float"),
        ("temperature: true", "bad.yaml:5: temperature: true is not a finite float"),
        ("temperature: .nan", 'bad.yaml:5: temperature: ".nan" is not a finite float'),
        ("temperature: 1e999", "bad.yaml:5: temperature: Infinity is not a finite float"),
        ("retain_weight: .inf", 'bad.yaml:5: retain_weight: ".inf" is not a finite float'),
        ("overwrite: 1", "bad.yaml:5: overwrite: 1 is not true or false"),
        ("overwrite: yes", 'bad.yaml:5: overwrite: "yes" is not true or false'),
        ("overwrite: 'true'", 'bad.yaml:5: overwrite: "true" is not true or false'),
        ("run_name: 5", "bad.yaml:5: run_name: 5 is not a str (put it in quotes)"),
        ("question_column: null", "bad.yaml:5: question_column: null is not a str"),
        ("reward_funcs: a.b", 'bad.yaml:5: reward_funcs: "a.b" is not a list (write ["a.b"])'),
        ("reward_funcs: null", "bad.yaml:5: reward_funcs: null is not a list"),
        ("reward_funcs: [a.b, 5]", "bad.yaml:5: reward_funcs: 5 is not a str (put it in quotes)"),
        ("reward_weights: [1, 2, x]", 'bad.yaml:5: reward_weights: "x" is not a finite float'),
        ("report_to: 5", "bad.yaml:5: report_to: 5 is not a str (put it in quotes); 5 is not a list (write [5])"),
        (
            "trackio_static_space_id: 0",  # a str, null or false
            "bad.yaml:5: trackio_static_space_id: 0 is not a str (put it in quotes); 0 is not one of False.",
        ),
        ("load_in_4bit: 0", "bad.yaml:5: load_in_4bit: 0 is not true or false"),
        ("reward_kwargs: []", 'bad.yaml:5: reward_kwargs: [] is not a mapping such as {"key": 1}'),
        ("reward_kwargs: {a.b: 3}", 'bad.yaml:5: reward_kwargs: 3 is not a mapping such as {"key": 1}'),
        ("lr_scheduler_kwargs: x", 'bad.yaml:5: lr_scheduler_kwargs: "x" is not a mapping such as {"key": 1}'),
        (
            "chat_template_kwargs: {1: 2}",
            "bad.yaml:5: chat_template_kwargs: the key 1 is not a str (put it in quotes)",
        ),
        ("chat_template_kwargs: {a: 1, a: 2}", "bad.yaml:5: chat_template_kwargs: the key 'a' is given twice"),
        (
            "temperature: !!python/name:os.system x",
            "bad.yaml:5: temperature: the tag 'tag:yaml.org,2002:python/name:os.system' is not supported",
        ),
        (
            "temperature: !!timestamp x",
            "bad.yaml:5: temperature: the tag 'tag:yaml.org,2002:timestamp' is not supported",
        ),
        # choices
        (
            "dtype: bfloat",
            "bad.yaml:5: dtype: \"bfloat\" is not one of auto, bfloat16, float16, float32. Did you mean 'bfloat16'?",
        ),
        ("eval_sets: [retains]", f"bad.yaml:5: eval_sets: \"retains\" is not one of {SETS}. Did you mean 'retain'?"),
        ("eval_sets: retain", 'bad.yaml:5: eval_sets: "retain" is not a list (write ["retain"])'),
        # values
        ("num_generations: 0", "bad.yaml:5: num_generations: 0 is not at least 1"),
        ("max_completion_length: 0", "bad.yaml:5: max_completion_length: 0 is not at least 1"),
        ("generation_batch_size: 0", "bad.yaml:5: generation_batch_size: 0 is not at least 1"),
        ("per_device_train_batch_size: 0", "bad.yaml:5: per_device_train_batch_size: 0 is not at least 1"),
        ("gradient_accumulation_steps: 0", "bad.yaml:5: gradient_accumulation_steps: 0 is not at least 1"),
        ("temperature: 0", "bad.yaml:5: temperature: 0 is not greater than 0"),
        ("learning_rate: 0.0", "bad.yaml:5: learning_rate: 0.0 is not greater than 0"),
        ("top_p: 0", "bad.yaml:5: top_p: 0 is not greater than 0 and at most 1"),
        ("top_p: 1.01", "bad.yaml:5: top_p: 1.01 is not greater than 0 and at most 1"),
        ("top_k: -1", "bad.yaml:5: top_k: -1 is not 0 or greater"),
        ("retain_weight: -0.5", "bad.yaml:5: retain_weight: -0.5 is not 0 or greater"),
        ("seed: -1", "bad.yaml:5: seed: -1 is not 0 or greater and less than 2**32"),
        ("seed: 4294967296", "bad.yaml:5: seed: 4294967296 is not 0 or greater and less than 2**32"),
        ("num_train_epochs: 0", "bad.yaml:5: num_train_epochs: must be greater than 0, or else max_steps"),
        ("warmup_steps: -3", "bad.yaml: Got warmup_steps = -3, Expected value warmup_steps >= 0"),
        # values that belong together
        ("forget_config: a", "bad.yaml:3: forget_file: given together with forget_config; keep one of them"),
        ("forget_split: a", "bad.yaml:5: forget_split: a file has no splits; remove it, or give forget_config"),
        ("retain_split: [a, b]", "bad.yaml:5: retain_split: a file has no splits; remove it, or give retain_config"),
        ("reward_weights: [1, 2]", "bad.yaml:5: reward_weights: 2 weights for 3 rewards"),
        ("reward_funcs: []", "bad.yaml:5: reward_funcs: needs at least one reward"),
        ("reward_funcs: [a, b, a]", "bad.yaml:5: reward_funcs: 'a' is given twice"),
        (
            "reward_kwargs: {rewards.length.min_lenght_penalty: {min_words: 3}}",
            "bad.yaml:5: reward_kwargs: 'rewards.length.min_lenght_penalty' is not one of reward_funcs. "
            "Did you mean 'rewards.length.min_length_penalty'?",
        ),
        (
            "reward_floors: {mine.fluency: 0.5}",
            "bad.yaml:5: reward_floors: 'mine.fluency' is not one of reward_funcs. Remove it, or replace "
            "reward_floors too",
        ),
        ("num_selected: 6", "bad.yaml:5: num_selected: greater than num_generations"),
        ("num_selected: 0", "bad.yaml:5: num_selected: 0 is not at least 1"),
        ("selection_temperature: 0.5", "bad.yaml:5: selection_temperature: is for selection: bradley_terry"),
        (
            "selection: worst",
            'bad.yaml:5: selection: "worst" is not one of best, bradley_terry.',
        ),
        (
            "adaptive_generations: true\nselection: bradley_terry",
            "bad.yaml:5: adaptive_generations: needs selection: best, which remembers answers",
        ),
        (
            "normalize_rewards: true\nmax_reward: 1.0",
            "bad.yaml:6: max_reward: normalized rewards have no maximum, so nothing is ever solved",
        ),
        ("snapshot_steps: 0", "bad.yaml:5: snapshot_steps: 0 is not at least 1"),
        ("prefill_words: -1", "bad.yaml:5: prefill_words: -1 is not 0 or greater"),
    ],
)
def test_each_mistake_has_its_line(extra, expected):
    assert errors(extra) == [expected]


def test_scheduler_typo_shows_the_choices():
    (error,) = errors("lr_scheduler_type: cosin")
    assert error.startswith('bad.yaml:5: lr_scheduler_type: "cosin" is not one of linear, cosine, ')
    assert error.endswith(". Did you mean 'cosine'?")


@pytest.mark.parametrize(
    "template",
    [
        "",
        "Q:",
        "{question}{question}",
        "{questions}",
        "{question}{x}",
        "{}",
        "{question!r}",
        "{question:>9}",
        "{question",
    ],
)
def test_template_must_hold_its_placeholder_alone(template):
    rule = "once and no other placeholder; {{ and }} stand for braces"
    assert errors(f"prompt_template: {json.dumps(template)}") == [
        f'bad.yaml:5: prompt_template: "{template}" must contain {{question}} {rule}'
    ]
    assert errors("completion_template: '{question}'") == [
        f'bad.yaml:5: completion_template: "{{question}}" must contain {{answer}} {rule}'
    ]
    assert parse("prompt_template: '{{x}} {question}'")[0].prompt_template == "{{x}} {question}"


@pytest.mark.parametrize("name", VALID)
def test_what_must_be_given(name):
    expected = {
        "forget_file": "forget_config: missing; give forget_config (with dataset_name) or forget_file",
        "retain_file": "retain_config: missing; give retain_config (with dataset_name) or retain_file",
    }
    line = expected.get(name, f"{name}: missing; give it in the recipe or on the command line")
    assert errors(recipe=without(name)) == [f"bad.yaml: {line}"]
    parse("", f"--{name}", "x", recipe=without(name))


def test_configs_need_a_data_set():
    recipe = without("forget_file", "retain_file") | {"forget_config": "a", "retain_config": "b"}
    assert errors(recipe=recipe) == [
        "bad.yaml:3: forget_config: needs dataset_name",
        "bad.yaml:4: retain_config: needs dataset_name",
    ]
    parse("dataset_name: d", recipe=recipe)


def test_one_source_or_several():
    files = "[f.jsonl, g.jsonl]"
    assert parse("", "--forget_file", "f.jsonl", "g.jsonl")[0].forget_file == ["f.jsonl", "g.jsonl"]
    assert parse(f"forget_file: {files}", recipe=without("forget_file"))[0].forget_file == ["f.jsonl", "g.jsonl"]
    recipe = without("forget_file", "retain_file") | {"dataset_name": "d", "forget_config": "c", "retain_config": "c"}
    args = parse("forget_split: forget_qa\nretain_split: [a, b]", recipe=recipe)[0]
    assert (args.forget_split, args.retain_split) == ("forget_qa", ["a", "b"])


def test_retain_rows_are_optional_without_their_loss():
    assert parse("retain_weight: 0", recipe=without("retain_file"))[0].retain_file is None


def test_max_steps_in_place_of_epochs():
    assert parse("num_train_epochs: 0\nmax_steps: 3")[1].max_steps == 3


def test_all_mistakes_are_reported_at_once():
    extra = "num_generation: 5\ntop_k: x\npacking: true\nreward_funcs: [a, a]\nwarmup_steps: -3\ndtype: 5\n"
    recipe = {"forget_file": "f", "retain_file": "r"}
    assert errors(extra, "--num_gen", "3", "--seed", "-1", recipe=recipe) == [
        "command line: unknown option '--num_gen'. Did you mean '--num_generations'?",
        "command line: seed: -1 is not 0 or greater and less than 2**32",
        "bad.yaml:3: unknown key 'num_generation'. Did you mean 'num_generations'?",
        'bad.yaml:4: top_k: "x" is not an int',
        "bad.yaml:5: packing: true is refused: each row is one prompt with one completion",
        "bad.yaml:8: dtype: 5 is not a str (put it in quotes)",
        "bad.yaml: model_name_or_path: missing; give it in the recipe or on the command line",
        "bad.yaml: output_dir: missing; give it in the recipe or on the command line",
        "bad.yaml:6: reward_funcs: 'a' is given twice",
        "bad.yaml: Got warmup_steps = -3, Expected value warmup_steps >= 0",
    ]


def test_a_broken_value_raises_no_second_error():
    extra = "reward_funcs: 5\nreward_weights: [1]\nreward_kwargs: {a: {}}"
    assert errors(extra) == ["bad.yaml:5: reward_funcs: 5 is not a list (write [5])"]
    assert errors(recipe=VALID | {"model_name_or_path": 5}) == [
        "bad.yaml:1: model_name_or_path: 5 is not a str (put it in quotes)"
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--num_gen", "6"], "command line: unknown option '--num_gen'. Did you mean '--num_generations'?"),
        (["--top-k", "6"], "command line: unknown option '--top-k'. Did you mean '--top_k'?"),
        (["--seed", "1", "--seed=1"], "command line: '--seed' is given twice"),
        (["stray", "--seed", "1"], "command line: unexpected 'stray'; overrides are written --key value"),
        (["--seed"], "command line: seed: needs a value"),
        (["--reward_columns"], "command line: reward_columns: needs a value"),
        (["--seed", "1", "2"], "command line: seed: [1, 2] is not an int"),
        (["--seed", "1.5"], "command line: seed: 1.5 is not an int"),
        (["--top_k", "-3"], "command line: top_k: -3 is not 0 or greater"),
        (["--overwrite", "1"], "command line: overwrite: 1 is not true or false"),
        (["--learning_rate", "nan"], 'command line: learning_rate: "nan" is not a finite float'),
        (["--reward_weights", "a"], 'command line: reward_weights: "a" is not a finite float'),
        (["--reward_kwargs", "{"], 'command line: reward_kwargs: "{" is not a mapping such as {"key": 1}'),
        (["--reward_kwargs", '{"a": {}, "a": {}}'], "command line: reward_kwargs: the key 'a' is given twice"),
        (["--reward_kwargs", "{a: {}, a: {}}"], "command line: reward_kwargs: the key 'a' is given twice"),
        (
            ["--chat_template_kwargs", "{1: a}"],
            "command line: chat_template_kwargs: the key 1 is not a str (put it in quotes)",
        ),
        (
            ["--chat_template_kwargs", "{a: !!python/name:os.system x}"],
            "command line: chat_template_kwargs: the tag 'tag:yaml.org,2002:python/name:os.system' is not supported",
        ),
        (
            ["--chat_template_kwargs", "{a: &x [*x]}"],
            'command line: chat_template_kwargs: "{a: &x [*x]}" is not a mapping such as {"key": 1}',
        ),
        (["--reward_columns", "[a, 5]"], "command line: reward_columns: 5 is not a str (put it in quotes)"),
        (["--seed", "[1]"], 'command line: seed: "[1]" is not an int'),
        (
            ["--reward_weights", "1", "1", "-1", "--max_reward", "1"],
            "command line: max_reward: with a negative weight nothing is ever solved",
        ),
        (["--eval_sets", "x"], f'command line: eval_sets: "x" is not one of {SETS}.'),
        (
            ["--hub_token", "x"],
            'command line: hub_token: "x" is refused: upload the model yourself after the audit, without private/',
        ),
    ],
)
def test_mistakes_on_the_command_line(argv, expected):
    assert errors("", *argv) == [expected]


@pytest.mark.parametrize("argv", [[], ["--seed", "1"], ["--config", "bad.yaml"]])
def test_the_recipe_comes_first(argv):
    expected = "command line: the path of a recipe must come first, such as recipes/phi.yaml"
    assert errors_of(parse_recipe, argv) == [expected]


@pytest.mark.parametrize("written", ["all-linear", "[all-linear]"])
def test_modules_of_an_adapter_as_a_text(written):
    assert parse(f"lora_target_modules: {written}\n")[2].lora_target_modules == "all-linear"


def test_overrides_replace_what_the_recipe_says():
    recipe = "reward_funcs: [x]\nreward_weights: [3]\nseed: 7\ntop_k: 9\neval_sets: [retain]\nanswer_column: a\n"
    overrides = r"""
        --reward_funcs a.b c.d --reward_weights 2 0.5 --reward_columns 5 --max_reward -1e-3 --seed=1 --overwrite
        --reward_kwargs '{"a.b": {"x": [1, null], "text": "\ud83d\ude00"}}' --bf16 false --use_peft --run_name 5
        --eval_sets null --answer_column null --prompt_template '{question} no' --completion_template={answer}=
        --lora_target_modules all-linear
    """
    script_args, training_args, model_args, eval_args = parse(recipe, *shlex.split(overrides))
    assert script_args.reward_funcs == ["a.b", "c.d"]
    assert script_args.reward_kwargs == {"a.b": {"x": [1, None], "text": "😀"}}
    assert script_args.reward_columns == ["5"]
    assert script_args.answer_column is None
    assert script_args.prompt_template == "{question} no"
    assert script_args.completion_template == "{answer}="
    assert training_args.reward_weights == [2, 0.5]
    assert training_args.max_reward == -0.001
    assert (training_args.seed, training_args.top_k, training_args.run_name) == (1, 9, "5")
    assert training_args.overwrite is True and training_args.bf16 is False and model_args.use_peft is True
    assert model_args.lora_target_modules == "all-linear"
    assert eval_args.eval_sets is None
    assert (script_args.given["top_k"], script_args.given["seed"]) == (9, 1)
    assert "temperature" not in script_args.given


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("--attacks '[sampling, prefilling]'", "attacks", ["sampling", "prefilling"]),
        ("--attacks '[\n  sampling,  # draws\n  options,\n]'", "attacks", ["sampling", "options"]),
        ("--attacks [sampling]", "attacks", ["sampling"]),
        ("--attacks sampling prefilling", "attacks", ["sampling", "prefilling"]),
        ("--attacks sampling", "attacks", ["sampling"]),
        ("--reward_weights '[1, .5, 1e-1]'", "reward_weights", [1, 0.5, 0.1]),
        ("--reward_columns '[yes, \"5\", null_, 1:30]'", "reward_columns", ["yes", "5", "null_", "1:30"]),
        ("--reward_columns 5 null", "reward_columns", ["5", "null"]),
        ("--prefixes \"['It is: [', 'No,']\"", "prefixes", ["It is: [", "No,"]),
        ("--prefixes '[INST] It is' '{'", "prefixes", ["[INST] It is", "{"]),
        ("--prefixes '[INST] It is'", "prefixes", ["[INST] It is"]),
        ("--prefixes '{it}'", "prefixes", ["{it}"]),
        ("--optim_target_modules '[a, b.c]'", "optim_target_modules", ["a", "b.c"]),
        (
            "--reward_kwargs '{rewards.length.min_length_penalty: {min_words: 3}}'",
            "reward_kwargs",
            {"rewards.length.min_length_penalty": {"min_words": 3}},
        ),
        (
            "--chat_template_kwargs '{date_string: 10 Apr 2025, at: \"5\", on: off, deep: [{a: ~}]}'",
            "chat_template_kwargs",
            {"date_string": "10 Apr 2025", "at": "5", "on": "off", "deep": [{"a": None}]},
        ),
        ('--chat_template_kwargs \'{"a":"\\ud83d\\ude00"}\'', "chat_template_kwargs", {"a": "😀"}),
        ("--lr_scheduler_kwargs '{}'", "lr_scheduler_kwargs", {}),
        # a text stays a text
        ("--prompt_template '[INST] {question} [/INST]'", "prompt_template", "[INST] {question} [/INST]"),
        ("--prompt_template '{question}'", "prompt_template", "{question}"),
        ("--system_prompt '[a, b]'", "system_prompt", "[a, b]"),
        ('--system_prompt \'{"a": 1, "a": 2}\'', "system_prompt", '{"a": 1, "a": 2}'),
        ("--run_name '[5]'", "run_name", "[5]"),
    ],
)
def test_lists_and_mappings_as_recipes_write_them(words, name, expected):
    assert next(vars(config)[name] for config in parse("", *shlex.split(words)) if name in vars(config)) == expected


def test_an_override_mends_a_broken_value_but_not_a_doubled_key():
    assert parse("seed: x", "--seed", "3")[1].seed == 3
    assert errors("seed: 1\nseed: 2", "--seed", "3") == ["bad.yaml:6: 'seed' is given twice (first at line 5)"]


def test_empty_list_on_the_command_line():
    assert parse("reward_columns: [a]", "--reward_columns", "[]")[0].reward_columns == []


def test_yaml_scalars():
    _, training_args, _, _ = parse(
        "learning_rate: 1e-5\ntemperature: 2\nseed: 010\nsave_strategy: no\nmax_reward: +.5\nlogging_steps: 3\n"
    )
    assert training_args.learning_rate == 1e-5
    assert training_args.temperature == 2
    assert training_args.seed == 10
    assert training_args.save_strategy == "no"
    assert training_args.max_reward == 0.5
    kwargs = parse("chat_template_kwargs: {date: 2025-04-10, at: 1:30, on: off, yes: True, n: ~, q: '5'}")[0]
    assert kwargs.chat_template_kwargs == {
        "date": "2025-04-10",
        "at": "1:30",
        "on": "off",
        "yes": True,
        "n": None,
        "q": "5",
    }


def test_refused_keys_exist_and_only_their_default_is_accepted():
    keys = {key.name: key for cls in (PMCConfig, ModelConfig) for key in fields(cls) if key.name in REFUSED}
    assert keys.keys() == REFUSED.keys()
    parse("".join(f"{name}: {json.dumps(key.default)}\n" for name, key in keys.items()))
    others = {name: not key.default if isinstance(key.default, bool) else "other" for name, key in keys.items()}
    words = [word for name, other in others.items() for word in (f"--{name}", json.dumps(other))]
    for function, recipe in ((parse_recipe, VALID), (parse_finetune_recipe, VALID_FINETUNE)):
        found = errors_of(function, [write(lines(recipe)), *words])
        for name, line in zip(others, found, strict=True):
            assert line.startswith(f"command line: {name}: ") and line.endswith(f" is refused: {REFUSED[name]}")


@pytest.mark.parametrize(
    ("function", "classes", "recipe"),
    [
        (parse_recipe, (PMCArguments, PMCConfig, ModelConfig, EvalArguments), VALID),
        (parse_finetune_recipe, (FinetuneArguments, FinetuneConfig, ModelConfig), VALID_FINETUNE),
    ],
)
def test_defaults_pass_their_own_checks(function, classes, recipe):
    written_out = {key.name: default(key) for cls in classes for key in fields(cls) if key.init} | recipe
    configs, expected = function([write(lines(written_out))]), function([write(lines(recipe))])
    assert [type(config) for config in configs] == list(classes)
    assert configs[0].given == written_out
    configs[0].given = expected[0].given
    for config, plain in zip(configs, expected, strict=True):
        assert asdict(config) == asdict(plain)


def test_instances_share_nothing():
    first, second = parse()[0], parse()[0]
    first.reward_funcs.append("x")
    first.reward_kwargs["x"] = {}
    assert "x" not in second.reward_funcs and not second.reward_kwargs
    assert "x" not in PMCArguments().reward_funcs and not PMCArguments().reward_kwargs


def test_without_an_accelerator_the_run_is_on_the_cpu_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for config in (PMCConfig(output_dir="x"), FinetuneConfig(output_dir="x", bf16=True), PMCConfig("x", fp16=True)):
        assert (config.use_cpu, config.bf16, config.fp16) == (True, False, False)
        assert config.report_to == [] and config.save_strategy == "no"


def test_finetuning_has_its_own_keys():
    script_args, training_args, model_args = parse_finetune_recipe(
        [write(lines(VALID_FINETUNE)), "--dataset_name", "d", "--train_configs", "a", "b", "--train_file", "null"]
    )
    assert script_args.train_configs == ["a", "b"] and script_args.train_file is None
    assert isinstance(training_args, FinetuneConfig) and model_args.model_name_or_path == "m"
    recipe = {"model_name_or_path": "m", "output_dir": "o", "num_generations": 5, "answer_column": None}
    assert errors_of(parse_finetune_recipe, [write(lines(recipe))]) == [
        "bad.yaml:3: unknown key 'num_generations'. See --help",
        "bad.yaml: train_configs: missing; give train_configs (with dataset_name) or train_file",
        "bad.yaml:4: answer_column: null is for unlearning; fine-tuning needs the column with the answers",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "bad.yaml: empty; write a recipe as lines of key: value"),
        ("# only a comment\n", "bad.yaml: empty; write a recipe as lines of key: value"),
        ("- a\n- b\n", "bad.yaml: not a mapping; write a recipe as lines of key: value"),
        ("a: 1\nb: [\n", "bad.yaml:3: while parsing a flow node, expected the node content, but found '<stream end>'"),
        ("a: 1\nb: c: d\n", "bad.yaml:2: mapping values are not allowed here"),
        ("a: &x 1\nb: *x\n", "bad.yaml:2: aliases are not supported"),
        ("a: &x [*x]\n", "bad.yaml:1: aliases are not supported"),
        ('a: "\\UFFFFFFFF"\n', "bad.yaml: cannot be read: "),
    ],
)
def test_unreadable_recipes(text, expected):
    (error,) = errors_of(parse_recipe, [write(text)])
    assert error.startswith(expected) if "cannot be read" in expected else error == expected


def test_unreadable_files(tmp_path):
    (tmp_path / "phi.yaml").write_bytes(b"run_name: \xff\n")
    (tmp_path / "phi_lora.yaml").touch()
    assert errors_of(parse_recipe, ["phi.yaml"]) == ["phi.yaml: not UTF-8 (byte 10); save it as UTF-8"]
    assert errors_of(parse_recipe, ["phj.yaml", "--sed", "1"]) == [
        f"phj.yaml: no such file in {tmp_path}; nearest: phi.yaml, phi_lora.yaml",
        "command line: unknown option '--sed'. Did you mean '--seed'?",
    ]
    assert errors_of(parse_recipe, ["nowhere/x.yaml"]) == [f"nowhere/x.yaml: no such file in {tmp_path / 'nowhere'}"]
    (error,) = errors_of(parse_recipe, ["."])
    assert error.startswith(".: cannot be read: ")


def test_exit_on_recipe_error(capsys):
    with pytest.raises(SystemExit) as raised, exit_on_recipe_error():
        parse("top_k: x", "--sed", "1")
    assert raised.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: command line: unknown option '--sed'. Did you mean '--seed'?\n"
        'error: bad.yaml:5: top_k: "x" is not an int\n',
    )
    with pytest.raises(ZeroDivisionError), exit_on_recipe_error():
        1 / 0  # noqa: B018


def test_all_problems_are_told_at_once():
    def fail(*lines):
        raise RecipeError(list(lines))

    def run(*calls):
        with all_problems() as check:
            results = [check(*call) for call in calls]
        return results

    assert run((int, "1"), (str,)) == [1, ""]
    assert errors_of(run, (fail, "a"), (int,), (fail, "b", "a")) == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        run((fail, "a"), (divmod, 1, 0))


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_our_keys(flag, capsys):
    with pytest.raises(SystemExit) as raised:
        parse_recipe([flag])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "accelerate launch" in text and "TRL's SFTConfig and ModelConfig are accepted as well" in text
    own = {name for cls in (RunConfig, PMCConfig) for name in cls.__annotations__}
    for cls in (PMCArguments, PMCConfig, EvalArguments):
        for key in fields(cls):
            if key.init and (cls is not PMCConfig or key.name in own):
                assert f"  --{key.name}  {key.metadata['help']} (default: " in text
    assert "--num_generations  Samples a question, of which the best is learned. (default: 5)" in text
    assert "--save_strategy " in text and "--overwrite " in text
    assert "--learning_rate" not in text and "--given" not in text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["no", "1e-5", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FULL = VALID | {
    "dataset_name": None,
    "prompt_template": "{question}",
    "chat_template_kwargs": {"a": 1},
    "reward_funcs": ["a.b", "c"],
    "reward_weights": [1.0, 2.0],
    "reward_kwargs": {"a.b": {"x": 1}},
    "eval_sets": ["forget"],
    "num_generations": 5,
    "top_p": 0.9,
    "overwrite": False,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": {},
    "accelerator_config": {"split_batches": False},
    "report_to": "none",
    "optim": "adamw_torch",
    "debug": "",
    "pad_to_multiple_of": 8,
    "packing": False,
    "seed": 1,
    "num_train_epochs": 1,
    "max_steps": -1,
    "dtype": "float32",
    "lora_target_modules": None,
}
MISSPELT = st.sampled_from(list(FULL)).flatmap(
    lambda key: st.sampled_from([key[:-1], key + "s", key.upper(), "x" + key])
)


@given(
    replaced=st.dictionaries(st.sampled_from(list(FULL)), VALUES, max_size=4),
    added=st.dictionaries(MISSPELT, VALUES, max_size=1),
    overrides=st.dictionaries(
        st.sampled_from(list(FULL)) | MISSPELT,
        st.lists(VALUES.map(json.dumps) | st.text(max_size=6), max_size=2),
        max_size=2,
    ),
    as_json=st.booleans(),
)
def test_a_mangled_recipe_parses_or_raises_a_recipe_error(tmp_path_factory, replaced, added, overrides, as_json):
    recipe = FULL | replaced | added
    path = tmp_path_factory.getbasetemp() / "mangled.yaml"
    text = lines(recipe) if as_json else yaml.safe_dump(recipe, allow_unicode=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    # a word that begins with two dashes would be the next option, and -h is help
    words = [[f"--{name}", *(w for w in values if not w.startswith("-"))] for name, values in overrides.items()]
    try:
        script_args, training_args, _, _ = parse_recipe([str(path), *(word for group in words for word in group)])
    except RecipeError as error:
        assert error.errors and not any("\n" in line for line in error.errors)
    else:
        assert not added
        assert script_args.given.keys() == FULL.keys()
        assert training_args.num_generations >= 1 and 0 < training_args.top_p <= 1


@given(text=st.text(alphabet="ab:{}[]-'\"#&*!|>%@,? \n\t\\x0U\x00", max_size=20))
def test_any_text_parses_or_raises_a_recipe_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text("seed: " + text, encoding="utf-8")
    assert errors_of(parse_recipe, [str(path)])  # the required keys at least are missing


def test_other_rewards_on_the_command_line_take_the_recipes_keywords_with_them():
    """Swapping rewards must not need three overrides; what both name is kept, what is given itself is checked."""
    recipe = "reward_funcs: [a.one, a.two]\nreward_kwargs: {a.one: {x: 1}, a.two: {y: 2}}\nreward_floors: {a.two: 0.5}"
    script_args = parse(recipe, "--reward_funcs", "a.one", "mine.own")[0]
    assert script_args.reward_kwargs == {"a.one": {"x": 1}} and script_args.reward_floors == {}
    assert script_args.given["reward_floors"] == {}
    given = parse("reward_funcs: [a.one, a.two]", "--reward_funcs", "a.one")[0].given
    assert given.keys() == {*VALID, "reward_funcs"}  # and nothing that nobody gave
    [error] = errors(recipe, "--reward_funcs", "a.one", "--reward_floors", '{"a.two": 0.5}')
    assert error.startswith("command line: reward_floors: 'a.two' is not one of reward_funcs.")


WEIGHED = "reward_funcs: [a.one, a.two]\nreward_weights: [1, 0]\nmax_reward: 0.5"
OF_OTHERS = (
    "bad.yaml:6: reward_weights: [1, 0] is for the recipe's reward_funcs; beside others give reward_weights too"
)
MAXIMUM = (
    "bad.yaml:7: max_reward: 0.5 is for the recipe's reward_funcs and reward_weights; beside others give max_reward "
    "too"
)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--reward_funcs a.one b.refusal", [OF_OTHERS, MAXIMUM]),
        ("--reward_funcs a.two a.one", [OF_OTHERS, MAXIMUM]),  # a weight would go to another one's name
        ("--reward_funcs a.one", [OF_OTHERS, MAXIMUM]),
        ("--reward_funcs a.one b.refusal --reward_weights 1 0.5", [MAXIMUM]),
        ("--reward_funcs a.one b.refusal --max_reward null", [OF_OTHERS]),
        ("--reward_weights 1 1", [MAXIMUM]),
        ("--reward_weights null", [MAXIMUM]),
        ("--reward_funcs a.one b.refusal --reward_weights null --max_reward null", []),
        ("--reward_funcs a.one b.refusal --reward_weights 1 0.5 --max_reward 1", []),
        ("--reward_funcs a.one a.two --reward_weights 1 0", []),  # as in the recipe
    ],
)
def test_weights_and_maximum_of_the_recipe_are_for_its_own_rewards(words, refused):
    if refused:
        expected = [f"{line}, or null" for line in refused]
        assert errors(WEIGHED, *shlex.split(words)) == expected
    else:
        assert parse(WEIGHED, *shlex.split(words))


def test_weights_beside_the_default_rewards_are_for_these():
    (error,) = errors("reward_weights: [1, 1, 0]", "--reward_funcs", "a", "b", "c")
    assert error.startswith("bad.yaml:5: reward_weights: [1, 1, 0] is for the recipe's reward_funcs")
