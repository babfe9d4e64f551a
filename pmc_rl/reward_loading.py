"""What the names of rewards stand for: functions, classes and makers of rewards by dotted name, models by folder."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trl.import_utils import is_math_verify_available

from pmc_rl.errors import RecipeError, did_you_mean, one_line
from pmc_rl.reward_model import RewardModel
from pmc_rl.scoring import CONTRACT, RewardFunction


def load_reward_functions(
    names: list[str],
    kwargs: dict[str, dict],
    weights: list[float] | None,
    max_completion_length: int,
    original_log_likelihood: Callable[[list, list[list[int]]], list[float]] | None = None,
    floors: dict[str, float] | None = None,
    reward_columns: list[str] | None = None,
) -> list[RewardFunction]:
    """
    Finds rewards by name and binds their keywords; one RecipeError tells all mistakes.

    A folder, or a name with a slash, is a [`RewardModel`]. A dotted name is a reward, which gets its keywords at every
    call, or makes one when called with them: a class, or a function that takes neither `**kwargs` nor what rewards are
    called with, such as TRL's `get_repetition_penalty_reward`. The recipe's `max_completion_length`, and for what
    makes a reward `original_log_likelihood`, are filled in where they are parameters and not given.
    """
    # Python puts the folder of the script first, where our config.py or data.py would hide a file of the user's
    package = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != package]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    passed = CONTRACT.union(reward_columns or [])
    offered = {"max_completion_length": max_completion_length, "original_log_likelihood": original_log_likelihood}
    rewards, errors = [], []
    for name, label, weight in zip(names, _short_names(names), weights or [1.0] * len(names), strict=True):
        try:
            reward = _load(name, kwargs.get(name, {}), offered, passed)
        except RecipeError as error:
            errors += error.errors
            continue
        if any(label == other.name for other in rewards):
            errors.append(f"reward_funcs: {name!r} is given twice")  # in another spelling
        rewards.append(replace(reward, name=label, weight=weight, floor=(floors or {}).get(name)))
    if errors:
        raise RecipeError(errors)
    return rewards


def _names_model(name: str) -> bool:
    return "/" in name or os.path.isdir(name)


def _short_names(names: list[str]) -> list[str]:
    """The last part of each name, with as many parts before it as tell it from the others."""
    split = [("/", Path(name).parts or (name,)) if _names_model(name) else (".", name.split(".")) for name in names]
    tails = [[joint.join(parts[i:]) for i in range(len(parts))] for joint, parts in split]
    while clashing := [tail for tail in tails if len(tail) > 1 and [other[-1] for other in tails].count(tail[-1]) > 1]:
        for tail in clashing:
            tail.pop()
    return [tail[-1] for tail in tails]


def _load(name: str, kwargs: dict, offered: dict[str, Any], passed: set[str]) -> RewardFunction:
    """The reward of one name, still without label, weight and floor."""
    if _names_model(name):
        if kwargs:
            raise RecipeError([f"reward_kwargs: {name} is a model and has no keywords"])
        return RewardFunction(name, RewardModel(name), 1.0, None, True)
    target = _import_reward(name)
    parameters, takes_any = _parameters(name, target)
    makes_reward = inspect.isclass(target) or not (takes_any or passed & parameters.keys())
    asks_original = makes_reward and "original_log_likelihood" in parameters
    if not makes_reward:
        offered = {"max_completion_length": offered["max_completion_length"]}
    kwargs = {key: value for key, value in offered.items() if key in parameters} | kwargs
    for key in kwargs.keys() - parameters.keys():  # a function's **kwargs would swallow it
        raise RecipeError([f"reward_kwargs: {name} has no keyword {key!r}; it takes {', '.join(parameters)}"])
    reward = target
    if makes_reward:
        try:
            reward = target(**kwargs)
        except Exception as error:  # it is the user's code
            why = "" if inspect.isclass(target) else " (what takes no argument of a reward, nor **kwargs, makes one)"
            problem = f"{name} cannot be built with {kwargs}: {one_line(error)}{why}"
            raise RecipeError([f"reward_kwargs: {problem}"]) from error
        if not callable(reward):
            problem = f"{name} makes a {type(reward).__name__}, no reward: it has no __call__"
            raise RecipeError([f"reward_funcs: {problem}"])
    func = reward if makes_reward or not kwargs else partial(reward, **kwargs)
    needed, takes_any = _parameters(name, func)
    if not takes_any:
        raise RecipeError(
            [f"reward_funcs: {name}{inspect.signature(func)} does not take **kwargs, for all that rewards get; add it"]
        )
    for key, parameter in needed.items():
        if not makes_reward and key in passed & kwargs.keys():
            raise RecipeError([f"reward_kwargs: {name}: {key!r} comes with the samples, so it cannot be given"])
        if parameter.default is parameter.empty and key not in passed:
            advice = "name the column in reward_columns, or give it in reward_kwargs"
            raise RecipeError([f"reward_funcs: {name} needs {key!r}: {advice}"])
    max_reward, stationary = getattr(reward, "max_reward", None), getattr(reward, "stationary", True)
    return RewardFunction(name, func, 1.0, max_reward, stationary, asks_original=asks_original)


def _parameters(name: str, func: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """What can be given by keyword, and whether anything else can."""
    try:
        parameters = inspect.signature(func).parameters
    except ValueError as error:
        raise RecipeError([f"reward_funcs: {name} cannot be used: {one_line(error)}"]) from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {key: parameter for key, parameter in parameters.items() if parameter.kind in kinds}, takes_any


def _import_reward(name: str) -> Callable:
    module_name, _, attribute = name.rpartition(".")
    if not module_name or "" in name.split("."):
        expected = "a dotted name such as my_file.my_reward (of my_file.py here), nor the folder of a reward model"
        raise RecipeError([f"reward_funcs: {name!r} is not {expected}"])
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise RecipeError([f"reward_funcs: {module_name} imports {error.name}, which is not installed"]) from error
        shipped = [f"rewards.{path.stem}" for path in (Path(__file__).parents[1] / "rewards").glob("*.py")]
        hint = did_you_mean(module_name, [*shipped, *(path.stem for path in Path.cwd().glob("*.py"))])
        problem = f"there is no module {error.name!r} on sys.path or in {os.getcwd()}.{hint}"
        raise RecipeError([f"reward_funcs: {name}: {problem}"]) from error
    except (Exception, SystemExit) as error:  # it is the user's code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}: {type(error).__name__}: {one_line(error)}"
        raise RecipeError([f"reward_funcs: {module_name} cannot be imported ({where})"]) from error
    try:
        target = getattr(module, attribute)
    except AttributeError:
        public = [key for key in dir(module) if not key.startswith("_")]
        hint = did_you_mean(attribute, public, f"{module_name}.") or f" It has {', '.join(public)}"
        raise RecipeError([f"reward_funcs: {module_name} has no function or class {attribute!r}.{hint}"]) from None
    if not callable(target):
        raise RecipeError([f"reward_funcs: {name} is a {type(target).__name__}, not a function or class"])
    # TRL's would tell at their first call, which is after the model's answers
    if inspect.getmodule(target) is sys.modules.get("trl.rewards.accuracy_rewards") and not is_math_verify_available():
        raise RecipeError([f"reward_funcs: {name} needs math-verify: pip install 'math-verify[antlr4_13_2]'"])
    return target
