"""Reading a recipe: strict, from YAML and command line, with the checks of its values and all problems at once."""

import string
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import partial
from inspect import get_annotations
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from trl import ModelConfig

from pmc_rl.config import EvalArguments, FinetuneArguments, FinetuneConfig, PMCArguments, PMCConfig
from pmc_rl.errors import RecipeError, did_you_mean, one_line, show
from pmc_rl.output import read_record
from pmc_rl.values import construct, default, mismatch, no_choice, read_words, read_yaml

# Keys of TRL that would break the method, be ignored, or are not tested.
REFUSED = {
    name: reason
    for reason, names in {
        "each row is one prompt with one completion": "packing packing_strategy eval_packing padding_free",
        "the loss is NLL on completions": "completion_only_loss assistant_only_loss loss_type label_smoothing_factor",
        "its fused loss would replace the trainer's": "use_liger_kernel",
        "the columns are made from the recipe": "dataset_text_field dataset_kwargs remove_unused_columns",
        "give tokenizer_name_or_path a tokenizer that has it": "chat_template_path eos_token pad_token",
        "use dtype, attn_implementation and the like": "model_init_kwargs",
        "run eval/run.py after training": "do_eval eval_strategy eval_steps eval_on_start load_best_model_at_end",
        "the order of rows follows from seed": "train_sampling_strategy data_seed",
        "lower per_device_train_batch_size instead": "auto_find_batch_size",
        "upload the model yourself after the audit, without private/": "push_to_hub hub_token "
        "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
        "not tested with this trainer": "deepspeed fsdp fsdp_config parallelism_config",
        "a checkpoint needs all of its parts": "save_only_model save_on_each_node ignore_data_skip "
        "restore_callback_states_from_checkpoint",
        "SIGTERM always saves a checkpoint": "enable_jit_checkpoint",
        "code from a model's repository is never run": "trust_remote_code",
        "only needed where weights are sharded": "bnb_4bit_quant_storage",
        "mixtures of experts are not supported": "router_aux_loss_coef",
        "the model is a causal language model": "lora_task_type",
        "all rows are read, by the main process": "dataloader_drop_last dataloader_num_workers",
    }.items()
    for name in names.split()
}

# Values that are for certain rewards, in their order: of the recipe's they say nothing about others.
OF_REWARDS = {"reward_weights": ("reward_funcs",), "max_reward": ("reward_funcs", "reward_weights")}

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: (holds, expected)
    for holds, expected, names in [
        (lambda x: x >= 1, "at least 1", "num_generations max_completion_length lora_r"),
        (lambda x: x == "auto" or x >= 1, "at least 1", "generation_batch_size"),
        (lambda x: 0 <= x < 1, "0 or greater and less than 1", "adam_beta1 adam_beta2"),
        (lambda x: x >= 1, "at least 1", "per_device_train_batch_size gradient_accumulation_steps"),
        (lambda x: x >= 1, "at least 1", "num_selected"),
        (lambda x: x is None or x >= 1, "at least 1", "snapshot_steps"),
        (lambda x: x >= 1, "at least 1", "save_steps"),
        (lambda x: x >= 2, "at least 2 (a kill may leave the last one incomplete)", "save_total_limit"),
        (lambda x: x > 0, "greater than 0", "temperature learning_rate selection_temperature"),
        (lambda x: x >= 0, "0 or greater", "top_k retain_weight num_completions_to_print first_words prefill_words"),
        (lambda x: x >= 1, "at least 1", "attack_samples relearning_steps"),
        (lambda x: x is None or x > 0, "greater than 0", "relearning_learning_rate"),
        (lambda x: 0 < x <= 1, "greater than 0 and at most 1", "top_p"),
        (lambda x: 0 <= x < 1, "0 or greater and less than 1", "retain_holdout"),
        (lambda x: 0 <= x < 2**32, "0 or greater and less than 2**32", "seed"),  # numpy takes no larger seed
    ]
    for name in names.split()
}


def parse_recipe(argv: list[str]) -> tuple[PMCArguments, PMCConfig, ModelConfig, EvalArguments]:
    """
    Reads a recipe for unlearning and its audit.

    Args:
        argv (`list[str]`): the recipe's path, then overrides as on the command line: `--key value ...`.

    Raises:
        RecipeError: with every problem of the recipe and the overrides.
    """
    return _parse(argv, (PMCArguments, PMCConfig, ModelConfig, EvalArguments))


def parse_finetune_recipe(argv: list[str]) -> tuple[FinetuneArguments, FinetuneConfig, ModelConfig]:
    """Reads a recipe for supervised fine-tuning; arguments and errors are those of [`parse_recipe`]."""
    return _parse(argv, (FinetuneArguments, FinetuneConfig, ModelConfig))


def _parse(argv: list[str], classes: tuple[type, ...]) -> tuple:
    reader = StrictReader(argv, classes, "recipes/phi.yaml")
    reader.check_run()
    if PMCArguments in classes:
        reader.check_unlearning()
    else:
        reader.check_finetuning()
    configs = reader.finish()
    configs[0].given = reader.values
    return configs


class StrictReader:
    """
    The values that a YAML file and a command line give to dataclasses, where each comes from, and all that is wrong.

    Args:
        argv (`list[str]`): the file, then overrides `--key value ...`; `--help` prints the keys and exits.
        classes (`tuple[type, ...]`): dataclasses whose fields are the keys.
        example (`str`): such a file, for the message when none is given.

    Raises:
        RecipeError: there is no file, or it is no YAML mapping. Other problems are kept for [`finish`].
    """

    def __init__(self, argv: list[str], classes: tuple[type, ...], example: str):
        if "-h" in argv or "--help" in argv:
            _print_help(classes)
            sys.exit(0)
        if not argv or argv[0].startswith("-"):
            raise RecipeError([f"command line: the path of a recipe must come first, such as {example}"])
        self.path = argv[0]
        self.classes = classes
        # of the recipe of a run: what it leaves out, since it may be published
        self.paths = (read_record(Path(self.path).parent) or {"paths": {}})["paths"]
        self.keys = {key.name: key for cls in classes for key in fields(cls) if key.init}
        self.hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
        self.hints["lora_target_modules"] = list[str] | str | None  # all-linear, or a pattern, as well
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.replaced: dict[str, Any] = {}  # what the recipe says where the command line has another word
        self.broken: set[str] = set()
        self.errors: list[str] = []
        self.read_overrides(argv[1:])
        try:
            self.read_entries(read_yaml(self.path))
        except RecipeError as error:
            raise RecipeError(error.errors + self.errors) from None

    def finish(self) -> tuple:
        """
        An instance of each class.

        Raises:
            RecipeError: with every problem.
        """
        configs = tuple(self.build(cls) for cls in self.classes)
        if self.errors:
            raise RecipeError(self.errors)
        return configs

    def read_overrides(self, argv: list[str]) -> None:
        options: dict[str, list[str]] = {}
        words: list[str] | None = None
        for token in argv:
            if token.startswith("--"):
                name, equals, word = token[2:].partition("=")
                if name in options:
                    self.errors.append(f"command line: {'--' + name!r} is given twice")
                words = options[name] = [word] if equals else []
            elif words is None:
                self.errors.append(f"command line: unexpected {token!r}; overrides are written --key value")
            else:
                words.append(token)
        for name, words in options.items():
            if name in self.keys:
                self.take(name, "command line", partial(read_words, words, self.hints[name]))
            else:
                advice = did_you_mean(name, self.keys, "--") or " See --help"
                self.errors.append(f"command line: unknown option {'--' + name!r}.{advice}")

    def read_entries(self, entries: list[tuple[yaml.Node, yaml.Node]]) -> None:
        first_lines: dict[str, int] = {}
        for key_node, value_node in entries:
            name, line = key_node.value, key_node.start_mark.line + 1
            origin = f"{self.path}:{line}"
            if not isinstance(key_node, yaml.ScalarNode):
                self.errors.append(f"{origin}: a list or a mapping cannot be a key")
            elif name not in self.keys:
                self.errors.append(f"{origin}: unknown key {name!r}.{did_you_mean(name, self.keys) or ' See --help'}")
            elif name in first_lines:
                self.errors.append(f"{origin}: {name!r} is given twice (first at line {first_lines[name]})")
            else:
                first_lines[name] = line
                if name not in self.origins:
                    self.take(name, origin, lambda name=name, node=value_node: [self.as_given(name, construct(node))])
                else:
                    with suppress(ValueError, RecursionError):  # an override mends a broken value
                        self.replaced[name] = self.as_given(name, construct(value_node))

    def as_given(self, name: str, value: Any) -> Any:
        """A value that a run has published, as the run was given it."""
        shown, given = self.paths.get(name, (value, value))
        return given if value == shown else value

    def take(self, name: str, origin: str, read: Callable[[], list]) -> None:
        """Keeps the first reading that fits the field's type; where nothing fits, the default stays."""
        self.origins[name] = origin
        try:
            readings = read()
            problems = [mismatch(reading, self.hints[name]) for reading in readings]
        except (ValueError, RecursionError) as error:
            return self.drop(name, one_line(error))
        if name in REFUSED and default(self.keys[name]) not in readings:
            return self.drop(name, f"{show(readings[0])} is refused: {REFUSED[name]}")
        if None not in problems:
            return self.drop(name, problems[-2:][0])  # of several readings, the last is the bare words
        value = readings[problems.index(None)]
        choices = self.keys[name].metadata.get("choices", ())
        if choices and value is not None and value not in choices:
            return self.drop(name, no_choice(value, choices))
        if name in _RANGES and not _RANGES[name][0](value):
            return self.drop(name, f"{show(value)} is not {_RANGES[name][1]}")
        self.values[name] = value

    def drop(self, name: str, problem: str) -> None:
        self.complain(problem, name)
        self.broken.add(name)

    def complain(self, problem: str, *names: str) -> None:
        """Adds a problem of the first field, unless it may only follow from a dropped one among all the fields."""
        if self.broken.isdisjoint(names):
            self.errors.append(f"{self.origins.get(names[0], self.path)}: {names[0]}: {problem}")

    def get(self, name: str) -> Any:
        return self.values[name] if name in self.values else default(self.keys[name])

    def replaces(self, name: str) -> bool:
        """Whether the command line gives another value than the recipe, or than the default of one that is silent."""
        before = self.replaced.get(name, default(self.keys[name]))
        return self.origins.get(name) == "command line" and self.values.get(name, before) != before

    def check_run(self) -> None:
        if self.get("num_train_epochs") <= 0 and self.get("max_steps") <= 0:
            self.complain("must be greater than 0, or else max_steps", "num_train_epochs", "max_steps")
        for name, placeholder in (("prompt_template", "question"), ("completion_template", "answer")):
            try:
                template = f"{{{placeholder}}}" if self.get(name) is None else self.get(name)
                parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
            except ValueError:
                parts = []
            if parts != [(placeholder, "", None)]:
                expected = f"contain {{{placeholder}}} once and no other placeholder; {{{{ and }}}} stand for braces"
                self.complain(f"{show(self.get(name))} must {expected}", name)
        try:
            get_reporting_integration_callbacks(self.get("report_to"))
        except ValueError as error:
            self.complain(one_line(error), "report_to")
        try:
            get_scheduler(
                self.get("lr_scheduler_type"),
                torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
                num_warmup_steps=0,
                num_training_steps=1,
                scheduler_specific_kwargs=self.get("lr_scheduler_kwargs"),
            )
        except (TypeError, ValueError) as error:
            self.complain(one_line(error), "lr_scheduler_kwargs", "lr_scheduler_type")
        if self.get("load_in_4bit") and self.get("load_in_8bit"):
            self.complain("keep one of the two", "load_in_4bit", "load_in_8bit")
        if self.get("dtype") == "auto":
            self.complain("say which: float32, bfloat16 or float16", "dtype")
        for name in ("model_name_or_path", "output_dir"):
            if not self.get(name):
                self.complain("missing; give it in the recipe or on the command line", name)

    def check_source(self, config: str, file: str, split: str, required: bool = True) -> None:
        given = [name for name in (config, file) if self.get(name)]
        if len(given) == 2:
            self.complain(f"given together with {config}; keep one of them", file, config)
        elif required and not given:
            self.complain(f"missing; give {config} (with dataset_name) or {file}", config, file)
        elif config in given and not self.get("dataset_name"):
            self.complain("needs dataset_name", config, "dataset_name")
        elif given == [file] and self.get(split) != "train":
            self.complain(f"a file has no splits; remove it, or give {config}", split, file)

    def check_unlearning(self) -> None:
        self.check_source("forget_config", "forget_file", "forget_split")
        self.check_source("retain_config", "retain_file", "retain_split", required=self.get("retain_weight") > 0)
        funcs, weights = self.get("reward_funcs"), self.get("reward_weights")
        if not funcs:
            self.complain("needs at least one reward", "reward_funcs")
        for name in dict.fromkeys(name for name in funcs if funcs.count(name) > 1):
            self.complain(f"{name!r} is given twice", "reward_funcs")
        for key, belongs in OF_REWARDS.items():
            inherited = self.get(key) is not None and self.origins[key] != "command line"
            if inherited and any(self.replaces(name) for name in belongs):
                problem = f"{show(self.get(key))} is for the recipe's {' and '.join(belongs)}"
                self.complain(f"{problem}; beside others give {key} too, or null", key)
                self.broken.add(key)
        if weights is not None and len(weights) != len(funcs):
            self.complain(f"{len(weights)} weights for {len(funcs)} rewards", "reward_weights", "reward_funcs")
        if self.get("log_completions") and self.get("report_to") not in ("none", ["none"]):
            self.complain(
                "the table shows what is to be forgotten, and services record the console", "log_completions"
            )
        for key in ("reward_kwargs", "reward_floors"):
            if key in self.values and self.replaces("reward_funcs") and self.origins[key] != "command line":
                # other rewards were asked for than those of the recipe: what it says of these goes with them
                self.values[key] = {name: value for name, value in self.get(key).items() if name in funcs}
            for name in self.get(key):
                if name not in funcs:
                    advice = did_you_mean(name, funcs) or f" Remove it, or replace {key} too"
                    self.complain(f"{name!r} is not one of reward_funcs.{advice}", key, "reward_funcs")
        if self.get("save_merged") and not self.get("use_peft"):
            self.complain("there is no adapter to merge without use_peft", "save_merged", "use_peft")
        self.check_selection()

    def check_selection(self) -> None:
        """Keys that would do nothing beside each other."""
        if self.get("num_selected") > self.get("num_generations"):
            self.complain("greater than num_generations", "num_selected", "num_generations")
        if self.get("selection") == "best" and self.get("selection_temperature") != PMCConfig.selection_temperature:
            self.complain("is for selection: bradley_terry", "selection_temperature", "selection")
        if self.get("selection") == "bradley_terry":
            for name in ("adaptive_generations", "max_reward"):
                if self.get(name):
                    self.complain("needs selection: best, which remembers answers", name, "selection")
        if min(self.get("reward_weights") or [0]) < 0 and self.get("max_reward") is not None:
            self.complain("with a negative weight nothing is ever solved", "max_reward", "reward_weights")
        if self.get("normalize_rewards") and self.get("max_reward") is not None:
            self.complain("normalized rewards have no maximum, so nothing is ever solved", "max_reward")

    def check_finetuning(self) -> None:
        self.check_source("train_configs", "train_file", "train_split")
        for name in ("save_strategy", "resume_from_checkpoint"):
            if self.get(name) not in ("no", None):
                self.complain("only unlearning has checkpoints", name)
        if self.get("answer_column") is None:
            self.complain("null is for unlearning; fine-tuning needs the column with the answers", "answer_column")

    def build(self, cls: type) -> Any:
        try:
            return cls(**{key.name: self.values[key.name] for key in fields(cls) if key.name in self.values})
        except Exception as error:  # TRL and transformers raise many kinds for values that do not go together
            self.errors.append(f"{self.path}: {one_line(error)}")


def _print_help(classes: tuple[type, ...]) -> None:
    own_classes = [
        base for cls in classes for base in cls.__mro__ if base.__module__.split(".")[0] in ("pmc_rl", "eval")
    ]
    own = {name for cls in own_classes for name in get_annotations(cls)}
    launcher = "accelerate launch" if ModelConfig in classes else "python"
    print(f"usage: {launcher} {sys.argv[0]} FILE.yaml [--key value ...]\n")
    for key in (key for cls in classes for key in fields(cls) if key.init and key.name in own):
        value = default(key)
        print(
            f"  --{key.name}  {key.metadata['help']} ({'required' if value is MISSING else f'default: {show(value)}'})"
        )
    if ModelConfig in classes:
        print("\nThe keys of TRL's SFTConfig and ModelConfig are accepted as well.")
