"""YAML and command-line words to typed values, and messages about what does not fit. Knows no key of ours."""

import difflib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import MISSING, Field
from enum import EnumMeta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from pmc_rl.errors import RecipeError, did_you_mean, one_line, show


def read_yaml(path: str) -> list[tuple[yaml.Node, yaml.Node]]:
    try:
        root = _compose(Path(path).read_text(encoding="utf-8-sig"))
        if isinstance(root, yaml.MappingNode):
            return root.value
        problem = f": {'empty' if root is None else 'not a mapping'}; write a recipe as lines of key: value"
    except FileNotFoundError:
        recipes = [file.name for file in Path(path).parent.glob("*.y*ml")]
        nearest = ", ".join(difflib.get_close_matches(Path(path).name, recipes, n=3, cutoff=0.4))
        problem = f": no such file in {Path(path).parent.absolute()}" + (f"; nearest: {nearest}" if nearest else "")
    except UnicodeDecodeError as error:
        problem = f": not UTF-8 (byte {error.start}); save it as UTF-8"
    except yaml.MarkedYAMLError as error:
        problem = f":{error.problem_mark.line + 1}: {', '.join(filter(None, (error.context, error.problem)))}"
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        problem = f": cannot be read: {error}"
    raise RecipeError([path + one_line(problem)])


def _compose(text: str) -> yaml.Node | None:
    """Nodes with line numbers; constructs nothing."""
    for event in yaml.parse(text, yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent):  # could make a value endless
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=event.start_mark)
    return yaml.compose(text, yaml.BaseLoader)


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


def _read_collection(text: str) -> Any:
    """A list or mapping as JSON, or as recipes write it, in YAML; a text that is neither stays a text."""
    try:
        return json.loads(text, object_pairs_hook=make_dict)
    except json.JSONDecodeError:
        try:
            return construct(_compose(text))
        except yaml.YAMLError:
            return text


def read_words(words: list[str], hint: Any) -> list[Any]:
    """What the words of an option may mean, the likeliest first."""
    if not words:
        if mismatch(True, hint):
            raise ValueError("needs a value")
        return [True]
    kinds = {get_origin(arm) or arm for arm in arms(hint)}
    opening = tuple(bracket for bracket, kind in (("[", list), ("{", dict)) if kind in kinds)
    if len(words) == 1 and words[0].lstrip().startswith(opening):
        value = _read_collection(words[0])
        if not isinstance(value, str):
            return [value, words[0]]
    values = [read_scalar(word) for word in words]
    alone = [values[0], words[0]] if len(words) == 1 else []
    return alone + [values, words] if list in kinds or not alone else alone


def arms(hint: Any) -> list[Any]:
    arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # TRL writes `dict | str` and `SomeEnum | str` for argparse; no other str has a meaning there.
    closed = any((get_origin(arm) or arm) is dict or isinstance(arm, EnumMeta) for arm in arms)
    return [arm for arm in arms if not (closed and arm is str)]


def mismatch(value: Any, hint: Any) -> str | None:
    """Says why a value does not fit a type hint; None if it fits."""
    problems = {arm: _mismatch_arm(value, arm) for arm in arms(hint)}
    if None in problems.values():
        return None
    return "; ".join(problem for arm, problem in problems.items() if arm is not NoneType)


def _mismatch_arm(value: Any, arm: Any) -> str | None:
    kind, args = get_origin(arm) or arm, get_args(arm)
    if isinstance(kind, EnumMeta):
        kind, args = Literal, tuple(item.value for item in kind)
    if kind is Literal:
        return None if any(type(value) is type(x) and value == x for x in args) else no_choice(value, args)
    if kind in (list, dict) and isinstance(value, kind):
        items = value if kind is list else value.values()
        return next((problem for item in items if args and (problem := mismatch(item, args[-1]))), None)
    if kind is int and type(value) is int and not -(2**63) <= value < 2**63:
        return f"{show(value)} is not an int of 64 bits"
    if kind is Any or type(value) is kind and kind is not float:
        return None
    if kind is float and type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max:
        return None
    advice = ""
    if kind is str and isinstance(value, int | float):
        advice = " (put it in quotes)"
    elif kind is list and value is not None:
        advice = f" (write [{show(value)}])"
    names = {int: "an int", float: "a finite float", bool: "true or false", str: "a str", list: "a list"}
    names[dict] = 'a mapping such as {"key": 1}'
    return f"{show(value)} is not {names.get(kind, kind)}{advice}"


def no_choice(value: Any, choices: Iterable[Any]) -> str:
    return f"{show(value)} is not one of {', '.join(map(str, choices))}.{did_you_mean(value, choices)}"


def default(key: Field) -> Any:
    return key.default if key.default_factory is MISSING else key.default_factory()
