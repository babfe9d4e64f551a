"""Reward names to callables, and completions to rewards, by the contract of TRL's GRPOTrainer."""

import asyncio
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from trl.import_utils import is_math_verify_available

from pmc_rl.errors import RecipeError, closest, one_line
from pmc_rl.reward_model import RewardModel

# What every reward is called with: TRL's contract, and the columns all our forget rows have.
CONTRACT = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
CONTRACT += ("original_completion", "pmc_id")


@dataclass
class RewardFunction:
    """
    A reward with what the pool has to know about it.

    `func` has the signature of TRL's GRPOTrainer. `max_reward` and `stationary` are plain attributes that a reward may
    carry: the largest value it can give, and whether a text always gets the same reward (default: yes). `floor` is the
    least reward that passes the gate, `asks_original` whether the model before unlearning must be kept for it.
    """

    name: str
    func: Callable[..., Any]
    weight: float
    max_reward: float | None
    stationary: bool
    floor: float | None = None
    asks_original: bool = False


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
    Finds rewards by name, binds their keywords and collects every mistake.

    A name is a folder or has a slash: a sequence-classification model, as in TRL, see [`RewardModel`]; or it is the
    dotted name of a function, which gets its keywords at every call, or of what makes a reward, which is called once
    with them: a class, whose instance is the reward, or a function that takes neither `**kwargs` nor anything rewards
    are called with, such as TRL's `get_repetition_penalty_reward`. A parameter called `max_completion_length` is
    filled with the recipe's value where the recipe's `reward_kwargs` is silent, and `original_log_likelihood` of what
    makes a reward with the function given here. The working directory is appended to `sys.path`, so
    `my_file.my_reward` is found.

    Returns:
        `list[RewardFunction]`: in the order of `names`; each is called by the last part of its name, with the parts
        before it where two have the same last part.

    Raises:
        RecipeError: one line for each name that is not there and each keyword that does not fit.
    """
    # Python puts the folder of the script first, where our config.py or data.py would hide a file of the user's
    package = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != package]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    rewards, errors = [], []
    given = {"max_completion_length": max_completion_length, "original_log_likelihood": original_log_likelihood}
    passed = {*CONTRACT, *(reward_columns or [])}
    weights = weights or [1.0] * len(names)
    for name, label, weight in zip(names, _short_names(names), weights, strict=True):
        try:
            if any(reward.name == label for reward in rewards):
                raise RecipeError([f"reward_funcs: {name!r} is given twice"])  # another spelling of the same path
            own = dict(kwargs.get(name, {}))
            if _names_model(name):
                reward = _load_model(name, own, weight)
            else:
                reward = _load_one(name, own, weight, given, passed)
        except RecipeError as error:
            errors += error.errors
        else:
            rewards.append(replace(reward, name=label, floor=(floors or {}).get(name)))
    if errors:
        raise RecipeError(errors)
    return rewards


def _names_model(name: str) -> bool:
    return "/" in name or os.sep in name or os.path.isdir(name)


def _short_names(names: list[str]) -> list[str]:
    """The last part of each name, with as many parts before it as tell it from the others."""
    split = [("/", Path(name).parts or (name,)) if _names_model(name) else (".", name.split(".")) for name in names]
    tails = [[joint.join(parts[i:]) for i in range(len(parts))] for joint, parts in split]
    while clashing := [own for own in tails if len(own) > 1 and sum(own[-1] == other[-1] for other in tails) > 1]:
        for own in clashing:
            own.pop()
    return [own[-1] for own in tails]


def _load_model(name: str, kwargs: dict, weight: float) -> RewardFunction:
    if kwargs:
        raise RecipeError([f"reward_kwargs: {name} is a model and has no keywords"])
    return RewardFunction(name, RewardModel(name), weight, None, True)


def _load_one(name: str, kwargs: dict, weight: float, given: dict[str, Any], passed: set[str]) -> RewardFunction:
    target = _import_reward(name)
    parameters = _parameters(name, target)
    # what cannot be called as a reward, and asks for nothing that a reward is called with, makes one
    makes_reward = inspect.isclass(target) or not _takes_any(parameters) and passed.isdisjoint(parameters)
    if "max_completion_length" in parameters:
        kwargs.setdefault("max_completion_length", given["max_completion_length"])
    asks_original = makes_reward and "original_log_likelihood" in parameters
    if asks_original:
        kwargs.setdefault("original_log_likelihood", given["original_log_likelihood"])
    # a function's own **kwargs swallows the columns of the data, so a keyword it does not name would be ignored
    unknown = [key for key in kwargs if key not in parameters]
    if unknown:
        named = [key for key, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        raise RecipeError([f"reward_kwargs: {name} has no keyword {unknown[0]!r}; it takes {', '.join(named)}"])
    func = _make(name, target, kwargs) if makes_reward else target
    parameters = _parameters(name, func)
    if not _takes_any(parameters):
        raise RecipeError(
            [
                f"reward_funcs: {name}{inspect.signature(func)} does not take **kwargs; rewards are called with "
                "prompts, completions, completion_ids, every data column and more, so add **kwargs"
            ]
        )
    bound = {} if makes_reward else kwargs
    for key in passed & bound.keys():
        raise RecipeError([f"reward_kwargs: {name}: {key!r} comes with the samples, so it cannot be given"])
    for key, parameter in parameters.items():
        named = parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if named and parameter.default is inspect.Parameter.empty and key not in {*passed, *bound}:
            raise RecipeError(
                [f"reward_funcs: {name} needs {key!r}: name the column in reward_columns, or give it in reward_kwargs"]
            )
    return RewardFunction(
        name=name,
        func=partial(func, **bound) if bound else func,
        weight=weight,
        max_reward=getattr(func, "max_reward", None),
        stationary=getattr(func, "stationary", True),
        asks_original=asks_original,
    )


def _parameters(name: str, func: Callable) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(func).parameters)
    except ValueError as error:
        raise RecipeError([f"reward_funcs: {name} cannot be used: {one_line(error)}"]) from error


def _takes_any(parameters: dict[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def _make(name: str, target: Callable, kwargs: dict) -> Callable:
    """The instance of a class, or what a function makes."""
    try:
        func = target(**kwargs)
    except Exception as error:  # it is the user's code
        problem = f"cannot be built with {kwargs}: {one_line(error)}"
        if inspect.isclass(target):
            raise RecipeError([f"reward_kwargs: {name} {problem}"]) from error
    else:
        if callable(func):
            return func
        problem = f"it is a {type(func).__name__}"
        if inspect.isclass(target):
            raise RecipeError([f"reward_funcs: {name} has no __call__, so its instance is no reward"])
    raise RecipeError(
        [
            f"reward_funcs: {name}{inspect.signature(target)} takes neither **kwargs nor any of "
            f"{', '.join(CONTRACT[:3])}, so what it returns should be the reward, but {problem}"
        ]
    )


def _import_reward(name: str) -> Callable:
    module_name, _, attribute = name.rpartition(".")
    if not module_name or "" in name.split("."):
        raise RecipeError(
            [
                f"reward_funcs: {name!r} is not a dotted name such as rewards.rouge.rouge_dissimilarity or "
                "my_file.my_reward (my_file.py in the working directory), nor the folder of a reward model"
            ]
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # a reward file that itself imports something missing is another problem than a missing reward file
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise RecipeError([f"reward_funcs: {module_name} imports {error.name}, which is not installed"]) from error
        raise RecipeError([f"reward_funcs: {name}: there is no module {error.name!r}{_near(module_name)}"]) from error
    except (Exception, SystemExit) as error:  # it is the user's code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}: {type(error).__name__}: {one_line(error)}"
        raise RecipeError([f"reward_funcs: {module_name} cannot be imported ({where})"]) from error
    try:
        target = getattr(module, attribute)
    except AttributeError:
        own = [key for key, value in vars(module).items() if callable(value) and inspect.getmodule(value) is module]
        own = own or [key for key in dir(module) if not key.startswith("_")]  # a package may load its names lazily
        nearest = closest(attribute, own)
        hint = f"did you mean {module_name}.{nearest}?" if nearest else f"it has {', '.join(sorted(own))}"
        raise RecipeError([f"reward_funcs: {module_name} has no function or class {attribute!r}; {hint}"]) from None
    if not callable(target):
        raise RecipeError([f"reward_funcs: {name} is a {type(target).__name__}, not a function or class"])
    # TRL's would tell at their first call, which is after the model's answers
    if inspect.getmodule(target) is sys.modules.get("trl.rewards.accuracy_rewards") and not is_math_verify_available():
        raise RecipeError([f"reward_funcs: {name} needs math-verify: pip install 'math-verify[antlr4_13_2]'"])
    return target


def _near(module_name: str) -> str:
    package, _, name = module_name.rpartition(".")
    folder = os.path.dirname(importlib.import_module("rewards").__file__) if package == "rewards" else os.getcwd()
    modules = [file[:-3] for file in os.listdir(folder) if file.endswith(".py") and file != "__init__.py"]
    nearest = closest(name, modules)
    prefix = f"{package}." if package else ""
    return f" (did you mean {prefix}{nearest}?)" if nearest else f" on sys.path or in {os.getcwd()}"


def maximal_reward(rewards: list[RewardFunction], given: float | None) -> float | None:
    """The reward at which a question is solved: the recipe's, else the weighted sum of the rewards' own maxima.

    None, so nothing is ever solved, where a reward declares no maximum, may change its mind, or has a weight below 0
    (its maximum would be another number than `max_reward`).

    Raises:
        RecipeError: the recipe gives a maximum where nothing is ever solved.
    """
    if not is_stationary(rewards):
        if given is not None:
            names = ", ".join(reward.name for reward in rewards if not is_stationary([reward]))
            problem = (
                f"{names} may give a text another score later, or has a negative weight, so nothing is ever solved"
            )
            raise RecipeError([f"max_reward: {problem}; remove max_reward"])
        return None
    if given is not None:
        return given
    if any(reward.max_reward is None for reward in rewards):
        return None
    return sum(reward.weight * reward.max_reward for reward in rewards)


def is_stationary(rewards: list[RewardFunction]) -> bool:
    """Whether a stored score stays comparable with new ones: every reward is stationary, no weight is negative."""
    return all(reward.stationary and reward.weight >= 0 for reward in rewards)


def score_completions(
    rewards: list[RewardFunction], prompts: list, completions: list, completion_ids: list[list[int]], **columns: Any
) -> np.ndarray:
    """
    Calls every reward as TRL's GRPOTrainer does: keywords only, lists with one entry a completion.

    Args:
        prompts, completions (`list`): text, or lists of messages for chat models, one entry a completion.
        completion_ids (`list[list[int]]`): as sampled, end token included.
        columns: further data columns (lists of the same length), `trainer_state`, `log_extra` and `log_metric`.

    Returns:
        `np.ndarray` of shape `(completions, rewards)`, NaN where a reward gave None.

    Raises:
        ValueError: a reward returned another number of rewards than completions. An exception inside a reward
            is raised as it is, with a note that names the reward.
    """
    arguments = dict(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)

    outputs: list = []
    for reward in rewards:
        with _named_in_errors(reward):
            outputs.append(reward.func(**arguments))
    awaitables = {i: output for i, output in enumerate(outputs) if inspect.isawaitable(output)}

    async def finish(i: int) -> list:
        with _named_in_errors(rewards[i]):
            return await awaitables[i]

    if awaitables:
        for i, output in zip(awaitables, _run_together([finish(i) for i in awaitables]), strict=True):
            outputs[i] = output
    for reward, output in zip(rewards, outputs, strict=True):
        if len(output) != len(completions):
            raise ValueError(
                f"the reward function {reward.name!r} returned {len(output)} rewards for {len(completions)} "
                "completions; it must return one a completion"
            )
    return np.array([[np.nan if value is None else value for value in output] for output in outputs], dtype=float).T


@contextmanager
def _named_in_errors(reward: RewardFunction) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the reward function {reward.name!r}")
        raise


def _run_together(coroutines: list[Coroutine]) -> list[Any]:
    """Their results. In a thread of its own, since the caller may run in an event loop itself, as in a notebook."""

    async def gather() -> list[Any]:
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        try:
            return await asyncio.gather(*tasks)
        finally:  # of what goes on beside one that failed
            for task in tasks:
                task.cancel()

    future = asyncio.run_coroutine_threadsafe(gather(), _event_loop())
    try:
        return future.result()
    finally:
        future.cancel()


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for the whole run: an asynchronous client belongs to the loop on which it was first used."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def weighted_sum(rewards_per_func: np.ndarray, rewards: list[RewardFunction]) -> np.ndarray:
    """Sum of weight x reward over the rewards, NaN left out; NaN where no reward scored. Shape `(completions,)`."""
    weights = np.array([reward.weight for reward in rewards])
    total = np.nansum(rewards_per_func * weights, axis=1)
    return np.where(np.isnan(rewards_per_func).all(axis=1), np.nan, total)


def passes_floors(rewards_per_func: np.ndarray, rewards: list[RewardFunction]) -> np.ndarray:
    """Whether no reward is below its floor; one that cannot say (NaN) shuts nobody out. Shape `(completions,)`."""
    floors = np.array([-np.inf if reward.floor is None else reward.floor for reward in rewards])
    return ~(rewards_per_func < floors).any(axis=1)
