"""The output folder: what may be written there, a run saved whole, files that hold what is to be forgotten."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from pmc_rl.config import RunConfig
from pmc_rl.errors import RecipeError, one_line

# an absolute path inside a sentence; in quotes it may have spaces
PATH = re.compile(r"(?<=')/[^']+(?=')|(?<![\w.:/~…])/[^\s'\",;:()]+(?:/[^\s'\",;:()]+)+")
# keys of a recipe with texts, of which none is a path
TEXTS = ("prompt_template", "completion_template", "system_prompt", "chat_template_kwargs", "prefixes")

MANIFEST = "manifest.json"  # written last, so a folder that has it is complete
TRAINING_LOG = "training_log.jsonl"
MERGED = "merged"
RECORD = "record.json"  # in private/
SNAPSHOTS = "snapshots"
SNAPSHOT_RECORD = "snapshot.json"
# Begins the names of folders that stand in an output folder while a run is unfinished: one from its start on, and one
# for whatever is being written or removed.
SAVING = ".saving-"
REPLACED = "replaced"  # in such a folder: the manifest of the earlier run that is being replaced
CHECKPOINT_MARK = "PRIVATE.md"
CHECKPOINT_TEXT = """\
PRIVATE: this checkpoint holds what is to be forgotten: the model's original answers, and the best ones so far.

It is removed when the run is finished, unless the recipe says keep_checkpoints.
"""
PRIVATE = """\
PRIVATE: the files of this folder hold what is to be forgotten, or would tell a guess about it right or wrong.

`record.json` has hashes of the data that was read, which tell an audit that runs belong together, and the paths that
`recipe.yaml` leaves out. An audit adds `cache/`, what the models answered, so that another one need not ask again, and
`rows.json`, `examples.md` and reports with texts for reading. Delete the folder when they have been read, and before
the model is published; an audit after that can no longer tell whether the data is the same.
"""
AUDIT_FILES = ("results.json", "audit.json", "report.html", "report.md")
CARD_MARK = "pmc_rl, audited on"  # stands in every model card of ours


def check_output_dir(args: RunConfig, model_args: ModelConfig, resume: bool = False) -> None:
    """
    Refuses an output folder that holds anything; with `overwrite: true`, anything but runs of ours, finished or not.
    With `resume_from_checkpoint: auto` an unfinished run may stand there, with or without a checkpoint to go on from.

    Args:
        resume (`bool`): whether there is a checkpoint to go on from.
    """
    try:
        if os.path.realpath(args.output_dir) == os.path.realpath(model_args.model_name_or_path):
            raise RecipeError([f"output_dir: {args.output_dir!r} is the model itself; choose another folder"])
        _check_folder(Path(args.output_dir), args.overwrite, args.resume_from_checkpoint == "auto", resume)
    except RecipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # names that are none
        raise RecipeError([f"output_dir: {args.output_dir!r} cannot be used: {one_line(error)}"]) from error


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Checkpoints of ours, complete or not, by their steps; those of other programs lack the mark."""
    return _numbered(output_dir.glob("checkpoint-*"), CHECKPOINT_MARK)


def snapshot_folders(output_dir: Path) -> list[Path]:
    """Snapshots of ours, by their steps."""
    return _numbered((output_dir / SNAPSHOTS).glob("step-*"), SNAPSHOT_RECORD)


def step_of(folder: Path) -> int:
    """The step of a checkpoint or a snapshot."""
    return int(folder.name.partition("-")[2])


def _numbered(folders: Iterable[Path], mark: str) -> list[Path]:
    ours = [path for path in folders if path.name.partition("-")[2].isdecimal() and (path / mark).is_file()]
    return sorted(ours, key=step_of)


def _unfinished_folders(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob(f"{SAVING}*") if path.is_dir() and not path.is_symlink()]


def temporary_folder(output_dir: Path) -> Path:
    """A new folder inside `output_dir`, for its owner's eyes only, that tells of an unfinished run if it is left."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=SAVING, dir=output_dir))  # of mode 0700


def remove_folder(output_dir: Path, folder: Path) -> None:
    """Removes a folder inside `output_dir` in one move, so that a kill leaves no half of it under its name."""
    temporary = temporary_folder(output_dir)
    os.rename(folder, temporary / folder.name)
    shutil.rmtree(temporary)


def remove_snapshots(output_dir: Path, after: int = 0) -> None:
    """Removes the snapshots of steps after `after`, and the folder they are in once it is empty."""
    for folder in snapshot_folders(output_dir):
        if step_of(folder) > after:
            remove_folder(output_dir, folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()


def make_checkpoint_folder(output_dir: Path, step: int) -> None:
    """For its owner's eyes only from the first moment, and marked; one of ours at the same step is replaced."""
    folder = output_dir / f"checkpoint-{step}"
    if folder in checkpoint_folders(output_dir):
        remove_folder(output_dir, folder)
    temporary = temporary_folder(output_dir)
    (temporary / CHECKPOINT_MARK).write_text(CHECKPOINT_TEXT)
    os.rename(temporary, folder)


def remove_unfinished(output_dir: Path, keep: Path | None = None) -> None:
    """Removes what a run that was killed had begun to save, files that were moved up already included, but `keep`."""
    for temporary in _unfinished_folders(output_dir):
        if temporary == keep:
            continue
        new, replaced = read_manifest(temporary), read_manifest(temporary / REPLACED)
        if not is_finished_run(output_dir):
            if new is not None:
                _remove_files(output_dir, [name for name in new["files"] if not (temporary / name).exists()])
            if replaced is not None:
                _remove_run(output_dir, replaced)
        (temporary / MANIFEST).unlink(missing_ok=True)  # first: what it lists goes with the folder, and was not moved
        shutil.rmtree(temporary)


def _check_folder(folder: Path, overwrite: bool, auto: bool, resume: bool) -> None:
    if folder.is_symlink():  # what is written there would end up, and what is replaced would be, somewhere else
        raise RecipeError([f"output_dir: {str(folder)!r} is a link to {os.readlink(folder)!r}; give that folder"])
    if folder.exists() and not folder.is_dir():
        raise RecipeError([f"output_dir: {str(folder)!r} is a file"])
    if (folder / "private").is_symlink():
        raise RecipeError([f"output_dir: {str(folder / 'private')!r} is a link; private files stay where they are"])
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RecipeError([f"output_dir: {str(existing)!r} is a file"])
    if not os.access(existing, os.W_OK):
        raise RecipeError([f"output_dir: no permission to write in {str(existing)!r}"])
    if not folder.is_dir() or not any(folder.iterdir()) or resume:
        return
    unfinished = _unfinished_folders(folder)
    written = [
        *checkpoint_folders(folder),
        *snapshot_folders(folder),
        *(path for path in unfinished if any(path.iterdir())),
    ]
    if is_finished_run(folder):
        if not overwrite and not auto:  # which run it is that auto finds finished can be told when all has been read
            raise holds_a_run(folder)
    elif not unfinished and not written:
        raise RecipeError([f"output_dir: {str(folder)!r} holds files, but no finished run; choose another folder"])
    elif written and not overwrite and not auto:
        goes_on = "--resume_from_checkpoint auto goes on, " if checkpoint_folders(folder) else ""
        raise RecipeError(
            [f"output_dir: {str(folder)!r} holds an unfinished run: {goes_on}--overwrite true begins anew"]
        )


def holds_a_run(folder: Path) -> RecipeError:
    """The refusal of a folder whose run is not to be replaced unasked."""
    return RecipeError(
        [f"output_dir: {str(folder)!r} holds a run; choose another folder or say --overwrite true to replace it"]
    )


def is_finished_run(folder: Path) -> bool:
    """Whether a folder holds a complete run of ours: the manifest is written last, and goes first."""
    return read_manifest(folder) is not None


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished run, which says what was read and which files are ours; None if it holds none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def read_record(folder: Path) -> dict | None:
    """
    What is private of a run: `read`, the hashes of each column by what was read, and `paths`, by the recipe's key a
    value as published and as given. None where `private/` was deleted.
    """
    try:
        return json.loads((folder / "private" / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def private_record(recipe: dict, read: dict) -> dict:
    """What [`read_record`] gives back, from the recipe as run and the records of what was read."""
    hashes = {name: record and record["columns"] for name, record in read.items()}
    paths = {key: [shown, recipe[key]] for key, shown in published_recipe(recipe).items() if shown != recipe[key]}
    return {"read": hashes, "paths": paths}


def published(value):
    """
    A value of JSON as it may be published, with no absolute path in its texts, which would name users and folders.

    A path inside the working directory is told from there, of any other one the last part.
    """
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


def read_training_log(folder: Path) -> list[dict]:
    """What a finished run logged, a row each time; its summary is the last one."""
    return [json.loads(line) for line in (folder / TRAINING_LOG).read_text(encoding="utf-8").splitlines()]


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
    Writes model or adapter, tokenizer, `recipe.yaml` (as run), `training_log.jsonl` and, last, `manifest.json`; if
    given, a merged model with its tokenizer to `merged/`. What is not to be published of the recipe, absolute paths,
    and of `read` in the manifest, hashes of the data, goes to `private/record.json`.

    Everything is written to a temporary folder inside `output_dir` first and then moved up. Before that the manifest
    of an earlier run goes, so that a folder with a manifest is complete, then that run's files and those of its audit,
    and snapshots if this run made none; files that are not ours stay.
    """
    output_dir = Path(args.output_dir)
    temporary = temporary_folder(output_dir)
    try:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's, with the path of the base; the audit writes one
        tokenizer.save_pretrained(temporary)
        if merged_model is not None:
            merged_model.save_pretrained(temporary / MERGED)
            tokenizer.save_pretrained(temporary / MERGED)
        (temporary / "recipe.yaml").write_text(
            yaml.safe_dump(published_recipe(recipe), sort_keys=False, allow_unicode=True)
        )
        (temporary / TRAINING_LOG).write_text("".join(json.dumps(entry) + "\n" for entry in log_history))
    except BaseException:
        shutil.rmtree(temporary)
        raise
    names = sorted(path.name for path in temporary.iterdir())
    shown = {**manifest, "read": published_read(manifest["read"]), "files": names}
    (temporary / MANIFEST).write_text(json.dumps(shown, indent=2) + "\n")
    earlier = read_manifest(output_dir)
    if earlier is not None:
        # moved, not removed: after a kill it still tells what is to be removed
        (temporary / REPLACED).mkdir()
        os.replace(output_dir / MANIFEST, temporary / REPLACED / MANIFEST)
        _remove_run(output_dir, earlier)
    if recipe.get("snapshot_steps") is None:
        remove_snapshots(output_dir)
    write_private(output_dir, RECORD, json.dumps(private_record(recipe, manifest["read"]), indent=2) + "\n")
    for name in (*names, MANIFEST):
        os.replace(temporary / name, output_dir / name)
    remove_unfinished(output_dir)


def _remove_run(output_dir: Path, manifest: dict) -> None:
    """Removes what a run saved, its audit, and its model card."""
    if _is_our_card(output_dir / "README.md"):
        (output_dir / "README.md").unlink()
    _remove_files(output_dir, [*manifest["files"], *AUDIT_FILES])
    shutil.rmtree(output_dir / "private", ignore_errors=True)


def _remove_files(output_dir: Path, names: list[str]) -> None:
    for name in names:
        if name == MERGED:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        else:
            (output_dir / name).unlink(missing_ok=True)


def may_replace_card(output_dir: Path) -> bool:
    """Whether the folder's README.md, if there is one, is a model card of ours or came with the model."""
    path, manifest = output_dir / "README.md", read_manifest(output_dir)
    if not path.exists() or (manifest is not None and path.name in manifest["files"]):
        return True
    return _is_our_card(path)


def _is_our_card(path: Path) -> bool:
    return path.exists() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")


def private_folder(output_dir: Path) -> Path:
    """`output_dir/private/`, made for its owner's eyes only, and marked."""
    folder = output_dir / "private"
    if folder.is_symlink():
        raise RecipeError([f"{str(folder)!r} is a link to {os.readlink(folder)!r}; private files stay where they are"])
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    (folder / "README.md").write_text(PRIVATE)
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes a file to a temporary name first, so that what stands there is whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_private(output_dir: Path, name: str, text: str) -> Path:
    """Writes a file that holds what is to be forgotten to `output_dir/private/`, for its owner's eyes only."""
    folder = private_folder(output_dir)
    temporary = tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8")  # created with mode 0600
    with temporary:
        temporary.write(text)
    os.replace(temporary.name, folder / name)
    return folder / name
