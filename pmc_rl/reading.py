"""Files, folders in the Hub's layout and the Hub: rows with nothing but the columns that are asked for.

Nothing is copied to a cache: local files are projected row by row, the Hub is streamed.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Container, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from datasets import get_dataset_config_names, load_dataset, load_dataset_builder

from pmc_rl.errors import RecipeError, nearest_path, one_line
from pmc_rl.values import make_dict

ADVICE = "; save it as JSON Lines, an object a row (pandas: to_json(path, orient='records', lines=True))"
KINDS = {str: "a text", bool: "a truth value", int: "a number", float: "a number", dict: "an object"}
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder(object_pairs_hook=make_dict)
Source = tuple[str, list[Path], Iterable[dict]]  # its name, its local files, its rows: their keys are all columns


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
    Rows of all sources, one after the other, with `columns`, and those of `optional` that are there; and a record of
    what was read: source, files, number of rows, and a SHA-256 of each column. A column is a name, or a path inside of
    one (`messages.0.content`).

    Sources are files, else splits of configs of a data set: a folder in the Hub's layout, or a name on the Hub. `key`
    is the recipe's, for errors ([`RecipeError`]): what cannot be read or is missing, with the nearest names.
    """
    wanted = list(dict.fromkeys([*columns, *optional]))
    if file is None:
        sources = [_config_source(key, dataset_name, *pair, wanted) for pair in product(listed(config), listed(split))]
    else:
        sources = [(name, [Path(name)], _read_files(key, [Path(name)], wanted)) for name in listed(file)]
    names = [name for name, _, _ in sources]
    rows, found, errors = [], set(), []
    for name, _, source_rows in sources:
        if names.count(name) > 1:
            raise RecipeError([f"{key}: {name} is given twice"])
        there: dict[str, None] = {}  # columns in the order of the source
        before = len(rows)
        for row in source_rows:
            there |= dict.fromkeys(row)
            rows.append({column: _value_at(row, column) for column in wanted})
        if len(rows) == before:
            raise RecipeError([f"{key}: {name} holds no rows"])
        is_chat = not {"messages", "conversations", "role"}.isdisjoint(there)
        advice = "; name parts of a chat by path, such as messages.0.content and messages.1.content" if is_chat else ""
        only = f"only {', '.join(map(repr, there))}{advice}"
        errors += [f"{key}: {name} has no column {column!r}, {only}" for column in columns if not _has(there, column)]
        found |= there.keys()
    if errors:
        raise RecipeError(errors)
    present = [column for column in wanted if _has(found, column)]
    # NaN, which differs from itself, is no value
    rows = [{column: row[column] if row[column] == row[column] else None for column in present} for row in rows]
    return rows, {
        "source": " + ".join(names),
        "files": [str(path) for _, paths, _ in sources for path in paths],
        "rows": len(rows),
        "columns": {column: _hash(key, column, [row[column] for row in rows]) for column in present},
    }


def _root(column: str) -> str:
    return column.partition(".")[0]


def _has(columns: Container[str], column: str) -> bool:
    return column in columns or _root(column) in columns


def _value_at(row: dict[str, Any], column: str) -> Any:
    """
    What a row has in a column, or at a path of names and numbers (from 0) inside of one; None where it has nothing.

    >>> _value_at({"messages": [{"role": "user", "content": "Who?"}]}, "messages.0.content")
    'Who?'
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _hash(key: str, column: str, values: list) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r}, half of a surrogate pair"
        raise RecipeError([f"{key}: column {column!r} holds {half}"]) from error


def kind_of(value: Any) -> str:
    """What a value is, without showing it: it may be what is to be forgotten."""
    if value is None:
        return "nothing"
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    if isinstance(value, list):
        return f"a list of {', '.join(sorted({kind_of(item) for item in value})) or 'nothing'}"
    return KINDS.get(type(value), type(value).__name__)


def _config_source(key: str, dataset_name: str, config: str, split: str, wanted: list[str]) -> Source:
    name = f"{dataset_name}:{config}" + (f":{split}" if split != "train" else "")
    if not os.path.isdir(dataset_name):
        return f"{name} (Hub)", [], _stream_hub(key, dataset_name, config, split)
    where = f"{key}: config {config!r} of {dataset_name}"
    try:
        # the builder only resolves file names here; preparing it would copy every column to a cache, answers included
        files = load_dataset_builder(dataset_name, config).config.data_files
    except (OSError, ValueError, yaml.YAMLError) as error:
        configs = config_names(key, dataset_name)
        why = one_line(error) if config in configs else f"it has only {', '.join(configs)}"
        raise RecipeError([f"{where}: {why}"]) from error
    if split not in files:
        raise RecipeError([f"{where} has no split {split!r}, only {', '.join(files)}"])
    paths = [Path(file) for file in files[split]]
    return name, paths, _read_files(key, paths, wanted)


def config_names(key: str, dataset_name: str) -> list[str]:
    """Configs of a folder in the Hub's layout, or of a data set on the Hub."""
    try:
        return get_dataset_config_names(dataset_name)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError([f"{key}: {dataset_name!r} cannot be read as a data set: {one_line(error)}"]) from error


def _stream_hub(key: str, name: str, config: str, split: str) -> Iterator[dict]:
    try:
        yield from load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        why = f"is neither a folder nor can it be read from the Hub ({one_line(error)})"
        advice = "give the name of a local copy with --dataset_name"
        raise RecipeError([f"{key}: the data set {name!r} ({config}) {why}; {advice}"]) from error


def _read_files(key: str, paths: list[Path], wanted: list[str]) -> Iterator[dict]:
    readers = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    for path in paths:
        read = readers.get(path.suffix.lower())
        if not os.path.isfile(path):  # unlike the method of a Path, for any text
            raise RecipeError([f"{key}: there is no file {str(path)!r}{nearest_path(path)}"])
        if read is None:
            raise RecipeError([f"{key}: {path} is not one of {', '.join(readers)}"])
        try:
            yield from read(path, wanted)
        except UnicodeDecodeError as error:
            raise RecipeError([f"{key}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8"]) from error
        except json.JSONDecodeError as error:
            raise RecipeError([f"{key}: {path}: broken JSON: {error.msg} (line {error.lineno})"]) from error
        except (pyarrow.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
            raise RecipeError([f"{key}: {path} cannot be read: {one_line(error)}"]) from error


def _read_parquet(path: Path, wanted: list[str]) -> Iterator[dict]:
    names = pyarrow.parquet.read_schema(path).names
    needed = {*wanted, *map(_root, wanted)}
    table = pyarrow.parquet.read_table(path, columns=[name for name in names if name in needed])
    yield from (dict.fromkeys(names) | row for row in table.to_pylist())


def _read_csv(path: Path, wanted: list[str]) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for name in wanted:
            if (reader.fieldnames or []).count(name) > 1:
                raise csv.Error(f"the column {name!r} is there twice")
        for row in reader:
            if None in row:
                raise csv.Error(f"line {reader.line_num} has more cells than the header")
            yield {name: value or None for name, value in row.items()}  # a missing or empty cell is no value


def _read_json(path: Path, wanted: list[str]) -> Iterator[dict]:
    """JSON Lines, an array, or one object that holds the rows; how the file is named does not matter."""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read()
    values, end = [], 0
    while (start := SPACE.match(text, end).end()) < len(text):
        value, end = DECODER.raw_decode(text, start)
        values.append(value)
    if len(values) == 1 and isinstance(values[0], list | dict):
        values = values[0] if isinstance(values[0], list) else _rows_of_object(values[0], wanted)
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"row {number} of {len(values)} is {kind_of(value)}, not a JSON object{ADVICE}")
        yield value


def _rows_of_object(whole: dict[str, Any], wanted: list[str]) -> list:
    """
    Rows of a file that is one JSON object: one row, the list of rows under one of its keys, columns as lists, or what
    pandas' `to_json()` writes, columns or rows by number.
    """
    kinds = {type(value) for value in whole.values()}
    names = ", ".join(map(repr, whole))
    if any(_has(whole, column) for column in wanted):
        if kinds not in ({list}, {dict}) or set(wanted).isdisjoint(whole):
            return [whole]
        columns = [column if kinds == {dict} else dict(enumerate(column)) for column in whole.values()]
        if any(column.keys() != columns[0].keys() for column in columns):
            raise ValueError(f"its columns {names} do not have the same rows{ADVICE}")
        return [{name: column[i] for name, column in zip(whole, columns, strict=True)} for i in columns[0]]
    if kinds == {dict}:
        return list(whole.values())
    lists = [value for value in whole.values() if isinstance(value, list) and {type(row) for row in value} == {dict}]
    if len(lists) != 1 and kinds and kinds <= {list, dict}:
        raise ValueError(f"it is one JSON object of {names}, not a list of rows{ADVICE}")
    return lists[0] if len(lists) == 1 else [whole]
