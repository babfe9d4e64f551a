"""Files, folders in the Hub's layout and the Hub: rows with nothing but the columns that are asked for.

Nothing is copied to a cache: local files are projected row by row, the Hub is streamed.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from datasets import get_dataset_config_names, load_dataset, load_dataset_builder

from pmc_rl.errors import RecipeError, closest, nearest_path, one_line
from pmc_rl.values import make_dict

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ADVICE = "; save it as JSON Lines, an object a row (pandas: to_json(path, orient='records', lines=True))"
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=make_dict)


def listed(value: str | list[str] | None) -> list[str]:
    """A key's value that may be one or several."""
    return [] if value is None else [value] if isinstance(value, str) else value


def read_columns(
    key: str,
    file: str | list[str] | None,
    dataset_name: str | None,
    config: str | list[str] | None,
    columns: list[str],
    optional: list[str],
    split: str | list[str] = "train",
) -> tuple[list[dict[str, Any]], dict]:
    """
    Rows of files, or of configs of a data set, one after the other, with nothing but the columns asked for.

    Args:
        key (`str`): the recipe's key the source comes from, for messages.
        file (`str` or `list[str]`, *optional*): JSON Lines, JSON, CSV or Parquet; else `dataset_name` and `config`
            are read: a folder in the Hub's layout, or a name on the Hub (streamed).
        columns, optional (`list[str]`): columns that must be there, and columns that may be.
        split (`str` or `list[str]`): of each config; a file has none.

    Returns:
        rows with the columns found, in the order of the sources, and a record of what was read: source, files,
        columns, rows and a SHA-256 of each column.

    Raises:
        RecipeError: what cannot be read or is missing, with the file and the nearest names.
    """
    if file is not None:
        parts = [(name, _file_paths(key, name), None) for name in listed(file)]
    else:
        parts = [_config_part(key, dataset_name, *pair) for pair in product(listed(config), listed(split))]
    sources = [source for source, _, _ in parts]
    twice = next((source for source in sources if sources.count(source) > 1), None)
    if twice is not None:
        raise RecipeError([f"{key}: {twice} is given twice"])
    wanted = list(dict.fromkeys([*columns, *optional]))
    rows: list[dict[str, Any]] = []
    found: set[str] = set()
    errors = []
    for source, paths, stream in parts:
        seen: dict[str, None] = {}
        before = len(rows)
        for names, row in _read_files(key, paths, wanted) if stream is None else stream:
            seen.update(dict.fromkeys(names))
            rows.append({name: None if row.get(name) != row.get(name) else row.get(name) for name in wanted})  # NaN
        if len(rows) == before:
            raise RecipeError([f"{key}: {source} holds no rows"])
        errors += [f"{key}: {source} has {_no_column(column, seen)}" for column in columns if column not in seen]
        found.update(seen)
    if errors:
        raise RecipeError(errors)
    present = [column for column in wanted if column in found]
    rows = [{name: row[name] for name in present} for row in rows]
    record = {
        "source": " + ".join(sources),
        "files": [str(path) for _, paths, _ in parts for path in paths],
        "rows": len(rows),
        "columns": {column: _hash(key, column, [row[column] for row in rows]) for column in present},
    }
    return rows, record


def _no_column(column: str, seen: Iterable[str]) -> str:
    nearest = closest(column, seen)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    if not {"messages", "conversations", "role"}.isdisjoint(seen):
        hint = "; chats are not taken apart: write the question and the answer into a column each"
    return f"no column {column!r}, only {', '.join(map(repr, seen))}{hint}"


def kind_of(value: Any) -> str:
    """What a value is, without showing it: it may be what is to be forgotten."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        nouns = {_noun(item) for item in value}
        return f"a list of {len(value)} {nouns.pop() if len(nouns) == 1 else 'value'}{'s' * (len(value) != 1)}"
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    return f"{'an' if isinstance(value, dict) else 'a'} {_noun(value)}"


def _noun(value: Any) -> str:
    nouns = {str: "text", bool: "truth value", int: "number", float: "number", dict: "object"}
    return nouns.get(type(value), type(value).__name__)


def _hash(key: str, column: str, values: list) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise RecipeError([f"{key}: column {column!r} holds {half!r}, half of a surrogate pair"]) from error


def _file_paths(key: str, file: str) -> list[Path]:
    path = Path(file)
    if os.path.isfile(file):  # unlike Path's own, it takes any text for a name
        return [path]
    nowhere = f"; the folder {str(path.parent)!r} does not exist"
    raise RecipeError(
        [f"{key}: there is no file {file!r}{nearest_path(path) if os.path.isdir(path.parent) else nowhere}"]
    )


def _config_part(key: str, dataset_name: str, config: str, split: str) -> tuple[str, list[Path], Iterator | None]:
    source = f"{dataset_name}:{config}" + (f":{split}" if split != "train" else "")
    if os.path.isdir(dataset_name):
        return source, _config_files(key, dataset_name, config, split), None
    return f"{source} (Hub)", [], _stream_hub(key, dataset_name, config, split)


def config_names(key: str, dataset_name: str) -> list[str]:
    """Configs of a folder in the Hub's layout, or of a data set on the Hub."""
    try:
        return get_dataset_config_names(dataset_name)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError([f"{key}: {dataset_name!r} cannot be read as a data set: {one_line(error)}"]) from error


def _config_files(key: str, folder: str, config: str, split: str) -> list[Path]:
    # the builder only resolves file names here; preparing it would copy every column to a cache, answers included
    try:
        data_files = load_dataset_builder(folder, config).config.data_files
    except (OSError, ValueError, yaml.YAMLError) as error:
        configs = config_names(key, folder)
        if config in configs:
            raise RecipeError([f"{key}: config {config!r} of {folder}: {one_line(error)}"]) from error
        nearest = closest(config, configs)
        hint = f"did you mean {nearest!r}?" if nearest else f"it has {', '.join(configs)}"
        raise RecipeError([f"{key}: {folder} has no config {config!r}; {hint}"]) from error
    if split not in data_files:
        raise RecipeError(
            [f"{key}: config {config!r} of {folder} has no split {split!r}, only {', '.join(data_files)}"]
        )
    return [Path(file) for file in data_files[split]]


def _stream_hub(key: str, name: str, config: str, split: str) -> Iterator[tuple[list[str], dict]]:
    try:
        for row in load_dataset(name, config, split=split, streaming=True):
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
        suffix = path.suffix.lower()
        if suffix not in FILE_TYPES:
            hint = "; unpack it first" if suffix in PACKED else ""
            raise RecipeError([f"{key}: {path} is not one of {', '.join(FILE_TYPES)}{hint}"])
        try:
            if suffix == ".parquet":
                names = pyarrow.parquet.read_schema(path).names
                columns = [name for name in names if name in wanted]
                for row in pyarrow.parquet.read_table(path, columns=columns).to_pylist():
                    yield names, row
                continue
            with open(path, encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as file:
                yield from _read_csv(file, wanted) if suffix == ".csv" else _read_json(key, path, file, wanted)
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


def _read_json(key: str, path: Path, file, wanted: list[str]) -> Iterator[tuple[list[str], dict]]:
    """JSON Lines, an array, or one object that holds the rows; how the file is named does not matter."""
    text, starts, values, end = file.read(), [], [], 0
    while (start := _SPACE.match(text, end).end()) < len(text):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise RecipeError([f"{key}: {path}: broken JSON: {error.msg} (line {error.lineno})"]) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {_line(text, start)}: {error}") from error
        starts.append(start)
        values.append(value)
    is_whole = len(values) == 1 and isinstance(values[0], list | dict)
    if is_whole:
        values = values[0] if isinstance(values[0], list) else _rows_of_object(values[0], wanted)
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            number = i + 1 if is_whole else _line(text, starts[i])
            raise RecipeError([f"{key}: {path}:{number}: a row must be a JSON object, not {kind_of(value)}{ADVICE}"])
        yield list(value), value


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _rows_of_object(whole: dict[str, Any], wanted: list[str]) -> list:
    """
    Rows of a file that is one JSON object: one row, the list of rows under one of its keys, columns as lists, or what
    pandas' `to_json()` writes, columns or rows by number.
    """
    columns, by_column = list(whole.values()), not set(wanted).isdisjoint(whole)
    if whole and all(isinstance(column, dict) for column in columns):
        if not by_column:
            return columns
        if any(column.keys() != columns[0].keys() for column in columns):
            raise ValueError(f"its columns {', '.join(map(repr, whole))} do not have the same rows{ADVICE}")
        columns = [list(column.values()) for column in columns]
    if by_column:
        if not all(isinstance(column, list) for column in columns):
            return [whole]
        if len({len(column) for column in columns}) > 1:
            sizes = ", ".join(f"{name!r} {len(column)}" for name, column in zip(whole, columns, strict=True))
            raise ValueError(f"its columns do not have the same number of rows: {sizes}")
        return [dict(zip(whole, cells, strict=True)) for cells in zip(*columns, strict=True)]
    lists = [name for name in whole if isinstance(whole[name], list) and {type(row) for row in whole[name]} == {dict}]
    if len(lists) > 1:
        raise ValueError(f"it holds several lists of rows ({', '.join(lists)}); save each as a file of its own")
    if not lists and whole and all(isinstance(column, list | dict) for column in columns):
        raise ValueError(f"it is one JSON object of {', '.join(map(repr, whole))}, not a list of rows{ADVICE}")
    return whole[lists[0]] if lists else [whole]
