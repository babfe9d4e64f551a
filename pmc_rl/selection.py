"""Rewards to picks, the best answers of a question so far, how many samples it gets. Pure: no model, no text.

On the reading path behind scoring.py, before likelihood.py. Arrays are `(P, k)`: k candidates of P questions.
"""

from dataclasses import dataclass

import numpy as np

# weighted sums of floats miss their maximum by rounding
TOLERANCE = 1e-6


def normalize_within_questions(rewards_per_func: np.ndarray) -> np.ndarray:
    """Each of R rewards, `(P, k, R)`, less its mean over a question's samples, by its standard deviation there; 0
    where all are equal. NaN stays NaN and counts nowhere."""
    known = ~np.isnan(rewards_per_func)
    count = known.sum(1, keepdims=True).clip(1)
    deviations = rewards_per_func - np.where(known, rewards_per_func, 0).sum(1, keepdims=True) / count
    std = np.sqrt(np.where(known, deviations**2, 0).sum(1, keepdims=True) / count)
    return np.divide(deviations, std, out=np.where(known, 0.0, np.nan), where=known & (std > TOLERANCE))


def select_best(rewards: np.ndarray, passed: np.ndarray, count: int = 1) -> list[list[int]]:
    """
    Indices of the `count` largest rewards of each question, best first; the first of equal ones, as in the public PMC
    code. What has not `passed` the gate is never picked, nor NaN, what no reward could score: there may be fewer.

    Raises:
        ValueError: all samples of a question are NaN.
    """
    scored = ~np.isnan(rewards)
    unscorable = ~scored.any(axis=1)
    if unscorable.any():
        raise ValueError(
            f"no reward function scored any of the {rewards.shape[1]} samples of {unscorable.sum()} question(s), the "
            f"first at position {unscorable.argmax()} of the batch: at least one sample needs a reward that is "
            "neither None nor NaN"
        )
    # NaN sorts last; stable, so that the first of equal ones wins
    order = np.argsort(-np.where(passed, rewards, np.nan), axis=1, kind="stable")
    return [row[: min(count, n)].tolist() for row, n in zip(order, (scored & passed).sum(1), strict=True)]


def select_bradley_terry(
    rewards: np.ndarray, passed: np.ndarray, temperature: float, uniforms: np.ndarray, count: int = 1
) -> list[list[int]]:
    r"""
    As [`select_best`], but drawn by the Bradley-Terry model, softmax(reward / temperature), several without
    replacement (Plackett-Luce): with random numbers $u$ in (0, 1) the largest of $r_i / \tau - \log(-\log u_i)$ has
    index $i$ with exactly that probability (the Gumbel-max trick), and $\tau \to 0$ is [`select_best`].

    Source: the soft choice of the paper of Partial Model Collapse; its public code has it, but never calls it.
    """
    return select_best(rewards - temperature * np.log(-np.log(uniforms)), passed, count)


def selection_uniforms(seed: int, step: int, row_ids: list[int], num_samples: int) -> np.ndarray:
    """Numbers in (0, 1) for [`select_bradley_terry`], `(len(row_ids), num_samples)`: what names a sample decides."""
    tiny = np.finfo(float).tiny  # `random` may give 0, whose logarithm is infinite
    return np.stack([np.random.default_rng([seed, step, row]).random(num_samples).clip(tiny) for row in row_ids])


def share_samples(visits_without_gain: list[int], num_generations: int, budget: int) -> list[int]:
    """
    Samples for each question, by the visits since its answer last became better: an eighth of `num_generations` at 0,
    an eighth more with each, up to four times `num_generations`. What is learned from the others makes many questions
    easy in the meantime. Where the sum is above the budget, all are cut by the same factor, but none below one sample.
    """
    wanted = [max(1.0, num_generations * min(4.0, (1 + visits) / 8)) for visits in visits_without_gain]
    factor = min(1.0, budget / sum(wanted))
    while sum(shares := [max(1, int(count * factor)) for count in wanted]) > max(budget, len(wanted)):
        # the least one of a question is taken from those that get more
        others = [count for count in wanted if count * factor >= 1]
        factor = (budget - (len(wanted) - len(others))) / sum(others)
    return shares


@dataclass
class BestAnswer:
    """An answer of a question, as token ids, and its reward."""

    completion_ids: list[int]
    reward: float


def best_answers(new: list[BestAnswer], stored: list[BestAnswer], count: int) -> list[BestAnswer]:
    """The best `count` different answers, best first. An equal newer one goes first, as in the public PMC code."""
    different: dict[tuple[int, ...], BestAnswer] = {}
    for answer in new + stored:
        different.setdefault(tuple(answer.completion_ids), answer)
    # stable, reversed as well: equal ones stay in the order of `new`, then `stored`
    return sorted(different.values(), key=lambda answer: answer.reward, reverse=True)[:count]


def is_solved(answers: list[BestAnswer], count: int, max_reward: float | None) -> bool:
    """Whether a question has `count` answers of the maximal reward, so that no sample can be better."""
    if max_reward is None or len(answers) < count:
        return False
    return all(answer.reward >= max_reward - TOLERANCE for answer in answers)
