"""The settings of a study: a key a dataclass field, strictly read from YAML and command line, and checked."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from itertools import product
from typing import Any, Literal, get_type_hints

import yaml

from pmc_rl.config import DataArguments, setting
from pmc_rl.recipe import OF_REWARDS
from pmc_rl.values import RecipeError, construct, default, did_you_mean, mismatch, one_line, read_words, read_yaml

ON_COMMAND_LINE = ("output_dir", "seeds", "parallel_runs")
# what a study gives its runs and audits itself
OWN = {"output_dir", "seed", "overwrite", "log_completions", "snapshot_steps"}
OWN |= {"retain_only_model", "also", "attacks", "attack_samples"}
# what all runs of a seed have in common, since one audit asks all of them alike
COMMON = {"model_name_or_path", "model_revision", *(key.name for key in fields(DataArguments))}
COMMON |= {f"{rows}_{source}" for rows in ("forget", "retain") for source in ("config", "split", "file")}
COMMON |= {"retain_question_column", "retain_answer_column", "retain_holdout", "use_cpu"}
TAKEN = {"before", "after", "retain_only", "finetuned", "audit"}  # columns of an audit, folders of a seed


@dataclass
class Study:
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
    axes: dict[str, list[Any]] = setting({}, "Each variant is run with each combination of these values.")
    controls: list[Literal["refusals", "retain_only"]] = setting([], "Baselines without collapse, see control.py.")
    controls_of: str | None = setting(None, "The run they are matched to; null: the first.")
    snapshot_steps: int | None = setting(None, "Audit the runs of the first seed every so many steps.")
    attacks: list[Literal["sampling", "prefilling", "options", "token_shift", "relearning", "quantization"]] = setting(
        ["sampling", "prefilling"], "Attacks of the audit."
    )
    attack_samples: int = setting(25, "Answers a question that the attacks draw.")
    parallel_runs: int = setting(1, "Runs at the same time; times are then no measurements.")


def parse_study(argv: list[str]) -> Study:
    """
    Reads a study: its file, then `--key value ...` for `output_dir`, `seeds` and `parallel_runs`.

    Raises:
        RecipeError: with every problem of the file and the command line.
    """
    if not argv or argv[0].startswith("-"):
        raise RecipeError(["command line: a study's file must come first: recipes/studies/guidance_quickstart.yaml"])
    path, hints, keys = argv[0], get_type_hints(Study), [key.name for key in fields(Study)]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    options, errors = _split_options(argv[1:])

    def take(name: str, origin: str, read: Callable[[], list]) -> None:
        origins[name] = origin
        try:
            readings = read()
            problems = [mismatch(reading, hints[name]) for reading in readings]
        except (ValueError, RecursionError) as error:
            problems, readings = [one_line(error)], []
        if None in problems:
            values[name] = readings[problems.index(None)]
        else:
            errors.append(f"{origin}: {name}: {problems[0]}")

    for name, words in options.items():
        if name in ON_COMMAND_LINE:
            take(name, "command line", partial(read_words, words, hints[name]))
        else:
            advice = did_you_mean(name, ON_COMMAND_LINE, "--") or f" It takes {', '.join(ON_COMMAND_LINE)}"
            errors.append(f"command line: unknown option {'--' + name!r}.{advice}")
    lines: dict[str, int] = {}
    for key_node, value_node in read_yaml(path):
        name, line = key_node.value, key_node.start_mark.line + 1
        origin = f"{path}:{line}"
        if not isinstance(key_node, yaml.ScalarNode):
            errors.append(f"{origin}: a list or a mapping cannot be a key")
        elif name not in keys:
            errors.append(f"{origin}: unknown key {name!r}.{did_you_mean(name, keys) or ' See --help'}")
        elif name in lines:
            errors.append(f"{origin}: {name!r} is given twice (first at line {lines[name]})")
        else:
            lines[name] = line
            if name not in origins:  # else the command line replaces it
                take(name, origin, lambda node=value_node: [construct(node)])
    given = {key.name: values[key.name] if key.name in values else default(key) for key in fields(Study)}
    errors += [f"{path}: {name}: missing" for name in keys if given[name] is MISSING and name not in origins]
    if set(origins) == set(values) and MISSING not in given.values():  # else it may only follow from the above
        errors += [f"{origins.get(name, path)}: {name}: {problem}" for name, problem in problems_of(Study(**given))]
    if errors:
        raise RecipeError(errors)
    return Study(**given)


def _split_options(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """`--key value ...` by key, and what is wrong with it."""
    options: dict[str, list[str]] = {}
    errors = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name in options:
                errors.append(f"command line: {'--' + name!r} is given twice")
            options[name] = [value] if equals else []
        elif not options:
            errors.append(f"command line: unexpected {word!r}; overrides are written --key value")
        else:
            options[list(options)[-1]].append(word)
    return options, errors


def problems_of(study: Study) -> list[tuple[str, str]]:
    """What does not go together, as (key, problem)."""
    found = [(key, "must not be empty") for key in ("variants", "seeds") if not getattr(study, key)]
    found += [("axes", f"{key!r} has no values") for key, values in study.axes.items() if not values]
    for key in ("parallel_runs", "attack_samples", "snapshot_steps"):
        if getattr(study, key) is not None and getattr(study, key) < 1:
            found.append((key, f"{getattr(study, key)} is not at least 1"))
    for key in ("seeds", "controls"):
        if len(set(getattr(study, key))) < len(getattr(study, key)):
            found.append((key, "one is given twice"))
    for line in study.setup:
        try:
            if not shlex.split(line):
                found.append(("setup", "an empty line; write a script's path and its arguments"))
        except ValueError as error:
            found.append(("setup", f"{line!r}: {one_line(error)}"))
    for key in ("finetune", "retain_only"):
        if getattr(study, key) and study.finetune_recipe is None:
            found.append((key, "needs finetune_recipe, whose overrides these are"))
    if study.retain_only is not None and study.retain_only_model is not None:
        found.append(("retain_only_model", "given together with retain_only; keep one of them"))
    if study.finetune_recipe is not None and "model_name_or_path" in study.overrides:
        found.append(("overrides", "model_name_or_path: finetune_recipe makes the model; remove one of them"))
    sources = {"finetune": study.finetune, "retain_only": study.retain_only or {}, "overrides": study.overrides}
    sources |= {"axes": study.axes} | {f"variants: {name}": own for name, own in study.variants.items()}
    for source, own in sources.items():
        key, _, name = source.partition(": ")
        label = f"{name}: " if name else ""
        found += [(key, f"{label}{word}: the study gives it itself") for word in own if word in OWN]
        if key in ("variants", "axes"):
            problem = "one audit asks all runs alike, so it belongs into overrides"
            found += [(key, f"{label}{word}: {problem}") for word in own if word in COMMON]
            found += [(key, f"{label}{word}: axes give it as well") for word in own if name and word in study.axes]
            for word, belongs in OF_REWARDS.items():
                inherited = study.overrides.get(word) is not None and word not in {*own, *study.axes}
                if inherited and any(given in own and own[given] != study.overrides.get(given) for given in belongs):
                    problem = f"{word} of overrides is for other rewards; give {word} here too, or null"
                    found.append((key, label + problem))
    if not any(key == "axes" for key, _ in found):
        found += _problems_of_names(study)
    return found


def _problems_of_names(study: Study) -> list[tuple[str, str]]:
    runs = expand(study.variants, study.axes)
    folders = [slug(name) for name in runs]
    found = [
        ("variants", f"{name!r} is taken; choose another name")
        for name in runs
        if slug(name) in TAKEN or slug(name).startswith(("control_", "course_"))
    ]
    found += [("variants", f"{name!r}: a name needs a letter or a digit") for name in runs if not slug(name)]
    found += [
        ("variants", f"{name!r} and another run are both {slug(name)!r} as a folder; choose another name")
        for name in runs
        if slug(name) and folders.count(slug(name)) > 1
    ]
    if study.controls_of is not None and study.controls_of not in runs:
        found.append(("controls_of", f"{study.controls_of!r} is none of {', '.join(runs)}"))
    return found


def expand(variants: dict[str, dict], axes: dict[str, list]) -> dict[str, dict]:
    """Each variant with each combination of the axes' values: name of the run -> its overrides."""
    runs = {}
    for name, own in variants.items():
        for choice in product(*(range(len(values)) for values in axes.values())):
            words = [f"{key}={_axis_label(axes[key], i)}" for key, i in zip(axes, choice, strict=True)]
            runs[" ".join([name, *words])] = own | {key: axes[key][i] for key, i in zip(axes, choice, strict=True)}
    return runs


def _axis_label(values: list, i: int) -> str:
    """The value itself, or the number of a list or mapping, which would be a long name."""
    if isinstance(values[i], list | dict):
        return f"no.{i + 1}"
    return values[i] if isinstance(values[i], str) else json.dumps(values[i])


def slug(name: str) -> str:
    """A name for a folder and for a column of an audit, where `=` ends the name: letters, digits and `. + - _`."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("._")


def usage() -> str:
    """The keys of a study with their help."""
    lines = [f"  {key.name}  {key.metadata['help']}" for key in fields(Study)]
    options = " ".join(f"[--{key} ...]" for key in ON_COMMAND_LINE)
    return "\n".join([f"usage: python {sys.argv[0]} STUDY.yaml {options}", "", "Keys of a study:", *lines])
