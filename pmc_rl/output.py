"""The output folder: what may be written there, a run saved whole, what may be published of it, what is private."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from pmc_rl.config import RunConfig
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.folders import (
    checkpoint_folders,
    remove_snapshots,
    snapshot_folders,
    temporary_folder,
    unfinished_folders,
)

MANIFEST = "manifest.json"  # moved up last and away first, so a folder that has it is complete
TRAINING_LOG = "training_log.jsonl"
MERGED = "merged"
RECORD = "record.json"  # in private/
UNDO = "undo.json"  # in a temporary folder: what to remove if a run was killed while its files were moved up
AUDIT_FILES = ("results.json", "audit.json", "TOFU_SUMMARY.json", "report.html", "report.md")
CARD_MARK = "pmc_rl, audited on"  # stands in every model card of ours
PRIVATE = """\
PRIVATE: the files of this folder hold what is to be forgotten, or would tell a guess about it right or wrong:
`record.json` hashes of the data that was read, by which an audit knows it, and paths that `recipe.yaml` leaves out;
`cache/` what the models answered; `rows.json`, `examples.md` and reports texts for reading. Delete the folder before
the model is published; an audit after that can no longer tell whether the data is the same.
"""
# keys of a recipe with texts, of which none is a path
TEXTS = ("prompt_template", "completion_template", "system_prompt", "chat_template_kwargs", "prefixes", "wordings")
# an absolute path inside a sentence; in quotes it may have spaces
PATH = re.compile(r"(?<=')/[^']+(?=')|(?<![\w.:/~…])/[^\s'\",;:()]+(?:/[^\s'\",;:()]+)+")
HOLDS_A_RUN = "holds a run; choose another folder or say --overwrite true to replace it"


def check_output_dir(args: RunConfig, model_args: ModelConfig, resume: bool = False) -> None:
    """
    Refuses a folder that holds anything; `overwrite: true` and `resume_from_checkpoint: auto` allow runs of ours.

    `resume` tells that there is a checkpoint to go on from. Whether auto meets the same run is seen later.
    """
    try:
        problem = _problem_of(Path(args.output_dir), args, model_args, resume)
    except (OSError, ValueError, RuntimeError) as error:  # names that are none
        problem = f"cannot be used: {one_line(error)}"
    if problem:
        raise RecipeError([f"output_dir: {args.output_dir!r} {problem}"])


def _problem_of(folder: Path, args: RunConfig, model_args: ModelConfig, resume: bool) -> str | None:
    if os.path.realpath(folder) == os.path.realpath(model_args.model_name_or_path):
        return "is the model itself; choose another folder"
    if folder.is_symlink():  # what is written there would end up, and what is replaced would be, somewhere else
        return f"is a link to {os.readlink(folder)!r}; give that folder"
    if (folder / "private").is_symlink():
        return "has a link called private; private files stay where they are"
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return "is a file" if existing == folder.absolute() else f"cannot be made: {str(existing)!r} is a file"
    if not os.access(existing, os.W_OK):
        return f"cannot be written: no permission in {str(existing)!r}"
    if resume or existing != folder.absolute() or not any(folder.iterdir()):
        return None
    unfinished, checkpoints = unfinished_folders(folder), checkpoint_folders(folder)
    written = checkpoints or snapshot_folders(folder) or any(any(path.iterdir()) for path in unfinished)
    finished = is_finished_run(folder)
    if not (finished or written):
        # else killed before it had written anything
        return None if unfinished else "holds files, but no finished run; choose another folder"
    if args.overwrite or args.resume_from_checkpoint == "auto":
        return None
    goes_on = "--resume_from_checkpoint auto goes on, " if checkpoints else ""
    return HOLDS_A_RUN if finished else f"holds an unfinished run: {goes_on}--overwrite true begins anew"


def save_run(
    args: RunConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: dict,
    log_history: list[dict],
    manifest: dict,
    merged_model: PreTrainedModel | None = None,
) -> None:
    """
    Writes model or adapter, tokenizer, recipe as run, training log and manifest, and a merged model to `merged/`; what
    is not to be published of recipe and manifest goes to `private/`.

    All is written to a temporary folder first. Then an earlier run goes, with its audit, and with its snapshots if
    this run made none, and what was written is moved up; files that are not ours stay.
    """
    output_dir = Path(args.output_dir)
    temporary = temporary_folder(output_dir)
    try:
        for folder, weights in ((temporary, model), (temporary / MERGED, merged_model)):
            if weights is not None:
                weights.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's, with the path of the base; the audit writes one
        shown_recipe = yaml.safe_dump(published_recipe(recipe), sort_keys=False, allow_unicode=True)
        (temporary / "recipe.yaml").write_text(shown_recipe, encoding="utf-8")
        (temporary / TRAINING_LOG).write_text("".join(json.dumps(entry) + "\n" for entry in log_history))
        names = sorted(path.name for path in temporary.iterdir())
        shown = {**manifest, "read": published_read(manifest["read"]), "files": names}
        (temporary / MANIFEST).write_text(json.dumps(shown, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(temporary)
        raise
    earlier = _names_of_run(output_dir)
    write_text(temporary / UNDO, json.dumps([*earlier, *names]))
    _remove(output_dir, [MANIFEST, *earlier])
    if recipe.get("snapshot_steps") is None:
        remove_snapshots(output_dir)
    write_private(output_dir, RECORD, json.dumps(private_record(recipe, manifest["read"]), indent=2) + "\n")
    for name in (*names, MANIFEST):
        os.replace(temporary / name, output_dir / name)
    remove_unfinished(output_dir)


def remove_unfinished(output_dir: Path, keep: Path | None = None) -> None:
    """Removes what a run that was killed had begun to save, files that were moved up already included, but `keep`."""
    for temporary in unfinished_folders(output_dir):
        if temporary != keep:
            if not is_finished_run(output_dir):
                _remove(output_dir, _read_json(temporary / UNDO) or [])
            shutil.rmtree(temporary)


def _names_of_run(output_dir: Path) -> list[str]:
    """What a finished run saved, its audit, and its model card; nothing where there is no such run."""
    manifest = read_manifest(output_dir)
    if manifest is None:
        return []
    card = ["README.md"] if _is_our_card(output_dir / "README.md") else []
    return [*card, *manifest["files"], *AUDIT_FILES, "private"]


def _remove(output_dir: Path, names: list[str]) -> None:
    for path in [output_dir / name for name in names]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_finished_run(folder: Path) -> bool:
    """Whether a folder holds a complete run of ours."""
    return read_manifest(folder) is not None


def read_manifest(folder: Path) -> dict | None:
    """What a finished run read, and which files are ours; None if the folder holds none."""
    manifest = _read_json(folder / MANIFEST)
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def read_record(folder: Path) -> dict | None:
    """What [`private_record`] made of a run; None where `private/` was deleted."""
    return _read_json(folder / "private" / RECORD)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_training_log(folder: Path) -> list[dict]:
    """What a finished run logged, a row each time; its summary is the last one."""
    return [json.loads(line) for line in (folder / TRAINING_LOG).read_text(encoding="utf-8").splitlines()]


def private_record(recipe: dict, read: dict) -> dict:
    """`read`: hashes of columns by what was read; `paths`: by the recipe's key a value as published and as given."""
    hashes = {name: record and record["columns"] for name, record in read.items()}
    paths = {key: [shown, recipe[key]] for key, shown in published_recipe(recipe).items() if shown != recipe[key]}
    return {"read": hashes, "paths": paths}


def published(value: Any) -> Any:
    """A value of JSON with paths told from the working directory, others by their last part: they name users."""
    if isinstance(value, list):
        return [published(part) for part in value]
    if isinstance(value, dict):
        return {published(key): published(part) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    if " + " in value:  # of several files
        return " + ".join(map(published, value.split(" + ")))
    start, equals, path = value.rpartition("=")  # NAME=FOLDER
    if os.path.isabs(path):
        return start + equals + _published_path(path)
    return PATH.sub(lambda match: _published_path(match.group()), value)


def _published_path(path: str) -> str:
    here, path = os.getcwd(), os.path.normpath(path)
    inside = here != "/" and os.path.commonpath([here, path]) == here
    return os.path.relpath(path) if inside else os.path.basename(path)


def published_recipe(given: dict) -> dict:
    """The keys of a recipe as they may be published."""
    return {key: value if key in TEXTS else published(value) for key, value in given.items()}


def published_read(read: dict) -> dict:
    """Records of what was read, with the names of the columns in place of their hashes."""
    shown = {}
    for name, record in read.items():
        name = published(name)
        if name in shown:  # two files of one name
            name = f"{name} ({len(shown) + 1})"
        shown[name] = record and {**published(record), "columns": list(record["columns"])}
    return shown


def may_replace_card(output_dir: Path) -> bool:
    """Whether the folder's README.md, if there is one, is a model card of ours or came with the model."""
    path, manifest = output_dir / "README.md", read_manifest(output_dir)
    return not path.exists() or (manifest is not None and path.name in manifest["files"]) or _is_our_card(path)


def _is_our_card(path: Path) -> bool:
    return path.exists() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")


def private_folder(output_dir: Path) -> Path:
    """`private/`, made for its owner's eyes only, and marked."""
    folder = output_dir / "private"
    if folder.is_symlink():
        raise RecipeError([f"{str(folder)!r} is a link to {os.readlink(folder)!r}; private files stay where they are"])
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    (folder / "README.md").write_text(PRIVATE)
    return folder


def write_private(output_dir: Path, name: str, text: str) -> Path:
    """Writes a file that holds what is to be forgotten to `output_dir/private/`, for its owner's eyes only."""
    path = private_folder(output_dir) / name
    write_text(path, text, mode=0o600)
    return path


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes a file to a temporary name first, so that what stands there is whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)  # after a kill it may be there, with another mode
    with open(temporary, "w", encoding="utf-8", opener=partial(os.open, mode=mode)) as file:
        file.write(text)
    os.replace(temporary, path)
