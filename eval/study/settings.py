"""The settings of a study: a key a dataclass field, read and checked before anything is launched."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, Literal

from eval.study.results import NUMBERS
from pmc_rl.config import DataArguments, setting
from pmc_rl.errors import RecipeError, did_you_mean, nearest_path, show
from pmc_rl.reading import listed
from pmc_rl.recipe import OF_REWARDS, StrictReader, parse_finetune_recipe, parse_recipe
from pmc_rl.scoring import load_reward_functions, maximal_reward

# what a study gives its runs and audits itself
OWN = {"output_dir", "seed", "overwrite", "log_completions", "retain_only_model", "also", "attacks", "attack_samples"}
# what all runs of a seed have in common, since they are told against the same models
COMMON = {"model_name_or_path", "model_revision", *(key.name for key in fields(DataArguments))}
COMMON |= {f"{rows}_{source}" for rows in ("forget", "retain") for source in ("config", "split", "file")}
COMMON |= {"retain_question_column", "retain_answer_column", "retain_holdout", "use_cpu"}
TAKEN = {"before", "after", "retain_only", "finetuned", "private"}  # columns of an audit, folders of a seed
RANGE = {"low", "high", "log", "choices"}  # what makes a mapping of `search` a range


@dataclass
class StudySettings:
    """The keys of a study. In all texts {output_dir} and {seed} are filled in; paths start at the repository."""

    recipe: str = setting(MISSING, "Recipe of the runs to compare.")
    output_dir: str = setting(MISSING, "Folder of the study.")
    variants: dict[str, dict[str, Any]] = setting(
        MISSING, "Overrides of the recipe by name; the first is the baseline."
    )
    question: str = setting("", "What the study asks, for its page.")
    seeds: list[int] = setting([0], "Everything is made once for each.")
    setup: list[str] = setting([], "Python scripts with their arguments, run once before all else.")
    finetune_recipe: str | None = setting(None, "Makes the model of each seed; null: the recipe's model.")
    finetune: dict[str, Any] = setting({}, "Overrides of finetune_recipe.")
    retain_only: dict[str, Any] | None = setting(None, "Further overrides, which make the retain-only model.")
    retain_only_model: str | None = setting(None, "A retain-only model that exists.")
    overrides: dict[str, Any] = setting({}, "Overrides of the recipe for all runs.")
    grid: dict[str, list[Any]] = setting({}, "Each variant is run with each combination of these values.")
    controls: list[Literal["refusals", "retain_only"]] = setting([], "Baselines without collapse, see control.py.")
    controls_of: str | None = setting(None, "The run they are matched to; null: the first.")
    search: dict[str, Any] = setting(
        {}, "Overrides of the recipe in which {low, high, log} or {choices} stand for values to be found."
    )
    search_trials: int = setting(12, "Runs of the search, all of the first seed.")
    objectives: dict[str, Literal["maximize", "minimize"]] = setting(
        {"unlearn_quality": "maximize", "utility": "maximize", "worst_leakage": "minimize"}, "What the search is for."
    )
    attacks: list[Literal["sampling", "prefilling", "options", "token_shift", "relearning", "quantization"]] = setting(
        ["sampling", "prefilling"], "Attacks of the audit."
    )
    attack_samples: int = setting(25, "Answers a question that the attacks draw.")
    parallel_runs: int = setting(1, "Trials at the same time; their seconds are then no measurements.")


@dataclass(frozen=True)
class Run:
    """One trial of a study: a training with its audit."""

    name: str
    seed: int
    overrides: dict[str, Any]

    @property
    def folder(self) -> str:
        """Below the study's folder."""
        return f"seed{self.seed}/{slug(self.name)}"

    @property
    def searched(self) -> bool:
        """Whether it is of the search."""
        return self.name.startswith("search_")


def parse_study(argv: list[str]) -> StudySettings:
    """
    Reads a study: its file, then `--key value ...`.

    Raises:
        RecipeError: with every problem of the file and the command line.
    """
    reader = StrictReader(argv, (StudySettings,), "recipes/studies/guidance_quickstart.yaml")
    for key in fields(StudySettings):
        if reader.get(key.name) is MISSING:
            reader.complain("missing", key.name)
    if not reader.errors:
        (study,) = reader.finish()
        for name, problem in _problems(study):
            reader.complain(problem, name)
    if reader.errors:
        raise RecipeError(reader.errors)
    return study


def _problems(study: StudySettings) -> Iterator[tuple[str, str]]:
    for key in ("variants", "seeds", "objectives"):
        if not getattr(study, key):
            yield key, "empty"
    for name in study.objectives:
        if name not in NUMBERS:
            yield "objectives", f"{name!r} is no number of a study.{did_you_mean(name, NUMBERS)}"
    for key, values in study.grid.items():
        if not values:
            yield "grid", f"{key}: no value"
    for key in ("parallel_runs", "attack_samples", "search_trials"):
        if getattr(study, key) < 1:
            yield key, f"{getattr(study, key)} is not at least 1"
    if len(set(study.seeds)) < len(study.seeds):
        yield "seeds", "a seed is given twice"
    for line in study.setup:
        try:
            problem = "" if shlex.split(line) else "an empty line; write a script's path and its arguments"
        except ValueError as error:
            problem = f"{line!r}: {error}"
        if problem:
            yield "setup", problem
    for key in ("finetune", "retain_only"):
        if getattr(study, key) and study.finetune_recipe is None:
            yield key, "needs finetune_recipe, whose overrides these are"
    if study.retain_only is not None and study.retain_only_model is not None:
        yield "retain_only_model", "given together with retain_only; keep one of them"
    if study.finetune_recipe is not None and "model_name_or_path" in study.overrides:
        yield "overrides", "model_name_or_path: finetune_recipe makes the model; remove one of them"
    groups = [("finetune", "", study.finetune), ("retain_only", "", study.retain_only or {})]
    groups += [("overrides", "", study.overrides), ("grid", "", study.grid), ("search", "", study.search)]
    groups += [("variants", f"{name}: ", own) for name, own in study.variants.items()]
    for key, label, own in groups:
        for word in own:
            if word in OWN:
                yield key, f"{label}{word}: the study gives it itself"
            elif key in ("variants", "grid", "search") and word in COMMON:
                yield key, f"{label}{word}: all runs are told against the same models, so it belongs into overrides"
            elif label and word in study.grid:
                yield key, f"{label}{word}: grid gives it as well"
        for word, belongs in OF_REWARDS.items() if key in ("variants", "grid", "search") else ():
            inherited = study.overrides.get(word) is not None and word not in {*own, *study.grid}
            if inherited and any(given in own and own[given] != study.overrides.get(given) for given in belongs):
                yield key, f"{label}{word} of overrides is for other rewards; give {word} here too, or null"
    names = [run.name for run in grid_runs(study) if run.seed == study.seeds[0]]
    for name in names:
        if not slug(name) or slug(name) in TAKEN or slug(name).startswith(("control_", "search_")):
            yield "variants", f"{name!r} cannot be the name of a folder here; choose another one"
        elif [slug(other) for other in names].count(slug(name)) > 1:
            yield "variants", f"{name!r} and another run are both {slug(name)!r} as a folder; choose another name"
    if study.controls_of not in (None, *names):
        yield "controls_of", f"{study.controls_of!r} is none of {', '.join(names)}"
    for name, own in ranges(study.search):
        whole = own.keys() == {"choices"} and isinstance(own["choices"], list) and own["choices"]
        numbers = [own.get(key) for key in ("low", "high")]
        if not whole and not ("choices" not in own and all(type(x) in (int, float) for x in numbers)):
            yield "search", f"{name}: {show(own)} is neither {{low, high}} (and log) nor {{choices}}"
        elif not whole and (numbers[0] > numbers[1] or own.get("log") and numbers[0] <= 0):
            yield "search", f"{name}: low must not be above high, and be above 0 with log"
    if study.search and not any(ranges(study.search)):
        yield "search", "holds no range such as {low: 1.0e-5, high: 1.0e-3, log: true}"


def grid_runs(study: StudySettings) -> list[Run]:
    """Each variant with each combination of the grid's values, for each seed."""
    runs = []
    for seed, (name, own) in product(study.seeds, study.variants.items()):
        for choice in product(*(range(len(values)) for values in study.grid.values())):
            picked = {key: study.grid[key][i] for key, i in zip(study.grid, choice, strict=True)}
            words = [f"{key}={_label(value, i)}" for (key, value), i in zip(picked.items(), choice, strict=True)]
            runs.append(Run(" ".join([name, *words]), seed, own | picked))
    return runs


def _label(value: Any, i: int) -> str:
    """The value itself, or the number of a list or mapping, which would be a long name."""
    if isinstance(value, list | dict):
        return f"no.{i + 1}"
    return value if isinstance(value, str) else json.dumps(value)


def ranges(value: Any, name: str = "") -> Iterator[tuple[str, dict]]:
    """The ranges inside of `search` with their dotted names: what is to be found."""
    if isinstance(value, dict) and value and name and value.keys() <= RANGE:
        yield name, value
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from ranges(item, f"{name}.{key}" if name else key)


def replace_ranges(value: Any, found: dict[str, Any], name: str = "") -> Any:
    """`search` with the values that were found, by the dotted names of [`ranges`], in place of its ranges."""
    if name in found:
        return found[name]
    if isinstance(value, dict):
        return {key: replace_ranges(item, found, f"{name}.{key}" if name else key) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_ranges(item, found, f"{name}.{i}") for i, item in enumerate(value)]
    return value


def slug(name: str) -> str:
    """A name for a folder and for a column of an audit, where `=` ends the name: letters, digits and `. + - _`."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("._")


def fill(value: Any, study: StudySettings, seed: int | None) -> Any:
    """{output_dir} and {seed} in all texts of a value; other braces stay, they are of templates."""
    if isinstance(value, str):
        value = value.replace("{output_dir}", study.output_dir)
        return value if seed is None else value.replace("{seed}", str(seed))
    if isinstance(value, list):
        return [fill(item, study, seed) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, study, seed) for key, item in value.items()}
    return value


def option_words(overrides: dict[str, Any]) -> list[str]:
    """Overrides as a recipe's command line reads them back: texts as they are, all else as JSON."""
    words = []
    for key, value in overrides.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


def model_overrides(study: StudySettings, seed: int) -> dict[str, dict[str, Any]]:
    """What finetune.py is told for the models of a seed: the one with something to forget, and the retain-only one."""
    if study.finetune_recipe is None:
        return {}
    own = {"finetuned": {}} | ({} if study.retain_only is None else {"retain_only": study.retain_only})
    place = {name: {"output_dir": f"{study.output_dir}/seed{seed}/{name}", "seed": seed} for name in own}
    return {name: place[name] | fill(study.finetune | further, study, seed) for name, further in own.items()}


def run_overrides(study: StudySettings, run: Run) -> dict[str, Any]:
    """What train.py is told for one run."""
    overrides = {"output_dir": f"{study.output_dir}/{run.folder}", "seed": run.seed}
    overrides |= fill(study.overrides | run.overrides, study, run.seed)
    if study.finetune_recipe is not None:
        overrides["model_name_or_path"] = f"{study.output_dir}/seed{run.seed}/finetuned"
    return overrides | {"log_completions": False}  # the table would stand in the log


def check_study(study: StudySettings, path: str, root: Path) -> dict[str, dict]:
    """
    Parses the recipe of every training, the ends of all ranges included, and looks for what they name.

    Args:
        path (`str`): the study's file, for the messages.
        root (`Path`): the repository, where paths start.

    Returns:
        the values given, by the folder of each run of the grid.

    Raises:
        RecipeError: every problem once, with the runs it is of.
    """
    runs = grid_runs(study)
    for end in ("low", "high") if study.search else ():
        found = {
            name: own["choices"][-(end == "high")] if "choices" in own else own[end]
            for name, own in ranges(study.search)
        }
        runs.append(Run(f"search_{end}", study.seeds[0], replace_ranges(study.search, found)))
    jobs = [(run.name, parse_recipe, study.recipe, run_overrides(study, run)) for run in runs]
    jobs += [
        (name, parse_finetune_recipe, study.finetune_recipe, own)
        for seed in study.seeds
        for name, own in model_overrides(study, seed).items()
    ]
    problems: dict[str, dict[str, None]] = {}
    settings = []
    for name, parse, recipe, overrides in jobs:
        given = {}
        try:
            given = parse([str(root / recipe), *option_words(overrides)])[0].given
            lines = _missing_paths(study, given, root) + _broken_rewards(given)
        except RecipeError as error:
            lines = [line.removeprefix("command line: ") for line in error.errors]
        settings.append(given)
        for line in lines:
            problems.setdefault(line, {})[name] = None
    scripts = [shlex.split(fill(line, study, None))[0] for line in study.setup]
    for script in scripts:
        if not (root / script).is_file():
            problems[f"setup: there is no {script!r} in {str(root)!r}{nearest_path(root / script)}"] = {}
    if problems:
        every = {name for name, *_ in jobs}
        owners = {line: "" if every <= own.keys() else f"{', '.join(own)}: " for line, own in problems.items()}
        raise RecipeError([f"{path}: {owner if problems[line] else ''}{line}" for line, owner in owners.items()])
    return {run.folder: given for run, given in zip(runs, settings, strict=False)}


def _missing_paths(study: StudySettings, given: dict, root: Path) -> list[str]:
    keys = ("model_name_or_path", "tokenizer_name_or_path", "dataset_name", "forget_file", "retain_file", "train_file")
    places = [(key, place) for key in keys for place in listed(given.get(key)) if place]
    made_here = f"{study.output_dir}/"
    return [
        f"{key}: there is no {place!r} in {str(root)!r}{nearest_path(root / place)}"
        for key, place in places
        # a name on the Hub is a word or OWNER/NAME
        if (key.endswith("_file") or place.startswith(("/", ".")) or place.count("/") > 1)
        and not place.startswith(made_here)
        and not (root / place).exists()
    ]


def _broken_rewards(given: dict) -> list[str]:
    names = [name for name in given.get("reward_funcs", []) if "/" not in name]  # not the models: they take time
    length, columns = given.get("max_completion_length", 1), given.get("reward_columns", [])
    try:
        rewards = load_reward_functions(names, given.get("reward_kwargs", {}), None, length, reward_columns=columns)
        maximal_reward(rewards, given.get("max_reward"))
    except RecipeError as error:
        return error.errors
    return []
