"""Errors of a recipe: all problems at once, one line each, with the nearest name."""

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RecipeError(ValueError):
    """All that is wrong with a recipe: `errors` holds one line for each problem, at most 600 characters long."""

    def __init__(self, errors: list[str]):
        self.errors = [shorten(line, 600) for line in errors]
        super().__init__("\n".join(self.errors))


@contextmanager
def all_problems() -> Iterator[Callable[..., Any]]:
    """`with all_problems() as check: rows = check(read, args)`: one error at the end has the problems of all calls."""
    errors = []

    def check(function: Callable[..., Any], *args, **kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except RecipeError as error:
            errors.extend(error.errors)

    yield check
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))


@contextmanager
def exit_on_recipe_error() -> Iterator[None]:
    """Prints each problem of a [`RecipeError`] to stderr and exits with code 2, without a traceback."""
    try:
        yield
    except RecipeError as error:
        for line in error.errors:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def nearest_path(path: Path) -> str:
    """`; did you mean '...'?` with the entry of the same folder that has the nearest other name, else nothing."""
    names = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / nearest[0])!r}?" if nearest and nearest[0] != path.name else ""


def did_you_mean(word: Any, names: Iterable[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(word, names, n=1) if isinstance(word, str) else []
    return f" Did you mean {prefix + nearest[0]!r}?" if nearest else ""


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def show(value: Any) -> str:
    """A value as JSON, at most 100 characters of it."""
    return shorten(json.dumps(value, ensure_ascii=False), 100)


def one_line(text: object) -> str:
    """A message of a library on one line, at most 300 characters of it; the name of an exception without message."""
    return shorten(" ".join(str(text).split()) or type(text).__name__, 300)
