"""The plan of a study: the jobs that make its models and audits, with their commands. Launches nothing."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pmc_rl.output import MANIFEST
from pmc_rl.reading import listed
from pmc_rl.recipe import check_all, parse_finetune_recipe, parse_recipe
from pmc_rl.scoring import load_reward_functions, maximal_reward
from pmc_rl.study_config import Study, expand, slug
from pmc_rl.values import RecipeError, nearest_path, show

PATH_KEYS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "dataset_name",
    "forget_file",
    "retain_file",
    "train_file",
)


@dataclass(frozen=True)
class Job:
    """One command of a study."""

    name: str  # its place below the study's folder: what it makes, its log and its record
    stage: str  # jobs of one stage may run at the same time; the stages follow each other
    script: str
    arguments: tuple[str, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    proof: str = ""  # the file below the study's folder that says it is done
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [self.script, *self.arguments, *option_words(self.overrides)]

    @property
    def is_audit(self) -> bool:
        """Only reads what others made, so it is made again whenever that or its settings change."""
        return self.stage in ("course", "audit")


def make_jobs(study: Study) -> list[Job]:
    """All jobs, each after those that it needs."""
    jobs = [*_setup_jobs(study)]
    for stage in (_model_jobs, _run_jobs, _control_jobs, _course_jobs, _audit_jobs):
        jobs += [job for seed in study.seeds for job in stage(study, seed)]
    return jobs


def _setup_jobs(study: Study) -> Iterator[Job]:
    names = [f"setup_{i}" for i in range(1, len(study.setup) + 1)]
    for i, (name, line) in enumerate(zip(names, study.setup, strict=True)):
        script, *arguments = shlex.split(fill(line, study, None))
        yield Job(name, "setup", script, tuple(arguments), proof=f"{name}.done", needs=tuple(names[:i]))


def _model_jobs(study: Study, seed: int) -> Iterator[Job]:
    """The model that has something to forget, and the one that never saw it."""
    if study.finetune_recipe is None:
        return
    own = {"finetuned": {}} | ({} if study.retain_only is None else {"retain_only": study.retain_only})
    for folder, further in own.items():
        overrides = fill({**study.finetune, **further}, study, seed)
        yield _training(
            study, "finetune", "pmc_rl/finetune.py", study.finetune_recipe, seed, folder, overrides, _all_setups(study)
        )


def _run_jobs(study: Study, seed: int) -> Iterator[Job]:
    """The runs to compare."""
    for name, own in expand(study.variants, study.axes).items():
        overrides, needs = fill({**study.overrides, **own}, study, seed), _all_setups(study)
        if study.finetune_recipe is not None:
            needs = (f"seed{seed}/finetuned",)
            overrides["model_name_or_path"] = f"{study.output_dir}/{needs[0]}"
        overrides["log_completions"] = False  # the table would stand in the log
        if _is_watched(study, seed):
            overrides["snapshot_steps"] = study.snapshot_steps
        yield _training(study, "train", "pmc_rl/train.py", study.recipe, seed, slug(name), overrides, needs)


def _training(
    study: Study, stage: str, script: str, recipe: str, seed: int, folder: str, overrides: dict, needs
) -> Job:
    name = f"seed{seed}/{folder}"
    overrides = {"output_dir": f"{study.output_dir}/{name}", "seed": seed, **overrides}
    return Job(name, stage, script, (recipe,), overrides, f"{name}/{MANIFEST}", needs)


def _control_jobs(study: Study, seed: int) -> Iterator[Job]:
    """Trainings without collapse that are matched to one run: they read its recipe and its seconds."""
    run = f"seed{seed}/{slug(study.controls_of or next(iter(expand(study.variants, study.axes))))}"
    for kind in study.controls:
        name = f"seed{seed}/control_{kind}"
        overrides = {"output_dir": f"{study.output_dir}/{name}"}
        if _is_watched(study, seed):
            overrides["snapshot_steps"] = None  # saving would take of the seconds they have
        arguments = (kind, f"{study.output_dir}/{run}")
        yield Job(name, "control", "pmc_rl/control.py", arguments, overrides, f"{name}/{MANIFEST}", (run,))


def _course_jobs(study: Study, seed: int) -> Iterator[Job]:
    """Audits of each run's snapshots; which there are is known when the run has ended."""
    if not _is_watched(study, seed):
        return
    for run in (slug(name) for name in expand(study.variants, study.axes)):
        name = f"seed{seed}/course_{run}"
        overrides = {"overwrite": True, "log_completions": False, "attacks": []}
        recipe = f"{study.output_dir}/seed{seed}/{run}/recipe.yaml"
        yield Job(name, "course", "eval/run.py", (recipe,), overrides, f"{name}.json", (f"seed{seed}/{run}",))


def _audit_jobs(study: Study, seed: int) -> Iterator[Job]:
    """One audit of everything that the seed has, in the folder of its first run."""
    host, *others = (slug(name) for name in expand(study.variants, study.axes))
    others += [f"control_{kind}" for kind in study.controls]
    overrides: dict[str, Any] = {"overwrite": True, "log_completions": False}
    needs = [f"seed{seed}/{name}" for name in (host, *others)]
    if study.retain_only is not None:
        needs.append(f"seed{seed}/retain_only")
        overrides["retain_only_model"] = f"{study.output_dir}/{needs[-1]}"
    elif study.retain_only_model is not None:
        overrides["retain_only_model"] = fill(study.retain_only_model, study, seed)
    if others:
        overrides["also"] = [f"{name}={study.output_dir}/seed{seed}/{name}" for name in others]
    overrides |= {"attacks": study.attacks, "attack_samples": study.attack_samples}
    recipe = f"{study.output_dir}/seed{seed}/{host}/recipe.yaml"
    yield Job(
        f"seed{seed}/audit", "audit", "eval/run.py", (recipe,), overrides, f"seed{seed}/results.json", tuple(needs)
    )


def _all_setups(study: Study) -> tuple[str, ...]:
    return tuple(f"setup_{i}" for i in range(1, len(study.setup) + 1))


def _is_watched(study: Study, seed: int) -> bool:
    return study.snapshot_steps is not None and seed == study.seeds[0]


def option_words(overrides: dict[str, Any]) -> list[str]:
    """Overrides as a recipe's command line reads them back: plain texts as several words, all else as JSON."""
    words = []
    for key, value in overrides.items():
        plain = isinstance(value, list) and len(value) > 1 and all(_is_plain(item) for item in value)
        words.append(f"--{key}")
        words += value if plain else [value if isinstance(value, str) else json.dumps(value)]
    return words


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("--")  # which would be the next key


def fill(value: Any, study: Study, seed: int | None) -> Any:
    """{output_dir} and {seed} in all texts of a value; other braces stay, they are of templates."""
    if isinstance(value, str):
        value = value.replace("{output_dir}", study.output_dir)
        return value if seed is None else value.replace("{seed}", str(seed))
    if isinstance(value, list):
        return [fill(item, study, seed) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, study, seed) for key, item in value.items()}
    return value


def read_settings(jobs: list[Job], path: str, root: Path) -> dict[str, dict]:
    """
    Parses the recipe of every training with its overrides: name of the job -> the values given.

    Args:
        path (`str`): the study's file, for the messages.
        root (`Path`): where the paths of recipes start.

    Raises:
        RecipeError: every problem once, with the runs it is of unless it is of all.
    """
    settings: dict[str, dict] = {}
    problems: dict[str, list[str]] = {}
    for job in (job for job in jobs if job.stage in ("finetune", "train")):
        parse = parse_recipe if job.stage == "train" else parse_finetune_recipe
        try:
            given = parse([str(root / job.arguments[0]), *option_words(job.overrides)])[0].given
            lines = [
                f"{key}: {show(value)} cannot be given on a command line; write it into the recipe"
                for key, value in job.overrides.items()
                if given[key] != value
            ]
            settings[job.name] = given
        except RecipeError as error:
            lines = [line.removeprefix("command line: ") for line in error.errors]
        for line in lines:
            problems.setdefault(line, []).append(job.name.partition("/")[2])
    if problems:
        runs = {job.name.partition("/")[2] for job in jobs if job.stage == "train"}
        owners = {
            line: "" if runs <= set(names) else f"{', '.join(dict.fromkeys(names))}: "
            for line, names in problems.items()
        }
        raise RecipeError([f"{path}: {owner}{line}" for line, owner in owners.items()])
    return settings


def check_inputs(study: Study, jobs: list[Job], settings: dict[str, dict], root: Path) -> None:
    """What can be missing is there before anything is launched: scripts, folders and files of recipes, rewards."""
    made = f"{study.output_dir}/"
    places = {("setup", job.script) for job in jobs if job.stage == "setup"}
    places |= {
        (key, place)
        for given in settings.values()
        for key in PATH_KEYS
        for place in listed(given.get(key))
        if place and not place.startswith(made)
    }
    if study.retain_only_model is not None:
        places |= {("retain_only_model", fill(study.retain_only_model, study, seed)) for seed in study.seeds}
    errors = [
        f"{key}: there is no {place!r} in {str(root)!r}{nearest_path(root / place)}"
        for key, place in sorted(places)
        if (key == "setup" or key.endswith("_file") or _names_place(place)) and not (root / place).exists()
    ]
    rewards = {
        json.dumps([given.get(key) for key in ("reward_funcs", "reward_kwargs", "max_reward")]): given
        for given in settings.values()
    }
    try:
        check_all(*(lambda given=given: _load_rewards(given) for given in rewards.values()))
    except RecipeError as error:
        errors += error.errors
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))


def _names_place(name: str) -> bool:
    """Whether a name is of this machine: on the Hub it is a word or OWNER/NAME."""
    return name.startswith(("/", ".")) or name.count("/") > 1


def _load_rewards(given: dict) -> None:
    names = [name for name in given.get("reward_funcs", []) if "/" not in name]  # not the models: they take time
    columns = given.get("reward_columns", [])
    kwargs = given.get("reward_kwargs", {})
    length = given.get("max_completion_length", 1)
    rewards = load_reward_functions(names, kwargs, None, length, reward_columns=columns)
    maximal_reward(rewards, given.get("max_reward"))
