"""The strict reader of recipes: YAML and command line to dataclasses, with all problems at once."""

import string
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from trl import ModelConfig

from pmc_rl.config import (
    REFUSED,
    TRL_LIMITS,
    EvalArguments,
    FinetuneArguments,
    PMCArguments,
    PMCConfig,
    RunConfig,
)
from pmc_rl.errors import RecipeError, did_you_mean, one_line, show
from pmc_rl.output import read_record
from pmc_rl.values import construct, describe, fits, mismatch, read_words, read_yaml

# Values that are for certain rewards, in their order: a recipe's say nothing about other rewards.
OF_REWARDS = {"reward_weights": ("reward_funcs",), "max_reward": ("reward_funcs", "reward_weights")}

type_hints = cache(get_type_hints)  # some milliseconds a class
Entry = tuple[str, str, Callable[[], list[Any]]]  # a key, where it stands, and what may be meant, the likeliest first


def parse_recipe(argv: list[str]) -> tuple[PMCArguments, PMCConfig, ModelConfig, EvalArguments]:
    """
    Reads a recipe for unlearning and its audit: `argv` is its path, then overrides `--key value ...`. Raises
    [`RecipeError`] with every problem of both.
    """
    reader = StrictReader(argv, (PMCArguments, PMCConfig, ModelConfig, EvalArguments), "recipes/phi.yaml")
    _check_run(reader)
    _check_source(reader, "forget_config", "forget_file", "forget_split")
    _check_source(reader, "retain_config", "retain_file", "retain_split", required=reader.get("retain_weight") > 0)
    both = reader.get("retain_logs_path") and reader.get("retain_only_model")
    reader.complain_if(both, "given together with retain_only_model; keep one of them", "retain_logs_path")
    for wording in reader.get("wordings"):
        reader.complain_if("{question}" not in wording, f"{show(wording)} must contain {{question}}", "wordings")
    _check_rewards(reader)
    _check_selection(reader)
    return reader.finish()


def parse_finetune_recipe(argv: list[str]) -> tuple[FinetuneArguments, RunConfig, ModelConfig]:
    """Reads a recipe for supervised fine-tuning; argument and errors are those of [`parse_recipe`]."""
    reader = StrictReader(argv, (FinetuneArguments, RunConfig, ModelConfig), "recipes/phi_finetune.yaml")
    _check_run(reader)
    _check_source(reader, "train_configs", "train_file", "train_split")
    for name in ("save_strategy", "resume_from_checkpoint"):
        reader.complain_if(reader.get(name) not in ("no", None), "only unlearning has checkpoints", name)
    needs = "null is for unlearning; fine-tuning needs the column with the answers"
    reader.complain_if(reader.get("answer_column") is None, needs, "answer_column")
    return reader.finish()


class StrictReader:
    """
    The values that a YAML file and a command line give to dataclasses, where each comes from, and all that is wrong.

    `argv` is the file, then overrides `--key value ...`, or `--help`; the fields of `classes` are the keys. Raises
    [`RecipeError`] where there is no file or no YAML mapping; other problems are kept for [`finish`].
    """

    def __init__(self, argv: list[str], classes: tuple[type, ...], example: str):
        self.classes = classes
        self.keys = {key.name: key for cls in classes for key in fields(cls) if key.init}
        self.hints = {name: hint for cls in classes for name, hint in type_hints(cls).items()}
        self.hints["lora_target_modules"] = list[str] | str | None  # all-linear, or a pattern, as well
        for name, key in self.keys.items():
            if choices := key.metadata.get("choices"):
                self.hints[name] = Literal[tuple(choices)] | None
        self.limits = {name: TRL_LIMITS.get(name) or key.metadata.get("limits") for name, key in self.keys.items()}
        if "-h" in argv or "--help" in argv:
            self._print_help()
            sys.exit(0)
        if not argv or argv[0].startswith("-"):
            raise RecipeError([f"command line: the path of a recipe must come first, such as {example}"])
        self.path = argv[0]
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}  # a line of the file, or the command line
        self.replaced: dict[str, Any] = {}  # what the file says where the command line has another value
        self.broken: set[str] = set()  # keys without a usable value: their defaults stand in
        self.errors: list[str] = []
        entries = self._entries()
        self._read(self._options(argv[1:]))
        self._read(entries)

    def _print_help(self) -> None:
        """Our keys and those of TRL that have limits of ours, each with help, range and default."""
        print(f"usage: {sys.argv[0]} FILE.yaml [--key value ...]\n")
        for name, limits in self.limits.items():
            if limits is not None:
                default = "required" if self.default(name) is MISSING else f"default: {show(self.default(name))}"
                notes = f"{describe(limits)}; {default}" if limits else default
                print(f"  --{name}  {self.keys[name].metadata['help']} ({notes})")
        if ModelConfig in self.classes:
            print("\nThe other keys of TRL's SFTConfig and ModelConfig are accepted as well.")

    def _entries(self) -> list[Entry]:
        published = (read_record(Path(self.path).parent) or {"paths": {}})["paths"]  # a run's recipe leaves paths out

        def read(name: str, node: yaml.Node) -> list[Any]:
            value = construct(node)
            shown, given = published.get(name, (value, value))
            return [given if value == shown else value]

        return [(name, f"{self.path}:{line}", partial(read, name, node)) for name, line, node in read_yaml(self.path)]

    def _options(self, argv: list[str]) -> list[Entry]:
        options: list[tuple[str, list[str]]] = []
        for token in argv:
            if token.startswith("--"):
                name, equals, word = token[2:].partition("=")
                options.append((name, [word] if equals else []))
            elif options:
                options[-1][1].append(token)
            else:
                self.errors.append(f"command line: unexpected {token!r}; overrides are written --key value")
        return [(name, "command line", partial(read_words, words, self.hints.get(name))) for name, words in options]

    def _read(self, entries: list[Entry]) -> None:
        """Takes the values of the command line or, after it, of the file."""
        seen = set()
        for name, origin, read in entries:
            if name not in self.keys:
                self.errors.append(f"{origin}: unknown key {name!r}.{did_you_mean(name, self.keys) or ' See --help'}")
            elif name in seen:
                self.errors.append(f"{origin}: {name!r} is given twice")
            elif name in self.origins:
                with suppress(ValueError, RecursionError):  # an override mends a broken value
                    [self.replaced[name]] = read()
            else:
                self._take(name, origin, read)
            seen.add(name)

    def _take(self, name: str, origin: str, read: Callable[[], list[Any]]) -> None:
        """Keeps the first reading that fits the key; where none fits, the default stays."""
        self.origins[name] = origin
        try:
            readings = read()
            problems = [self._problem(name, reading) for reading in readings]
        except (ValueError, RecursionError) as error:
            readings, problems = [], [one_line(error)]
        if None in problems:
            self.values[name] = readings[problems.index(None)]
        else:
            self.complain(problems[-2:][0], name)  # of several readings, the last is the bare words
            self.broken.add(name)

    def _problem(self, name: str, value: Any) -> str | None:
        if name in REFUSED and value != self.default(name):
            return f"{show(value)} is refused: {REFUSED[name]}"
        if problem := mismatch(value, self.hints[name]):
            return problem
        limits = self.limits[name] or {}
        return None if fits(value, limits) else f"{show(value)} is not {describe(limits)}"

    def default(self, name: str) -> Any:
        key = self.keys[name]
        return key.default if key.default_factory is MISSING else key.default_factory()

    def get(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.default(name)

    def complain(self, problem: str, *names: str) -> None:
        """Adds a problem of the first key, unless it may only follow from a broken one among all the keys."""
        if self.broken.isdisjoint(names):
            self.errors.append(f"{self.origins.get(names[0], self.path)}: {names[0]}: {problem}")

    def complain_if(self, wrong: Any, problem: str, *names: str) -> None:
        if wrong:
            self.complain(problem, *names)

    def is_replaced(self, name: str) -> bool:
        """Whether the command line gives another value than the file, or than the default of one that is silent."""
        before = self.replaced.get(name, self.default(name))
        return self.origins.get(name) == "command line" and self.values.get(name, before) != before

    def finish(self) -> tuple:
        """An instance of each class, or a [`RecipeError`] with every problem."""
        instances = []
        for cls in self.classes:
            try:
                given = {key.name: self.values[key.name] for key in fields(cls) if key.name in self.values}
                instances.append(cls(**given))
            except Exception as error:  # TRL and transformers raise many kinds for values that do not go together
                self.errors.append(f"{self.path}: {one_line(error)}")
        if self.errors:
            raise RecipeError(self.errors)
        instances[0].given = self.values
        return tuple(instances)


def _check_run(reader: StrictReader) -> None:
    get, complain_if = reader.get, reader.complain_if
    no_steps = get("num_train_epochs") <= 0 and get("max_steps") <= 0
    complain_if(no_steps, "must be greater than 0, or else max_steps", "num_train_epochs", "max_steps")
    for name, placeholder in (("prompt_template", "question"), ("completion_template", "answer")):
        template = f"{{{placeholder}}}" if get(name) is None else get(name)
        try:
            parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
        except ValueError:
            parts = []
        expected = f"must contain {{{placeholder}}} once and no other placeholder; {{{{ and }}}} stand for braces"
        complain_if(parts != [(placeholder, "", None)], f"{show(template)} {expected}", name)
    try:
        get_reporting_integration_callbacks(get("report_to"))
    except ValueError as error:
        reader.complain(one_line(error), "report_to")
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)])
        get_scheduler(get("lr_scheduler_type"), optimizer, 0, 1, get("lr_scheduler_kwargs"))
    except (TypeError, ValueError) as error:
        reader.complain(one_line(error), "lr_scheduler_kwargs", "lr_scheduler_type")
    complain_if(get("dtype") == "auto", "say which: float32, bfloat16 or float16", "dtype")
    for name in ("model_name_or_path", "output_dir"):
        complain_if(not get(name), "missing; give it in the recipe or on the command line", name)


def _check_source(reader: StrictReader, config: str, file: str, split: str, required: bool = True) -> None:
    given = [name for name in (config, file) if reader.get(name)]
    if len(given) == 2:
        reader.complain(f"given together with {config}; keep one of them", file, config)
    elif required and not given:
        reader.complain(f"missing; give {config} (with dataset_name) or {file}", config, file)
    elif config in given and not reader.get("dataset_name"):
        reader.complain("needs dataset_name", config, "dataset_name")
    elif given == [file] and reader.get(split) != "train":
        reader.complain(f"a file has no splits; remove it, or give {config}", split, file)


def _check_rewards(reader: StrictReader) -> None:
    get, complain_if = reader.get, reader.complain_if
    funcs, weights = get("reward_funcs"), get("reward_weights")
    complain_if(not funcs, "needs at least one reward", "reward_funcs")
    for name in dict.fromkeys(name for name in funcs if funcs.count(name) > 1):
        reader.complain(f"{name!r} is given twice", "reward_funcs")
    for key, belongs in OF_REWARDS.items():
        of_recipe = get(key) is not None and reader.origins[key] != "command line"
        if of_recipe and any(reader.is_replaced(name) for name in belongs):
            problem = f"{show(get(key))} is for the recipe's {' and '.join(belongs)}"
            reader.complain(f"{problem}; beside others give {key} too, or null", key)
            reader.broken.add(key)
    if weights is not None and len(weights) != len(funcs):
        reader.complain(f"{len(weights)} weights for {len(funcs)} rewards", "reward_weights", "reward_funcs")
    for key in ("reward_kwargs", "reward_floors"):
        if key in reader.values and reader.is_replaced("reward_funcs") and reader.origins[key] != "command line":
            # other rewards were asked for than those of the recipe: what it says of these goes with them
            reader.values[key] = {name: value for name, value in get(key).items() if name in funcs}
        for name in get(key):
            advice = did_you_mean(name, funcs) or f" Remove it, or replace {key} too"
            complain_if(name not in funcs, f"{name!r} is not one of reward_funcs.{advice}", key, "reward_funcs")


def _check_selection(reader: StrictReader) -> None:
    """Keys that would do nothing, or harm, beside each other."""
    get = reader.get
    remembers, solves = get("selection") == "best", get("max_reward") is not None
    table = get("log_completions") and get("report_to") not in ("none", ["none"])
    negative = min(get("reward_weights") or [0]) < 0
    unused = remembers and get("selection_temperature") != PMCConfig.selection_temperature
    for wrong, problem, *keys in [
        (table, "the table shows what is to be forgotten, and services record the console", "log_completions"),
        (get("save_merged") and not get("use_peft"), "needs use_peft", "save_merged", "use_peft"),
        (get("num_selected") > get("num_generations"), "above num_generations", "num_selected", "num_generations"),
        (unused, "is for selection: bradley_terry", "selection_temperature", "selection"),
        (not remembers and get("adaptive_generations"), "needs selection: best", "adaptive_generations", "selection"),
        (solves and not remembers, "needs selection: best, which remembers answers", "max_reward", "selection"),
        (solves and negative, "with a negative weight nothing is ever solved", "max_reward", "reward_weights"),
        (solves and get("normalize_rewards"), "normalized rewards have no maximum", "max_reward"),
    ]:
        reader.complain_if(wrong, problem, *keys)
