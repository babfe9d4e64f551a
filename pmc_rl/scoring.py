"""What completions are worth: rewards called by the contract of TRL's GRPOTrainer, and their weighted sum.

On the method path after generation.py and before selection.py. How names become rewards: reward_loading.py.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pmc_rl.errors import RecipeError

# What every reward is called with: TRL's contract, and the columns all our forget rows have.
CONTRACT = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
CONTRACT |= {"original_completion", "pmc_id"}


@dataclass
class RewardFunction:
    """
    A reward with TRL's signature, `func`, and what selection has to know about it: `max_reward`, the largest value it
    can give, `stationary`, whether a text always gets the same, `floor`, the least reward that passes the gate, and
    `asks_original`, that the model before unlearning is kept for it.
    """

    name: str
    func: Callable[..., Any]
    weight: float
    max_reward: float | None
    stationary: bool
    floor: float | None = None
    asks_original: bool = False


def score_completions(
    rewards: list[RewardFunction], prompts: list, completions: list, completion_ids: list[list[int]], **columns: Any
) -> np.ndarray:
    """
    Calls every reward as TRL's GRPOTrainer does: keywords only, lists with one entry a completion.

    Prompts and completions are text, or messages for chat models; ids are as sampled, end token included; `columns`
    are other data columns, `trainer_state`, `log_extra` and `log_metric`. Returns shape `(completions, rewards)`, NaN
    where a reward gave None. What a reward raises passes through, with a note that names the reward.
    """
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    outputs = []
    for reward in rewards:
        with _name_in_errors(reward):
            outputs.append(reward.func(**arguments))

    async def finish(reward: RewardFunction, output: Any) -> list:
        with _name_in_errors(reward):
            return await output if inspect.isawaitable(output) else output

    async def finish_all() -> list[list]:
        return await asyncio.gather(*map(finish, rewards, outputs))

    if any(map(inspect.isawaitable, outputs)):
        outputs = asyncio.run_coroutine_threadsafe(finish_all(), _event_loop()).result()
    for reward, output in zip(rewards, outputs, strict=True):
        if len(output) != len(completions):
            problem = f"returned {len(output)} rewards for {len(completions)} completions"
            raise ValueError(f"the reward function {reward.name!r} {problem}; it must return one a completion")
    return np.array([[np.nan if value is None else value for value in output] for output in outputs], dtype=float).T


@contextmanager
def _name_in_errors(reward: RewardFunction) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the reward function {reward.name!r}")
        raise


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for the whole run, to which asynchronous clients belong, in a thread: a notebook runs in a loop itself."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def weighted_sum(rewards_per_func: np.ndarray, rewards: list[RewardFunction]) -> np.ndarray:
    """Sum of weight x reward over the rewards, NaN left out; NaN where no reward scored. Shape `(completions,)`."""
    total = np.nansum(rewards_per_func * np.array([reward.weight for reward in rewards]), axis=1)
    return np.where(np.isnan(rewards_per_func).all(axis=1), np.nan, total)


def passes_floors(rewards_per_func: np.ndarray, rewards: list[RewardFunction]) -> np.ndarray:
    """Whether no reward is below its floor; one that cannot say (NaN) shuts nobody out. Shape `(completions,)`."""
    floors = np.array([-np.inf if reward.floor is None else reward.floor for reward in rewards])
    return ~(rewards_per_func < floors).any(axis=1)


def is_stationary(rewards: list[RewardFunction]) -> bool:
    """Whether a stored score stays comparable with new ones: every reward is stationary, no weight is negative."""
    return all(reward.stationary and reward.weight >= 0 for reward in rewards)


def maximal_reward(rewards: list[RewardFunction], given: float | None) -> float | None:
    """
    The reward at which a question is solved: the recipe's, else the weighted sum of the rewards' own maxima.

    None, so that nothing is ever solved, where a reward has no maximum or scores do not stay comparable.
    """
    if not is_stationary(rewards) and given is not None:
        names = ", ".join(reward.name for reward in rewards if not is_stationary([reward]))
        problem = "may give a text another score later, or has a negative weight, so nothing is ever solved"
        raise RecipeError([f"max_reward: {names} {problem}; remove max_reward"])
    if given is None and is_stationary(rewards) and all(reward.max_reward is not None for reward in rewards):
        return sum(reward.weight * reward.max_reward for reward in rewards)
    return given
