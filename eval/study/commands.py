"""The commands of a study: what each training, control and audit is told, all checked before any is launched."""

import json
from pathlib import Path
from typing import Any

from eval.study.settings import Run, StudySettings, grid_runs, ranges, replace_ranges, values_of
from pmc_rl.errors import RecipeError, nearest_path
from pmc_rl.reading import listed
from pmc_rl.recipe import parse_finetune_recipe, parse_recipe
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.scoring import maximal_reward


def fill(value: Any, study: StudySettings, seed: int | None = None) -> Any:
    """{output_dir} and {seed} in all texts of a value; other braces stay, they are of templates."""
    text = json.dumps(value).replace("{output_dir}", json.dumps(study.output_dir)[1:-1])
    return json.loads(text if seed is None else text.replace("{seed}", str(seed)))


def setup_commands(study: StudySettings) -> list[list[str]]:
    """The words of each setup line, which are those between spaces."""
    return [fill(line.split(), study) or [""] for line in study.setup]


def option_words(overrides: dict[str, Any]) -> list[str]:
    """Overrides as a recipe's command line reads them back: texts as they are, all else as JSON."""
    pairs = [(f"--{key}", v if isinstance(v, str) else json.dumps(v)) for key, v in overrides.items()]
    return [word for pair in pairs for word in pair]


def model_overrides(study: StudySettings, seed: int) -> dict[str, dict[str, Any]]:
    """What finetune.py is told for the models of a seed: the one with something to forget, and the retain-only one."""
    if study.finetune_recipe is None:
        return {}
    own = {"finetuned": {}} | ({} if study.retain_only is None else {"retain_only": study.retain_only})
    return {
        name: {"output_dir": f"{study.output_dir}/seed{seed}/{name}", "seed": seed}
        | fill(study.finetune | further, study, seed)
        for name, further in own.items()
    }


def run_overrides(study: StudySettings, run: Run) -> dict[str, Any]:
    """What train.py is told for one run."""
    overrides = {"output_dir": f"{study.output_dir}/{run.folder}", "seed": run.seed}
    overrides |= fill(study.overrides | run.overrides, study, run.seed)
    if study.finetune_recipe is not None:
        overrides["model_name_or_path"] = f"{study.output_dir}/seed{run.seed}/finetuned"
    return overrides | {"log_completions": False}  # the table would stand in the log


def control_folders(study: StudySettings, run: Run) -> dict[str, str]:
    """Folders of the controls that are matched to a run, by the names that its audit gives them."""
    if run.name != (study.controls_of or grid_runs(study)[0].name):
        return {}
    return {f"control_{kind}": f"{study.output_dir}/{run.folder}_control_{kind}" for kind in study.controls}


def audit_overrides(study: StudySettings, run: Run) -> dict[str, Any]:
    """What eval/run.py is told for one run."""
    overrides: dict[str, Any] = {"overwrite": True, "log_completions": False}
    if study.retain_only is not None:
        overrides["retain_only_model"] = f"{study.output_dir}/seed{run.seed}/retain_only"
    elif study.retain_only_model is not None:
        overrides["retain_only_model"] = fill(study.retain_only_model, study, run.seed)
    if also := control_folders(study, run):
        overrides["also"] = [f"{name}={folder}" for name, folder in also.items()]
    return overrides | {"attacks": study.attacks, "attack_samples": study.attack_samples}


def check_study(study: StudySettings, path: str, root: Path) -> dict[str, dict]:
    """
    Parses the recipe of every training, the ends of all ranges included.

    Args:
        path (`str`): the study's file, for the messages.
        root (`Path`): the repository, where paths start.

    Returns:
        the values given, by the folder of each run.

    Raises:
        RecipeError: every problem once, with the run it was found in.
    """
    problems: dict[str, str] = {}  # a line, and the run that it was first found in
    settings = {}

    def complain(name: str, lines: list[str]) -> None:
        for line in lines:
            problems.setdefault(line.removeprefix("command line: "), name)

    runs = grid_runs(study)
    for name, end in (("search, lowest", 0), ("search, highest", -1)) if study.search else ():
        found = {key: values_of(given)[end] for key, given in ranges(study.search).items()}
        runs.append(Run(name, study.seeds[0], replace_ranges(study.search, found)))
    for seed in study.seeds:
        for name, overrides in model_overrides(study, seed).items():
            try:
                parse_finetune_recipe([str(root / study.finetune_recipe), *option_words(overrides)])
            except RecipeError as error:
                complain(name, error.errors)
    for run in runs:
        try:
            words = option_words(run_overrides(study, run))
            script_args, training_args, *_ = parse_recipe([str(root / study.recipe), *words])
            settings[run.folder] = script_args.given
            complain(run.name, _missing_paths(study, script_args.given, root))
            rewards = load_reward_functions(
                [name for name in script_args.reward_funcs if "/" not in name],  # models take time to load
                script_args.reward_kwargs,
                None,
                training_args.max_completion_length,
                reward_columns=script_args.reward_columns,
            )
            maximal_reward(rewards, training_args.max_reward)
        except RecipeError as error:
            complain(run.name, error.errors)
    for script in (root / words[0] for words in setup_commands(study)):
        if not script.is_file():
            complain("setup", [f"there is no {str(script)!r}{nearest_path(script)}"])
    if problems:
        raise RecipeError([f"{path}: {name}: {line}" for line, name in problems.items()])
    return settings


def _missing_paths(study: StudySettings, given: dict, root: Path) -> list[str]:
    """Files and folders that a recipe names and nobody makes; what may be a name on the Hub is not looked for."""
    keys = ("model_name_or_path", "tokenizer_name_or_path", "dataset_name", "forget_file", "retain_file")
    places = [(key, place) for key in keys for place in listed(given.get(key)) if place]
    return [
        f"{key}: there is no {place!r} in {str(root)!r}{nearest_path(root / place)}"
        for key, place in places
        # a name on the Hub is a word or OWNER/NAME
        if (key.endswith("_file") or place.startswith(("/", ".")) or place.count("/") > 1)
        and not place.startswith(f"{study.output_dir}/")
        and not (root / place).exists()
    ]
