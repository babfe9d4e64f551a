"""Rewards to picks, and the best answer so far of every question. Pure: no model, no text."""

from dataclasses import dataclass

import numpy as np

# weighted sums of floats miss their maximum by rounding
TOLERANCE = 1e-6


def select_best(rewards: np.ndarray) -> np.ndarray:
    """
    Index of the largest reward of each question; the first of equal ones, as in the public PMC code.

    Args:
        rewards (`np.ndarray` of shape `(P, k)`): NaN marks a sample that no reward could score; it never wins.

    Returns:
        `np.ndarray` of shape `(P,)`.

    Raises:
        ValueError: where all samples of a question are NaN.
    """
    unscorable = np.isnan(rewards).all(axis=1)
    if unscorable.any():
        raise ValueError(
            f"no reward function scored any of the {rewards.shape[1]} samples of {unscorable.sum()} question(s), the "
            f"first at position {unscorable.argmax()} of the batch: at least one sample needs a reward that is "
            "neither None nor NaN"
        )
    # not np.nanargmax: it takes NaN for -inf, so NaN would win against a reward of -inf
    best = np.nanmax(rewards, axis=1, keepdims=True)
    return (rewards == best).argmax(axis=1)


@dataclass
class BestAnswer:
    """The best answer of a question so far: its token ids and its reward."""

    completion_ids: list[int]
    reward: float


def update_pool(pool: dict[int, BestAnswer], row_id: int, completion_ids: list[int], reward: float) -> None:
    """Keeps the better answer of a question. An equal newer one replaces the old, as in the public PMC code."""
    if row_id not in pool or reward >= pool[row_id].reward:
        pool[row_id] = BestAnswer(completion_ids, reward)


def is_solved(pool: dict[int, BestAnswer], row_id: int, max_reward: float | None) -> bool:
    """Whether a question's best answer has the maximal reward, so that no sample can be better."""
    return max_reward is not None and row_id in pool and pool[row_id].reward >= max_reward - TOLERANCE
