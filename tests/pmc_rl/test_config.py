"""The recipe: a line for each mistake, all mistakes at once, overrides, defaults, and mangled recipes."""

import json
import shlex
from dataclasses import MISSING, asdict, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import ModelConfig

from pmc_rl.config import EvalArguments, FinetuneArguments, PMCArguments, PMCConfig, RunConfig
from pmc_rl.errors import RecipeError, all_problems, exit_on_recipe_error
from pmc_rl.recipe import REFUSED, parse_finetune_recipe, parse_recipe
from tests.conftest import errors_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own defaults cause some

VALID = {"model_name_or_path": "m", "output_dir": "out", "forget_file": "f.jsonl", "retain_file": "r.jsonl"}
VALID_FINETUNE = {"model_name_or_path": "m", "output_dir": "out", "train_file": "t.jsonl"}
MIN_LENGTH = "rewards.length.min_length_penalty"
UNLEARNING = (PMCArguments, PMCConfig, ModelConfig, EvalArguments)
WITHOUT_FILES = {key: VALID[key] for key in ("model_name_or_path", "output_dir")}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(recipe):
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())


def write(text):
    with open("bad.yaml", "w", encoding="utf-8") as file:
        file.write(text)
    return "bad.yaml"


def parse(extra="", *words, recipe=VALID):
    """Parses a valid recipe of four lines with further lines, from line 5 on."""
    return parse_recipe([write(lines(recipe) + extra), *words])


def errors(extra="", *words, recipe=VALID):
    return errors_of(parse, extra, *words, recipe=recipe)


def default(key):
    return key.default if key.default_factory is MISSING else key.default_factory()


# further lines of a recipe, and how the one problem of them begins
MISTAKES = {
    "num_generation: 5": "unknown key 'num_generation'. Did you mean 'num_generations'?",
    "output_dir: b": "'output_dir' is given twice",
    # types
    "num_generations: 5.0": "num_generations: 5.0 is not an int",
    "num_generations: '5'": 'num_generations: "5" is not an int',
    "num_generations:": "num_generations: null is not an int",
    "temperature: true": "temperature: true is not a finite float",
    "temperature: .nan": 'temperature: ".nan" is not a finite float',
    "overwrite: yes": 'overwrite: "yes" is not true or false',
    "run_name: 5": "run_name: 5 is not a str (put it in quotes)",
    "reward_funcs: a.b": 'reward_funcs: "a.b" is not a list (write ["a.b"])',
    "report_to: 5": "report_to: 5 is not a str (put it in quotes); 5 is not a list (write [5])",
    "lr_scheduler_kwargs: {nope: 1}": "lr_scheduler_kwargs: ",
    "chat_template_kwargs: {a: 1, a: 2}": "chat_template_kwargs: the key 'a' is given twice",
    "temperature: !!python/name:os.system x": "temperature: the tag 'tag:yaml.org,2002:python/name:os.system' is not",
    # choices
    "dtype: bfloat": "dtype: \"bfloat\" is not one of auto, bfloat16, float16, float32. Did you mean 'bfloat16'?",
    "dtype: auto": "dtype: say which: ",
    "eval_sets: [retains]": 'eval_sets: "retains" is not one of forget, forget_paraphrased, retain, ',
    # ranges
    "num_generations: 0": "num_generations: 0 is not at least 1",
    "learning_rate: 0.0": "learning_rate: 0.0 is not above 0",
    "top_p: 1.01": "top_p: 1.01 is not above 0 and at most 1",
    "adam_beta1: 1": "adam_beta1: 1 is not at least 0 and below 1",
    "seed: 4294967296": "seed: 4294967296 is not at least 0 and below 4294967296",
    # values that belong together
    "num_train_epochs: 0": "num_train_epochs: must be greater than 0, or else max_steps",
    "forget_split: a": "forget_split: a file has no splits; remove it, or give forget_config",
    "reward_weights: [1, 2]": "reward_weights: 2 weights for 3 rewards",
    "reward_funcs: []": "reward_funcs: needs at least one reward",
    "reward_funcs: [a, b, a]": "reward_funcs: 'a' is given twice",
    "reward_kwargs: {mine.on: {}}\nreward_funcs: [mine.one]": "reward_kwargs: 'mine.on' is not one of reward_funcs. ",
    "num_selected: 6": "num_selected: above num_generations",
    "selection_temperature: 0.5": "selection_temperature: is for selection: bradley_terry",
    "adaptive_generations: true\nselection: bradley_terry": "adaptive_generations: needs selection: best",
    "max_reward: 1\nselection: bradley_terry": "max_reward: needs selection: best",
    "max_reward: 1\nnormalize_rewards: true": "max_reward: normalized rewards have no maximum",
    "max_reward: 1\nreward_weights: [1, 1, -1]": "max_reward: with a negative weight nothing is ever solved",
    "save_merged: true": "save_merged: needs use_peft",
    "log_completions: true\nreport_to: tensorboard": "log_completions: the table shows what is to be forgotten",
}


@pytest.mark.parametrize(("line", "expected"), MISTAKES.items())
def test_each_mistake_has_its_line(line, expected):
    [error] = errors(line)
    assert error.startswith(f"bad.yaml:5: {expected}")


def test_template_must_hold_its_placeholder_alone():
    for template in ("Q:", "{question}{question}", "{question}{x}", "{question!r}", "{question"):
        [error] = errors(f"prompt_template: {json.dumps(template)}")
        assert error.startswith(f'bad.yaml:5: prompt_template: "{template}" must contain {{question}} once')
    assert "must contain {answer} once" in errors("completion_template: '{question}'")[0]
    [error] = errors("wordings: ['Say: {question}', Say it.]")
    assert error.endswith('wordings: "Say it." must contain {question}')
    assert parse("prompt_template: '{{x}} {question}'")[0].prompt_template == "{{x}} {question}"


def test_sources():
    for name in VALID:
        [error] = errors(recipe={key: VALID[key] for key in VALID if key != name})
        assert "missing; give" in error and name in error
    configs = WITHOUT_FILES | {"forget_config": "a", "retain_config": "b"}
    needed = ["bad.yaml:3: forget_config: needs dataset_name", "bad.yaml:4: retain_config: needs dataset_name"]
    assert errors(recipe=configs) == needed
    together = "bad.yaml:3: forget_file: given together with forget_config; keep one of them"
    assert errors("forget_config: a\ndataset_name: d") == [together]
    args = parse("dataset_name: d\nforget_split: forget_qa\nretain_split: [a, b]", recipe=configs)[0]
    assert (args.forget_split, args.retain_split) == ("forget_qa", ["a", "b"])
    only_forget = WITHOUT_FILES | {"forget_file": ["f.jsonl", "g.jsonl"]}
    assert parse("retain_weight: 0", recipe=only_forget)[0].forget_file == ["f.jsonl", "g.jsonl"]
    assert parse("num_train_epochs: 0\nmax_steps: 3")[1].max_steps == 3


def test_all_mistakes_are_reported_at_once_and_cause_no_others():
    extra = "num_generation: 5\ntop_k: x\npacking: true\nreward_funcs: [a, a]\nwarmup_steps: -3\nreward_weights: 5\n"
    found = errors(extra, "--num_gen", "3", "--seed", "-1", recipe={"forget_file": "f", "retain_file": "r"})
    assert [line.partition(": ")[::2] for line in found[:-1]] == [
        ("command line", "unknown key 'num_gen'. Did you mean 'num_generations'?"),
        ("command line", "seed: -1 is not at least 0 and below 4294967296"),
        ("bad.yaml:3", "unknown key 'num_generation'. Did you mean 'num_generations'?"),
        ("bad.yaml:4", 'top_k: "x" is not an int'),
        ("bad.yaml:5", "packing: true is refused: each row is one prompt with one completion"),
        ("bad.yaml:8", "reward_weights: 5 is not a list (write [5])"),
        ("bad.yaml", "model_name_or_path: missing; give it in the recipe or on the command line"),
        ("bad.yaml", "output_dir: missing; give it in the recipe or on the command line"),
        ("bad.yaml:6", "reward_funcs: 'a' is given twice"),
    ]
    assert "warmup_steps = -3" in found[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--top-k 6", "unknown key 'top-k'. Did you mean 'top_k'?"),
        ("--seed 1 --seed=1", "'seed' is given twice"),
        ("stray --seed 1", "unexpected 'stray'; overrides are written --key value"),
        ("--seed", "seed: needs a value"),
        ("--seed '[1]'", 'seed: "[1]" is not an int'),
        ("--reward_kwargs '{a: {}, a: {}}'", "reward_kwargs: the key 'a' is given twice"),
        ("--chat_template_kwargs '{a: !!python/name:os.system x}'", "chat_template_kwargs: the tag 'tag:yaml.org"),
        ("--reward_columns '[a, 5]'", "reward_columns: 5 is not a str (put it in quotes)"),
    ],
)
def test_mistakes_on_the_command_line(words, expected):
    [error] = errors("", *shlex.split(words))
    assert error.startswith(f"command line: {expected}")


def test_overrides_replace_what_the_recipe_says():
    recipe, words = "seed: 7\ntop_k: 9\nreward_columns: [a]", ["--seed", "1", "--reward_columns", "b"]
    script_args, training_args, _, _ = parse(recipe, *words)
    assert (training_args.seed, training_args.top_k, script_args.reward_columns) == (1, 9, ["b"])
    assert script_args.given == VALID | {"seed": 1, "top_k": 9, "reward_columns": ["b"]}
    assert parse("seed: x", "--seed", "3")[1].seed == 3  # a broken value is mended, a doubled key is not
    assert errors("seed: 1\nseed: 2", "--seed", "3") == ["bad.yaml:6: 'seed' is given twice"]


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("--seed=1 --overwrite", "overwrite", True),
        ("--bf16 false --max_reward -1e-3", "max_reward", -0.001),
        ("--answer_column null", "answer_column", None),
        ("--completion_template={answer}=", "completion_template", "{answer}="),
        ("--reward_funcs a.b c.d", "reward_funcs", ["a.b", "c.d"]),
        ("--attacks '[\n  sampling,  # draws\n  options,\n]'", "attacks", ["sampling", "options"]),
        ("--attacks sampling", "attacks", ["sampling"]),
        ("--reward_weights '[1, .5, 1e-1]'", "reward_weights", [1, 0.5, 0.1]),
        ("--reward_columns '[yes, \"5\", null_, 1:30]'", "reward_columns", ["yes", "5", "null_", "1:30"]),
        ("--reward_columns 5 null", "reward_columns", ["5", "null"]),
        ("--reward_columns []", "reward_columns", []),
        ("--prefixes \"['It is: [', 'No,']\"", "prefixes", ["It is: [", "No,"]),
        ("--prefixes '[INST] It is' '{'", "prefixes", ["[INST] It is", "{"]),
        ("--prefixes '[INST] It is'", "prefixes", ["[INST] It is"]),
        ("--lora_target_modules '[all-linear]' --use_peft", "lora_target_modules", "all-linear"),
        ("--reward_floors '{rewards.length.min_length_penalty: 3}'", "reward_floors", {MIN_LENGTH: 3}),
        ("--chat_template_kwargs '{date: 10 Apr, at: \"5\"}'", "chat_template_kwargs", {"date": "10 Apr", "at": "5"}),
        ("--chat_template_kwargs '{on: off, a: [{b: ~}]}'", "chat_template_kwargs", {"on": "off", "a": [{"b": None}]}),
        (r"""--chat_template_kwargs '{"a":"\ud83d\ude00"}'""", "chat_template_kwargs", {"a": "😀"}),
        # a text stays a text
        ("--prompt_template '[INST] {question} [/INST]'", "prompt_template", "[INST] {question} [/INST]"),
        ("--system_prompt '[a, b]'", "system_prompt", "[a, b]"),
        ('--system_prompt \'{"a": 1, "a": 2}\'', "system_prompt", '{"a": 1, "a": 2}'),
    ],
)
def test_lists_and_mappings_as_recipes_write_them(words, name, expected):
    assert next(vars(config)[name] for config in parse("", *shlex.split(words)) if name in vars(config)) == expected


def test_yaml_scalars():
    recipe = "learning_rate: 1e-5\ntemperature: 2\nseed: 010\nsave_strategy: no\nmax_reward: +.5\n"
    recipe += "chat_template_kwargs: {date: 2025-04-10, at: 1:30, on: off, yes: True, n: ~, q: '5'}"
    script_args, args, _, _ = parse(recipe)
    found = (args.learning_rate, args.temperature, args.seed, args.save_strategy, args.max_reward)
    assert found == (1e-5, 2, 10, "no", 0.5)
    expected = {"date": "2025-04-10", "at": "1:30", "on": "off", "yes": True, "n": None, "q": "5"}
    assert script_args.chat_template_kwargs == expected


def test_refused_keys_exist_and_only_their_default_is_accepted():
    keys = {key.name: key for cls in (PMCConfig, ModelConfig) for key in fields(cls) if key.name in REFUSED}
    assert keys.keys() == REFUSED.keys()
    parse(lines({name: key.default for name, key in keys.items()}))
    others = {name: not key.default if isinstance(key.default, bool) else "other" for name, key in keys.items()}
    words = [word for name, other in others.items() for word in (f"--{name}", json.dumps(other))]
    for function, recipe in ((parse_recipe, VALID), (parse_finetune_recipe, VALID_FINETUNE)):
        found = errors_of(function, [write(lines(recipe)), *words])
        for name, line in zip(others, found, strict=True):
            assert line.startswith(f"command line: {name}: ") and line.endswith(f" is refused: {REFUSED[name]}")


def test_defaults_pass_their_own_checks_and_are_shared_by_no_two():
    for function, classes, recipe in (
        (parse_recipe, UNLEARNING, VALID),
        (parse_finetune_recipe, (FinetuneArguments, RunConfig, ModelConfig), VALID_FINETUNE),
    ):
        written_out = {key.name: default(key) for cls in classes for key in fields(cls) if key.init} | recipe
        configs, expected = function([write(lines(written_out))]), function([write(lines(recipe))])
        assert [type(config) for config in configs] == list(classes)
        assert configs[0].given == written_out
        configs[0].given = expected[0].given
        for config, plain in zip(configs, expected, strict=True):
            assert asdict(config) == asdict(plain)
    parse()[0].reward_funcs.append("x")
    assert "x" not in parse()[0].reward_funcs


@pytest.mark.parametrize("processor", [{}, {"avx512_bf16": False}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_without_an_accelerator_the_run_is_on_the_cpu_in_bf16_only_where_that_is_asked_and_fast(
    monkeypatch, processor
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    for config in (PMCConfig(output_dir="x"), RunConfig(output_dir="x", bf16=True), PMCConfig("x", fp16=True)):
        bf16 = not isinstance(config, PMCConfig) and any(processor.values())
        assert (config.use_cpu, config.bf16, config.fp16) == (True, bf16, False)
        assert config.report_to == [] and config.save_strategy == "no"


def test_finetuning_has_its_own_keys():
    words = ["--dataset_name", "d", "--train_configs", "a", "b", "--train_file", "null"]
    script_args, training_args, model_args = parse_finetune_recipe([write(lines(VALID_FINETUNE)), *words])
    assert script_args.train_configs == ["a", "b"] and script_args.train_file is None
    assert isinstance(training_args, RunConfig) and model_args.model_name_or_path == "m"
    recipe = WITHOUT_FILES | {"num_generations": 5, "answer_column": None, "save_strategy": "steps"}
    assert errors_of(parse_finetune_recipe, [write(lines(recipe))]) == [
        "bad.yaml:3: unknown key 'num_generations'. See --help",
        "bad.yaml: train_configs: missing; give train_configs (with dataset_name) or train_file",
        "bad.yaml:5: save_strategy: only unlearning has checkpoints",
        "bad.yaml:4: answer_column: null is for unlearning; fine-tuning needs the column with the answers",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "bad.yaml is not a mapping"),
        (b"{a: b}: 1\n", "bad.yaml is not a mapping"),
        (b"a: 1\nb: c: d\n", 'mapping values are not allowed here in "bad.yaml", line 2'),
        (b"a: 1\n---\nb: 1\n", "expected a single document"),
        ("seed: 1\n".encode("utf-16"), "bad.yaml cannot be read: 'utf-8' codec"),
    ],
)
def test_unreadable_recipes(tmp_path, content, expected):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert expected in errors_of(parse_recipe, ["bad.yaml"])[0]


def test_no_recipe():
    write("")
    for path in ("bad.yml", ".", "nowhere/bad.yaml"):
        [error] = errors_of(parse_recipe, [path])
        assert error.startswith(f"{path} cannot be read: ")
        assert ("did you mean 'bad.yaml'?" in error) == (path == "bad.yml")
    for words in ([], ["--seed", "1"]):
        assert "the path of a recipe must come first" in errors_of(parse_recipe, words)[0]


def test_errors_end_a_command_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as raised, exit_on_recipe_error():
        parse("top_k: x", "--sed", "1")
    assert raised.value.code == 2
    mistakes = ["command line: unknown key 'sed'. Did you mean 'seed'?", 'bad.yaml:5: top_k: "x" is not an int']
    assert capsys.readouterr() == ("", "".join(f"error: {mistake}\n" for mistake in mistakes))
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


def test_help_lists_our_keys_with_ranges_and_defaults(capsys):
    with pytest.raises(SystemExit) as raised:
        parse_recipe(["--help"])
    text = capsys.readouterr().out
    keys = [key for cls in (PMCArguments, PMCConfig, EvalArguments) for key in fields(cls) if "limits" in key.metadata]
    assert raised.value.code == 0 and all(f"  --{key.name}  {key.metadata['help']} (" in text for key in keys)
    assert "--num_generations  Samples a question, of which the best is learned. (at least 1; default: 5)" in text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["no", "1e-5", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = """prompt_template chat_template_kwargs reward_funcs reward_weights reward_kwargs eval_sets num_generations
    overwrite learning_rate lr_scheduler_type lr_scheduler_kwargs accelerator_config report_to optim packing top_p seed
    num_train_epochs max_steps dtype lora_target_modules""".split()
FULL = {key.name: default(key) for cls in UNLEARNING for key in fields(cls) if key.name in NAMES} | VALID
KEYS = st.sampled_from([*FULL, *FULL, *FULL, "see", "seeds", "SEED", "reward_weight"])
# a word that begins with two dashes would be the next option, and -h is help
WORDS = (VALUES.map(json.dumps) | st.text(max_size=6)).filter(lambda word: not word.startswith("-"))


@settings(max_examples=50)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, st.lists(WORDS, max_size=2), max_size=2))
def test_a_mangled_recipe_parses_or_raises_a_recipe_error(tmp_path_factory, replaced, overrides):
    path = tmp_path_factory.getbasetemp() / "mangled.yaml"
    path.write_text(lines(FULL | replaced), encoding="utf-8", errors="replace")
    words = [word for name, values in overrides.items() for word in (f"--{name}", *values)]
    try:
        script_args, training_args, _, _ = parse_recipe([str(path), *words])
    except RecipeError as error:
        assert error.errors and not any("\n" in line for line in error.errors)
    else:
        assert script_args.given.keys() == FULL.keys()  # none that is misspelt
        assert training_args.num_generations >= 1 and 0 < training_args.top_p <= 1


@given(text=st.text(alphabet="ab:{}[]-'\"#&*!|>%@,? \n\t\\x0U\x00", max_size=20))
def test_any_text_parses_or_raises_a_recipe_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text("seed: " + text, encoding="utf-8")
    assert errors_of(parse_recipe, [str(path)])  # the required keys at least are missing


def test_other_rewards_on_the_command_line_take_the_recipes_keywords_with_them():
    """Swapping rewards must not need three overrides; what both name is kept, what is given itself is checked."""
    recipe = "reward_funcs: [a.one, a.two]\nreward_kwargs: {a.one: {x: 1}, a.two: {y: 2}}\nreward_floors: {a.two: 0.5}"
    args = parse(recipe, "--reward_funcs", "a.one", "mine.own")[0]
    assert args.reward_kwargs == {"a.one": {"x": 1}} and args.reward_floors == args.given["reward_floors"] == {}
    given = parse("reward_funcs: [a.one, a.two]", "--reward_funcs", "a.one")[0].given
    assert given.keys() == {*VALID, "reward_funcs"}  # and nothing that nobody gave
    [error] = errors(recipe, "--reward_funcs", "a.one", "--reward_floors", '{"a.two": 0.5}')
    assert error.startswith("command line: reward_floors: 'a.two' is not one of reward_funcs.")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--reward_funcs a.one b.refusal", ["reward_weights", "max_reward"]),
        ("--reward_funcs a.two a.one", ["reward_weights", "max_reward"]),  # a weight would go to another one's name
        ("--reward_funcs a.one b.refusal --reward_weights 1 0.5", ["max_reward"]),
        ("--reward_funcs a.one b.refusal --max_reward null", ["reward_weights"]),
        ("--reward_weights null", ["max_reward"]),
        ("--reward_funcs a.one b.refusal --reward_weights null --max_reward null", []),
        ("--reward_funcs a.one b.refusal --reward_weights 1 0.5 --max_reward 1", []),
        ("--reward_funcs a.one a.two --reward_weights 1 0", []),  # as in the recipe
    ],
)
def test_weights_and_maximum_of_the_recipe_are_for_its_own_rewards(words, refused):
    problems = {
        "reward_weights": "bad.yaml:6: reward_weights: [1, 0] is for the recipe's reward_funcs; beside others give",
        "max_reward": "bad.yaml:7: max_reward: 0.5 is for the recipe's reward_funcs and reward_weights; beside others",
    }
    recipe = "reward_funcs: [a.one, a.two]\nreward_weights: [1, 0]\nmax_reward: 0.5"
    if refused:
        for line, name in zip(errors(recipe, *shlex.split(words)), refused, strict=True):
            assert line.startswith(problems[name])
    else:
        parse(recipe, *shlex.split(words))
    [error] = errors("reward_weights: [1, 1, 0]", "--reward_funcs", "a", "b", "c")  # the default's are those meant
    assert error.startswith("bad.yaml:5: reward_weights: [1, 1, 0] is for the recipe's reward_funcs")
