"""Files, folders in the Hub's layout and the Hub: rows with nothing but the columns that are asked for.

Nothing is copied to a cache: local files are projected row by row, the Hub is streamed.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from datasets import get_dataset_config_names, load_dataset, load_dataset_builder

from pmc_rl.values import RecipeError, closest, make_dict, nearest_path, one_line

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")


def read_columns(
    key: str, file: str | None, dataset_name: str | None, config: str | None, columns: list[str], optional: list[str]
) -> tuple[list[dict[str, Any]], dict]:
    """
    Rows of one file, or of one config of a data set, with nothing but the columns asked for.

    Args:
        key (`str`): the recipe's key the source comes from, for messages.
        file (`str`, *optional*): a JSON Lines, JSON, CSV or Parquet file; else `dataset_name` and `config` are read:
            a folder in the Hub's layout, or a name on the Hub (streamed). The split is `train`.
        columns, optional (`list[str]`): columns that must be there, and columns that may be.

    Returns:
        rows with the columns found, in file order, and a record of what was read: source, files, columns, rows and a
        SHA-256 of each column.

    Raises:
        RecipeError: what cannot be read or is missing, with the file and the nearest names.
    """
    if file is not None:
        paths = [Path(file)]
        if not os.path.isfile(file):  # unlike Path's own, it takes any text for a name
            raise RecipeError([f"{key}: there is no file {file!r}{_nearest_file(paths[0])}"])
        source = file
    elif os.path.isdir(dataset_name):
        paths = _config_files(key, dataset_name, config)
        source = f"{dataset_name}:{config}"
    else:
        paths = None
        source = f"{dataset_name}:{config} (Hub)"

    wanted = [*columns, *optional]
    rows: list[dict[str, Any]] = []
    seen: dict[str, None] = {}
    for names, row in _stream_hub(key, dataset_name, config) if paths is None else _read_files(key, paths, wanted):
        seen.update(dict.fromkeys(names))
        rows.append({name: row.get(name) for name in wanted})
    if not rows:
        raise RecipeError([f"{key}: {source} holds no rows"])
    errors = []
    for column in columns:
        if column not in seen:
            nearest = closest(column, seen)
            hint = f"; did you mean {nearest!r}?" if nearest else ""
            errors.append(f"{key}: {source} has no column {column!r}, only {', '.join(map(repr, seen))}{hint}")
    if errors:
        raise RecipeError(errors)
    found = [column for column in wanted if column in seen]
    rows = [{name: row[name] for name in found} for row in rows]
    record = {
        "source": source,
        "files": [str(path) for path in paths or []],
        "rows": len(rows),
        "columns": {column: _hash(key, column, [row[column] for row in rows]) for column in found},
    }
    return rows, record


def _hash(key: str, column: str, values: list) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise RecipeError([f"{key}: column {column!r} holds {half!r}, half of a surrogate pair"]) from error


def _nearest_file(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f"; the folder {str(path.parent)!r} does not exist"
    return nearest_path(path)


def config_names(key: str, dataset_name: str) -> list[str]:
    """Configs of a folder in the Hub's layout, or of a data set on the Hub."""
    try:
        return get_dataset_config_names(dataset_name)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError([f"{key}: {dataset_name!r} cannot be read as a data set: {one_line(error)}"]) from error


def _config_files(key: str, folder: str, config: str) -> list[Path]:
    configs = config_names(key, folder)
    if config not in configs:
        nearest = closest(config, configs)
        hint = f"did you mean {nearest!r}?" if nearest else f"it has {', '.join(configs)}"
        raise RecipeError([f"{key}: {folder} has no config {config!r}; {hint}"])
    # the builder only resolves file names here; preparing it would copy every column to a cache, answers included
    try:
        data_files = load_dataset_builder(folder, config).config.data_files
    except (OSError, ValueError) as error:
        raise RecipeError([f"{key}: config {config!r} of {folder}: {one_line(error)}"]) from error
    if "train" not in data_files:
        raise RecipeError([f"{key}: config {config!r} of {folder} has no split 'train', only {', '.join(data_files)}"])
    return [Path(file) for file in data_files["train"]]


def _stream_hub(key: str, name: str, config: str) -> Iterator[tuple[list[str], dict]]:
    try:
        for row in load_dataset(name, config, split="train", streaming=True):
            yield list(row), row
    except (OSError, ValueError) as error:
        raise RecipeError(
            [
                f"{key}: the data set {name!r} ({config}) is neither a folder nor can it be read from the Hub "
                f"({one_line(error)}); give the name of a local copy with --dataset_name"
            ]
        ) from error


def _read_files(key: str, paths: list[Path], wanted: list[str]) -> Iterator[tuple[list[str], dict]]:
    """Yields the column names and the values of each row."""
    for path in paths:
        if path.suffix not in FILE_TYPES:
            raise RecipeError([f"{key}: {path} is not one of {', '.join(FILE_TYPES)}"])
        try:
            if path.suffix == ".parquet":
                names = pyarrow.parquet.read_schema(path).names
                columns = [name for name in names if name in wanted]
                for row in pyarrow.parquet.read_table(path, columns=columns).to_pylist():
                    yield names, row
                continue
            with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
                yield from _read_csv(file, wanted) if path.suffix == ".csv" else _read_json(key, path, file)
        except RecipeError:
            raise
        except UnicodeDecodeError as error:
            raise RecipeError([f"{key}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8"]) from error
        except (pyarrow.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
            raise RecipeError([f"{key}: {path} cannot be read: {one_line(error)}"]) from error


def _read_csv(file, wanted: list[str]) -> Iterator[tuple[list[str], dict]]:
    reader = csv.DictReader(file, strict=True)
    for name in wanted:
        if (reader.fieldnames or []).count(name) > 1:
            raise csv.Error(f"the column {name!r} is there twice")
    for row in reader:
        if None in row:
            raise csv.Error(f"line {reader.line_num} has more cells than the header")
        # a cell that is missing or empty is no value
        yield list(row), {name: value or None for name, value in row.items()}


def _read_json(key: str, path: Path, file) -> Iterator[tuple[list[str], dict]]:
    start = next((line.lstrip()[0] for line in file if line.strip()), "")
    file.seek(0)
    try:
        # numbered from 1; a JSON array is one value, so its items are counted instead of lines
        array = json.load(file, object_pairs_hook=make_dict) if start == "[" else None
        values = _json_lines(file) if array is None else enumerate(array, 1)
        for number, value in values:
            if not isinstance(value, dict):
                raise RecipeError(
                    [f"{key}: {path}:{number}: a row must be a JSON object, not a {type(value).__name__}"]
                )
            yield list(value), value
    except json.JSONDecodeError as error:
        raise RecipeError([f"{key}: {path}: broken JSON: {error.msg} (line {error.lineno})"]) from error


def _json_lines(file) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=make_dict)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, "\n" * (number - 1) + line, number - 1 + error.pos) from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
