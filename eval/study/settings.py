"""The settings of a study: a key a dataclass field, read and checked before anything is launched."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from itertools import product
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from eval.study.results import NUMBERS
from pmc_rl.config import Attack, DataArguments, setting
from pmc_rl.errors import RecipeError, did_you_mean, show
from pmc_rl.recipe import OF_REWARDS, StrictReader

# what a study gives its runs and audits itself
GIVEN = {"output_dir", "seed", "overwrite", "log_completions"}
GIVEN |= {"retain_only_model", "also", "attacks", "attack_samples"}
# what all runs of a seed have in common, since they are compared with the same models
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
    setup: list[str] = setting([], "Lines of a Python script and its arguments, run once before all else.")
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
    search_trials: int = setting(12, "Runs of the search, all of the first seed.", at_least=1)
    objectives: dict[str, Literal["maximize", "minimize"]] = setting(
        {"unlearn_quality": "maximize", "utility": "maximize", "worst_leakage": "minimize"}, "What the search is for."
    )
    attacks: list[Attack] = setting(["sampling", "prefilling"], "Attacks of the audit.")
    attack_samples: int = setting(25, "Answers a question that the attacks draw.", at_least=1)
    parallel_runs: int = setting(1, "Trials at the same time; their seconds are then no measurements.", at_least=1)


@dataclass(frozen=True)
class Run:
    """One trial of a study: a training with its audit."""

    name: str
    seed: int
    overrides: dict[str, Any]

    @property
    def folder(self) -> str:
        """Below the study's folder."""
        return f"seed{self.seed}/{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.name)}"

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
    """Keys and what is wrong with their values, together with others."""
    for key in ("variants", "seeds", "objectives"):
        if not getattr(study, key):
            yield key, "empty"
    yield from (("grid", f"{key}: no value") for key, values in study.grid.items() if not values)
    for name in study.objectives:
        if name not in NUMBERS:
            yield "objectives", f"{name!r} is no number of a study.{did_you_mean(name, NUMBERS)}"
    for key in ("finetune", "retain_only"):
        if getattr(study, key) and study.finetune_recipe is None:
            yield key, "needs finetune_recipe, whose overrides these are"
    if study.retain_only is not None and study.retain_only_model is not None:
        yield "retain_only_model", "given together with retain_only; keep one of them"
    if study.finetune_recipe is not None and "model_name_or_path" in study.overrides:
        yield "overrides", "model_name_or_path: finetune_recipe makes the model; remove one of them"
    for key in ("finetune", "retain_only", "overrides", "grid", "search"):
        yield from ((key, line) for line in _misplaced(study, key, getattr(study, key) or {}))
    for name, overrides in study.variants.items():
        yield from (("variants", f"{name}: {line}") for line in _misplaced(study, "variants", overrides))

    runs = grid_runs(study)
    folders, names = [run.folder for run in runs], dict.fromkeys(run.name for run in runs)
    for name in study.variants:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name in TAKEN or name.startswith(("control_", "search_")):
            yield "variants", f"{name!r} cannot be the name of a folder here; choose another one"
    for folder in {folder for folder in folders if folders.count(folder) > 1}:
        yield "variants", f"{folder!r} would be the folder of two runs; choose other names, values or seeds"
    if study.controls_of not in (None, *names):
        yield "controls_of", f"{study.controls_of!r} is none of {', '.join(names)}"
    for name, given in ranges(study.search).items():
        try:
            distribution(given)
        except (KeyError, TypeError, ValueError) as error:
            yield "search", f"{name}: {show(given)} is neither {{low, high}} (and log) nor {{choices}}: {error}"
    if study.search and not ranges(study.search):
        yield "search", "holds no range such as {low: 1.0e-5, high: 1.0e-3, log: true}"


def _misplaced(study: StudySettings, key: str, overrides: dict) -> Iterator[str]:
    """What overrides under a key of the study must not give, or must not leave as it is."""
    of_some_runs = key in ("variants", "grid", "search")
    for word in overrides:
        if word in GIVEN:
            yield f"{word}: the study gives it itself"
        elif of_some_runs and word in COMMON:
            yield f"{word}: all runs are compared with the same models, so it belongs into overrides"
        elif key == "variants" and word in study.grid:
            yield f"{word}: grid gives it as well"
    for word, belongs in OF_REWARDS.items() if of_some_runs else ():
        inherited = study.overrides.get(word) is not None and word not in {*overrides, *study.grid}
        if inherited and any(name in overrides and overrides[name] != study.overrides.get(name) for name in belongs):
            yield f"{word} of overrides is for other rewards; give {word} here too, or null"


def grid_runs(study: StudySettings) -> list[Run]:
    """Each variant with each combination of the grid's values, for each seed."""
    runs = []
    for seed, (name, overrides) in product(study.seeds, study.variants.items()):
        for places in product(*(range(len(values)) for values in study.grid.values())):
            values = {key: study.grid[key][place] for key, place in zip(study.grid, places, strict=True)}
            # a list or mapping would be a long name: its number in place of it
            labels = [
                f"{key}=no.{place + 1}" if isinstance(value, list | dict) else f"{key}={value}"
                for (key, value), place in zip(values.items(), places, strict=True)
            ]
            runs.append(Run(" ".join([name, *labels]), seed, overrides | values))
    return runs


def values_of(given: dict) -> list[Any]:
    """All choices of a range, as JSON, or its lowest and its highest value."""
    return [json.dumps(choice) for choice in given["choices"]] if "choices" in given else [given["low"], given["high"]]


def distribution(given: dict) -> BaseDistribution:
    """Of a range: {low, high} of whole numbers gives whole numbers, {choices} one of them, as JSON."""
    if "choices" in given:
        return CategoricalDistribution(values_of(given))
    whole = type(given["low"]) is type(given["high"]) is int
    return (IntDistribution if whole else FloatDistribution)(**given)


def ranges(search: dict) -> dict[str, dict]:
    """The ranges inside of `search` by their dotted names: what is to be found."""
    found: dict[str, dict] = {}
    _map_ranges(search, found.setdefault)
    return found


def replace_ranges(search: dict, found: dict[str, Any]) -> dict:
    """`search` with the values that were found, by the dotted names of [`ranges`], in place of its ranges."""
    return _map_ranges(search, lambda name, given: json.loads(found[name]) if "choices" in given else found[name])


def _map_ranges(value: Any, function: Callable[[str, dict], Any], name: str = "") -> Any:
    if isinstance(value, dict) and value and name and value.keys() <= RANGE:
        return function(name, value)
    if isinstance(value, dict):
        return {key: _map_ranges(item, function, f"{name}.{key}" if name else key) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_ranges(item, function, f"{name}.{i}") for i, item in enumerate(value)]
    return value
