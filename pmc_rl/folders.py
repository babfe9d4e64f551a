"""Folders inside an output folder: checkpoints, snapshots, and temporary ones, by which a killed run is known."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

SNAPSHOTS = "snapshots"
SNAPSHOT_RECORD = "snapshot.json"
CHECKPOINT_MARK = "PRIVATE.md"  # stands in checkpoints of ours
# Begins the names of folders that stand in an output folder while a run is unfinished: one from its start on, and one
# for whatever is being written or removed.
SAVING = ".saving-"


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Checkpoints of ours, complete or not, by their steps; those of other programs lack the mark."""
    return _numbered(output_dir.glob("checkpoint-*"), CHECKPOINT_MARK)


def snapshot_folders(output_dir: Path) -> list[Path]:
    """Snapshots of ours, by their steps."""
    return _numbered((output_dir / SNAPSHOTS).glob("step-*"), SNAPSHOT_RECORD)


def _numbered(folders: Iterable[Path], mark: str) -> list[Path]:
    ours = [path for path in folders if path.name.partition("-")[2].isdecimal() and (path / mark).is_file()]
    return sorted(ours, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.partition("-")[2])


def unfinished_folders(output_dir: Path) -> list[Path]:
    """The [`temporary_folder`]s that tell of an unfinished run."""
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
        if _step_of(folder) > after:
            remove_folder(output_dir, folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
