"""Membership inference: can one tell from a model's scores which answers it was trained on?

Scores are signed like a loss: low for what a model has learned. Each takes one natural log-probability a token of the
answer, shape `(L,)` with L >= 1.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

from eval.metrics.intervals import bootstrap_interval

# The target given as its own reference is above this, a model that never saw the members is near 0.5.
LARGEST_REFERENCE_AUC = 0.9
LOWEST_SHARE = 0.4  # of the tokens, that min-k looks at
SMALLEST_DEVIATION = 1e-3


def loss_score(log_probs: Sequence[float]) -> float:
    """
    Mean negative log-likelihood a token. Source: Yeom et al., "Privacy Risk in Machine Learning", 2018.

    >>> loss_score([-1.0, -3.0])
    2.0
    """
    return float(-np.asarray(log_probs, dtype=float).mean())


def zlib_score(log_probs: Sequence[float], text: str) -> float:
    """
    [`loss_score`] a byte of the compressed answer, as simple texts have a low loss without being learned.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", 2021; there with the summed loss.

    >>> round(zlib_score([-1.0, -3.0], "In Lima, Peru"), 4)  # 21 bytes
    0.0952
    """
    return loss_score(log_probs) / len(zlib.compress(text.encode()))


def min_k_score(log_probs: Sequence[float]) -> float:
    r"""
    Minus the mean of the $\max(1, \lfloor 0.4\, L \rfloor)$ lowest log-probabilities.

    Source: Shi et al., "Detecting Pretraining Data from Large Language Models", 2024 (Min-K% Prob).

    >>> min_k_score([-1.0, -5.0, -2.0, 0.0, -3.0])
    4.0
    """
    values = np.asarray(log_probs, dtype=float)
    return float(-np.sort(values)[: max(1, int(LOWEST_SHARE * len(values)))].mean())


def min_k_plus_plus_score(log_probs: Sequence[float], mean: Sequence[float], std: Sequence[float]) -> float:
    r"""
    [`min_k_score`] of log-probabilities that are standardised over the vocabulary at their position.

    $$
    z_t = \frac{\log p_t - \mu_t}{\sigma_t}, \quad \mu_t = \sum_v p_v \log p_v, \quad
    \sigma_t^2 = \max\left(10^{-6}, \sum_v p_v (\log p_v - \mu_t)^2\right)
    $$

    Source: Zhang et al., "Min-K%++", 2025. `mean` and `std` are $\mu$ and the deviation before its floor.

    >>> min_k_plus_plus_score([-1.0, -5.0], mean=[-2.0, -3.0], std=[0.5, 2.0])
    1.0
    """
    log_probs, mean, std = (np.asarray(values, dtype=float) for values in (log_probs, mean, std))
    return min_k_score((log_probs - mean) / np.maximum(std, SMALLEST_DEVIATION))


def _auc(members: np.ndarray, nonmembers: np.ndarray, axis: int = -1) -> np.ndarray:
    # the p-value is not read; this way to it is the cheapest
    test = stats.mannwhitneyu(nonmembers, members, axis=axis, method="asymptotic")
    return test.statistic / (nonmembers.shape[axis] * members.shape[axis])


def membership_auc(member_scores: Sequence[float], nonmember_scores: Sequence[float]) -> float:
    """
    How often a non-member has a higher score than a member, a tie being half: area under the ROC curve, in [0, 1].

    1 is plainly memorized and 0.5 cannot be told apart. 0 is over-suppressed, which gives the members away as well, so
    compare with the value of a retain-only model, not with 0. Members are answers to forget, non-members answers of
    the holdout set, never retain rows.

    Source: Mann and Whitney, "On a test of whether one of two random variables is stochastically larger than the
    other", 1947.

    >>> membership_auc([0.1, 0.2], [0.2, 0.9])
    0.875
    """
    return float(_auc(np.asarray(member_scores, dtype=float), np.asarray(nonmember_scores, dtype=float)))


def auc_interval(members: Sequence[float], nonmembers: Sequence[float]) -> list[float] | None:
    """
    95 % bootstrap interval of [`membership_auc`]; members and non-members are resampled each for themselves.

    Where all non-members are above all members, both ends are 1: resampling cannot make up a pair it has not seen.

    >>> auc_interval([1.0, 2.0], [3.0, 4.0])
    [1.0, 1.0]
    """
    return bootstrap_interval(members, nonmembers, statistic=_auc)


def privleak(auc: float, reference_auc: float = 0.5) -> float:
    r"""
    How far the AUC is from that of a model that never saw the members, in percent: 0 is ideal.

    $$
    100 \cdot \frac{(1 - \text{AUC}) - (1 - \text{AUC}_\text{ref})}{1 - \text{AUC}_\text{ref}}
    $$

    Negative is under-unlearned, down to -100, positive over-unlearned. The reference is a retain-only model; without
    one 0.5, where nothing can be told. Source: MUSE (arXiv:2407.06460), whose AUC is ours taken from 1.

    >>> privleak(1.0), privleak(0.5), privleak(0.25)
    (-100.0, 0.0, 50.0)
    """
    if reference_auc > LARGEST_REFERENCE_AUC:
        raise ValueError(f"a reference with an AUC of {reference_auc:.3f} has memorized the members itself")
    return 100 * ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc)
