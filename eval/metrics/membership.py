"""Membership inference: can one tell from a model's scores which answers it was trained on?"""

import zlib
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy import stats

from eval.metrics.intervals import bootstrap_interval

# The target given as its own reference is above this, a model that never saw the members is near 0.5.
LARGEST_REFERENCE_AUC = 0.9
SMALLEST_VARIANCE = 1e-6

_DESCRIPTION = """\
Area under the ROC curve of a membership score that is low for what a model was trained on: how often a non-member has
a higher score than a member. 1 is plainly memorized, 0.5 cannot be told apart, 0 is suppressed and gives itself away.
"""

_CITATION = """\
@inproceedings{shi2025muse,
  title = {{MUSE}: Machine Unlearning Six-Way Evaluation for Language Models},
  author = {Shi, Weijia and others},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[float]`):
        Score of each row, signed like a loss: low for what the model was trained on.
    references (`list[int]`):
        0 for a member (an answer to forget), 1 for a non-member (one of the holdout set).

Returns:
    `dict`: `auc` in [0, 1], its 95 % bootstrap `interval` (None where a side has one row), and the numbers of rows
    `n_members` and `n_nonmembers`.

Raises:
    ValueError: if one of both sides has no row, a label is not 0 or 1, or a score is missing or infinite.

Example:

    >>> from eval.metrics.membership import MembershipMetric

    >>> # or evaluate.load("eval/metrics/membership.py", keep_in_memory=True)
    >>> metric = MembershipMetric(keep_in_memory=True)
    >>> metric.compute(predictions=[0.1, 0.2, 1.5, 1.7], references=[0, 0, 1, 1])
    {'auc': 1.0, 'interval': [1.0, 1.0], 'n_members': 2, 'n_nonmembers': 2}
"""


def _checked_log_probs(log_probs) -> np.ndarray:
    log_probs = np.asarray(log_probs, dtype=float)
    if log_probs.ndim != 1 or not (np.isfinite(log_probs) & (log_probs <= 0)).all():
        raise ValueError(
            f"Log-probabilities must be one finite number an answer token, none above 0; their shape is "
            f"{log_probs.shape} and the largest {log_probs.max(initial=-np.inf)}. A loss has the other sign."
        )
    return log_probs


def _minus_mean_of_lowest(values: np.ndarray, fraction: float) -> float | None:
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction of tokens to look at must be above 0 and at most 1, not {fraction}.")
    count = max(1, int(fraction * len(values)))
    return float(-np.sort(values)[:count].mean()) if len(values) else None


def loss_score(log_probs: Sequence[float]) -> float | None:
    """
    Mean negative log-likelihood a token.

    Source: Yeom et al., "Privacy Risk in Machine Learning", 2018.

    Args:
        log_probs (`Sequence[float]`):
            Natural log of the probability of each of the `L` answer tokens, shape `(L,)`.

    Returns:
        `float`: low for members; `None` for an answer without tokens.

    Raises:
        ValueError: if a value is above 0, missing or infinite.

    Example:
    ```python
    >>> from eval.metrics.membership import loss_score

    >>> loss_score([-1.0, -3.0])
    2.0
    ```
    """
    log_probs = _checked_log_probs(log_probs)
    return float(-log_probs.mean()) if len(log_probs) else None


def zlib_score(log_probs: Sequence[float], text: str) -> float | None:
    """
    [`loss_score`] a byte of the compressed text, as simple texts have a low loss without being learned.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", 2021; there with the summed loss.

    Args:
        log_probs (`Sequence[float]`):
            Natural log of the probability of each of the `L` answer tokens, shape `(L,)`.
        text (`str`):
            The answer.

    Returns:
        `float`: low for members; `None` for an answer without tokens.

    Raises:
        ValueError: if a value is above 0, missing or infinite.

    Example:
    ```python
    >>> from eval.metrics.membership import zlib_score

    >>> round(zlib_score([-1.0, -3.0], "In Lima, Peru"), 4)  # 21 bytes
    0.0952
    ```
    """
    loss = loss_score(log_probs)
    return None if loss is None else loss / len(zlib.compress(text.encode()))


def min_k_score(log_probs: Sequence[float], fraction: float = 0.4) -> float | None:
    r"""
    Minus the mean of the $\max(1, \lfloor \text{fraction} \cdot L \rfloor)$ lowest log-probabilities.

    Source: Shi et al., "Detecting Pretraining Data from Large Language Models", 2024 (Min-K% Prob).

    Args:
        log_probs (`Sequence[float]`):
            Natural log of the probability of each of the `L` answer tokens, shape `(L,)`.
        fraction (`float`, *optional*, defaults to `0.4`):
            Share of the tokens that counts, above 0 and at most 1.

    Returns:
        `float`: low for members; `None` for an answer without tokens.

    Raises:
        ValueError: if a value is above 0, missing or infinite, or the fraction is out of range.

    Example:
    ```python
    >>> from eval.metrics.membership import min_k_score

    >>> min_k_score([-1.0, -5.0, -2.0, 0.0, -3.0])
    4.0
    ```
    """
    return _minus_mean_of_lowest(_checked_log_probs(log_probs), fraction)


def min_k_plus_plus_score(
    log_probs: Sequence[float], mean: Sequence[float], std: Sequence[float], fraction: float = 0.4
) -> float | None:
    r"""
    [`min_k_score`] of log-probabilities that are standardised over the vocabulary at their position.

    $$
    z_t = \frac{\log p_t - \mu_t}{\sigma_t}, \quad \mu_t = \sum_v p_v \log p_v, \quad
    \sigma_t^2 = \max\left(10^{-6}, \sum_v p_v (\log p_v - \mu_t)^2\right)
    $$

    Source: Zhang et al., "Min-K%++", 2025.

    Args:
        log_probs (`Sequence[float]`):
            Natural log of the probability of each of the `L` answer tokens, shape `(L,)`.
        mean, std (`Sequence[float]`):
            Mean and standard deviation of log p over the vocabulary, under the model's own distribution p at each
            position, shape `(L,)`.
        fraction (`float`, *optional*, defaults to `0.4`):
            Share of the tokens that counts, above 0 and at most 1.

    Returns:
        `float`: low for members; `None` for an answer without tokens.

    Raises:
        ValueError: if the shapes differ, a log-probability is above 0, a value is missing or infinite, a standard
            deviation is negative, or the fraction is out of range.

    Example:
    ```python
    >>> from eval.metrics.membership import min_k_plus_plus_score

    >>> min_k_plus_plus_score([-1.0, -5.0], mean=[-2.0, -3.0], std=[0.5, 2.0])
    1.0
    ```
    """
    log_probs = _checked_log_probs(log_probs)
    mean, std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    if not (mean.shape == std.shape == log_probs.shape and np.isfinite([mean, std]).all() and (std >= 0).all()):
        raise ValueError(
            f"There must be one finite mean and standard deviation for each of {len(log_probs)} tokens, the latter "
            f"not negative; their shapes are {mean.shape} and {std.shape}."
        )
    return _minus_mean_of_lowest((log_probs - mean) / np.sqrt(np.maximum(std**2, SMALLEST_VARIANCE)), fraction)


def _auc(members: np.ndarray, nonmembers: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of pairs in which the non-member is higher (a tie is half a pair), from the ranks of all scores."""
    n, n_members = nonmembers.shape[axis], members.shape[axis]
    ranks = stats.rankdata(np.concatenate([nonmembers, members], axis=axis), axis=axis)
    rank_sum = ranks.take(range(n), axis=axis).sum(axis=axis)
    return (rank_sum - n * (n + 1) / 2) / (n * n_members)


def _checked_scores(scores, side: str) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if not (scores.size and np.isfinite(scores).all()):
        raise ValueError(f"The {side} must have at least one score, none of them missing or infinite.")
    return scores


def membership_auc(member_scores: Sequence[float], nonmember_scores: Sequence[float]) -> float:
    """
    How often a non-member has a higher score than a member, a tie being half: area under the ROC curve.

    1 is plainly memorized and 0.5 cannot be told apart. 0 is over-suppressed, which gives the members away as well, so
    compare with the value of a retain-only model, not with 0.

    Source: Mann and Whitney, "On a test of whether one of two random variables is stochastically larger than the
    other", 1947, with mid-ranks.

    Args:
        member_scores (`Sequence[float]`):
            Scores of the answers to forget, signed like a loss, shape `(n,)`.
        nonmember_scores (`Sequence[float]`):
            The same of answers of the holdout set, never of retain rows, shape `(m,)`.

    Returns:
        `float` in `[0, 1]`.

    Raises:
        ValueError: if a side has no score, or one is missing or infinite.

    Example:
    ```python
    >>> from eval.metrics.membership import membership_auc

    >>> membership_auc([0.1, 0.2], [0.2, 0.9])
    0.875
    ```
    """
    return float(_auc(_checked_scores(member_scores, "members"), _checked_scores(nonmember_scores, "non-members")))


def auc_interval(members: Sequence[float], nonmembers: Sequence[float]) -> list[float] | None:
    """
    95 % bootstrap interval of [`membership_auc`]; members and non-members are resampled each for themselves.

    Where all non-members are above all members, both ends are 1: resampling cannot make up a pair it has not seen.

    Args:
        members (`Sequence[float]`):
            Scores of the answers to forget, shape `(n,)`.
        nonmembers (`Sequence[float]`):
            Scores of the holdout answers, shape `(m,)`.

    Returns:
        `list[float]`: lower and upper end, or `None` where a side has fewer than 2 scores.

    Raises:
        ValueError: if a score is missing or infinite.

    Example:
    ```python
    >>> from eval.metrics.membership import auc_interval

    >>> auc_interval([1.0, 2.0], [3.0, 4.0])
    [1.0, 1.0]
    ```
    """
    return bootstrap_interval(members, nonmembers, statistic=_auc)


def privleak(auc: float, reference_auc: float = 0.5) -> float:
    r"""
    How far the AUC is from that of a model that never saw the members, in percent: 0 is ideal.

    $$
    100 \cdot \frac{(1 - \text{AUC}) - (1 - \text{AUC}_\text{ref})}{1 - \text{AUC}_\text{ref}}
    $$

    Negative is under-unlearned, down to -100, positive over-unlearned.

    Source: MUSE, whose AUC is ours taken from 1.

    Args:
        auc (`float`):
            [`membership_auc`] of the unlearned model.
        reference_auc (`float`, *optional*, defaults to `0.5`):
            The same of a retain-only model; without one 0.5, where nothing can be told.

    Returns:
        `float`: percent, from -100 to 100 for a reference of 0.5.

    Raises:
        ValueError: if an AUC is out of `[0, 1]`, or that of the reference above 0.9.

    Example:
    ```python
    >>> from eval.metrics.membership import privleak

    >>> privleak(1.0), privleak(0.5), privleak(0.25)
    (-100.0, 0.0, 50.0)
    ```
    """
    if not (0 <= auc <= 1 and 0 <= reference_auc <= 1):
        raise ValueError(f"An AUC is in [0, 1], but they are {auc} and {reference_auc}.")
    if reference_auc > LARGEST_REFERENCE_AUC:
        raise ValueError(
            f"The reference has an AUC of {reference_auc:.3f}, above {LARGEST_REFERENCE_AUC}: it has memorized the "
            "members itself. Give a model that never saw them, not the one that is to forget them."
        )
    return 100 * ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc)


# evaluate.load takes the first Metric class of a file and copies the file elsewhere, so: one class, absolute imports.
class MembershipMetric(evaluate.Metric):
    """[`membership_auc`] of scores of members and non-members; see `inputs_description` for an example."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2407.06460"],
        )

    def _compute(self, predictions, references):
        scores, labels = np.asarray(predictions, dtype=float), np.asarray(references)
        unknown = sorted(set(labels.tolist()) - {0, 1})
        if unknown:
            raise ValueError(f"Labels must be 0 for members and 1 for non-members, but there are {unknown}.")
        members, nonmembers = scores[labels == 0], scores[labels == 1]
        return {
            "auc": membership_auc(members, nonmembers),
            "interval": auc_interval(members, nonmembers),
            "n_members": len(members),
            "n_nonmembers": len(nonmembers),
        }
