"""YAML and command-line words to typed values, and what does not fit. Knows no key of ours."""

import json
import operator
import re
import sys
from collections.abc import Iterable
from enum import EnumMeta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from pmc_rl.errors import RecipeError, did_you_mean, nearest_path, one_line, show

KINDS = {int: "an int", float: "a finite float", bool: "true or false", str: "a str", list: "a list"}
KINDS |= {dict: 'a mapping such as {"key": 1}'}
LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def fits(value: Any, limits: dict[str, float]) -> bool:
    """Whether a number, or each of a list, is within its limits. Texts and null pass: whether they may stand there,
    the type says."""
    numbers = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int | float)]
    return all(LIMITS[name](number, limit) for number in numbers for name, limit in limits.items())


def describe(limits: dict[str, float]) -> str:
    return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())


def read_yaml(path: str) -> list[tuple[str, int, yaml.Node]]:
    """The keys of a file with their lines and values."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            root = yaml.compose(file, yaml.BaseLoader)
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError([f"{path} cannot be read: {one_line(error)}{nearest_path(Path(path))}"]) from None
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise RecipeError([f"{path} is not a mapping of names; write a recipe as lines of key: value"])
    return [(key.value, key.start_mark.line + 1, value) for key, value in root.value]


def construct(node: yaml.Node) -> Any:
    if node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
        raise ValueError(f"the tag {node.tag!r} is not supported")
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else read_scalar(node.value)  # a style is a kind of quotes
    if isinstance(node, yaml.SequenceNode):
        return [construct(item) for item in node.value]
    return make_dict((construct(key), construct(value)) for key, value in node.value)


def make_dict(items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in items:
        if not isinstance(key, str):
            raise ValueError(f"the key {show(key)} is not a str (put it in quotes)")
        if key in result:
            raise ValueError(f"the key {key!r} is given twice")
        result[key] = value
    return result


def read_scalar(text: str) -> Any:
    """As in YAML 1.2. In PyYAML's 1.1, 1e-5 is a str, no a bool, 010 is 8 and 1:30 is 90."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return float(text)
    return text


def read_words(words: list[str], hint: Any) -> list[Any]:
    """What the words of an option may mean, the likeliest first."""
    if not words:
        if mismatch(True, hint):
            raise ValueError("needs a value")
        return [True]
    kinds = {get_origin(arm) or arm for arm in _arms(hint)}
    readings = [[read_scalar(word) for word in words], words]
    if len(words) > 1:
        return readings
    [word] = words
    if {"[": list, "{": dict}.get(word.lstrip()[:1]) in kinds:
        value = _read_collection(word)
        if not isinstance(value, str):
            return [value, word]
    return [read_scalar(word), word, *(readings if list in kinds else [])]


def _read_collection(text: str) -> Any:
    """A list or mapping as JSON, or as recipes write it, in YAML; a text that is neither stays a text."""
    try:
        return json.loads(text, object_pairs_hook=make_dict)
    except json.JSONDecodeError:
        try:
            return construct(yaml.compose(text, yaml.BaseLoader))
        except yaml.YAMLError:
            return text


def _arms(hint: Any) -> list[Any]:
    """The types of a union, or the type itself."""
    arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # TRL writes `dict | str` and `SomeEnum | str` for argparse; no other str has a meaning there.
    closed = any((get_origin(arm) or arm) is dict or isinstance(arm, EnumMeta) for arm in arms)
    return [arm for arm in arms if not (closed and arm is str)]


def mismatch(value: Any, hint: Any) -> str | None:
    """Says why a value does not fit a type hint; None if it fits."""
    problems = {arm: _mismatch_arm(value, arm) for arm in _arms(hint)}
    if None in problems.values():
        return None
    return "; ".join(problem for arm, problem in problems.items() if arm is not NoneType)


def _mismatch_arm(value: Any, arm: Any) -> str | None:
    kind, args = get_origin(arm) or arm, get_args(arm)
    if isinstance(kind, EnumMeta):
        kind, args = Literal, tuple(item.value for item in kind)
    if kind is Literal:
        if any(type(value) is type(choice) and value == choice for choice in args):
            return None
        return f"{show(value)} is not one of {', '.join(map(str, args))}.{did_you_mean(value, args)}"
    is_kind = kind is Any or type(value) is kind  # exactly: true is no int
    if kind is float:
        is_kind = type(value) in (int, float) and abs(value) <= sys.float_info.max  # also says no to a NaN
    if not is_kind:
        advice = ""
        if kind is str and isinstance(value, int | float):
            advice = " (put it in quotes)"
        elif kind is list and value is not None:
            advice = f" (write [{show(value)}])"
        return f"{show(value)} is not {KINDS.get(kind, kind)}{advice}"
    if kind in (list, dict) and args:
        items = value if kind is list else value.values()
        return next((problem for item in items if (problem := mismatch(item, args[-1]))), None)
    return None
