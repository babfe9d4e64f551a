"""Confidence intervals and counts that stand beside every mean of the audit."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000
# Values that the bootstrap draws at a time, 32 MB as float64: enough to be fast, and no more for 40,000 samples.
VALUES_PER_BATCH = 2**22


def bootstrap_interval(*samples: Sequence[float], statistic: Callable = np.mean) -> list[float] | None:
    """
    95 % percentile bootstrap interval of a statistic, the same for the same values: the seed is fixed. None where a
    sample has fewer than 2 values.

    `statistic(*resamples, axis=-1)` takes arrays of shape `(..., n_i)` and returns shape `(...)`. Every sample is
    resampled for itself: a statistic over several question sets is resampled within each of them (stratified).

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; `scipy.stats.bootstrap`.

    >>> bootstrap_interval([0.0, 1.0] * 200)
    [0.45, 0.5475]
    >>> bootstrap_interval([3.0, 3.0], [1.0, 1.0, 1.0], statistic=lambda a, b, axis: a.mean(axis) - b.mean(axis))
    [2.0, 2.0]
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("NaN or infinite values have no interval: they are the sign of a fault, as a broken model.")
    if min(map(len, arrays)) < 2:
        return None
    result = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, VALUES_PER_BATCH // sum(map(len, arrays))),
        vectorized=True,
        method="percentile",
        rng=0,
    )
    return [float(end) for end in result.confidence_interval]


def paired_interval(first: Sequence[float], second: Sequence[float]) -> list[float] | None:
    """
    95 % bootstrap interval of the mean of `second - first`, values of two models on the same rows, in the same order.

    What is easy or hard for both cancels, so it is narrower than two intervals side by side.

    >>> paired_interval([0.25, 0.5, 1.0], [0.75, 1.0, 1.5])
    [0.5, 0.5]
    """
    return bootstrap_interval(np.asarray(second, dtype=float) - np.asarray(first, dtype=float))


def by_row(rows: Sequence[int], values: Sequence[float | None]) -> dict[int, float]:
    """The values by the row they are of, without those of rows that have none."""
    return {row: value for row, value in zip(rows, values, strict=True) if value is not None}


def summary(values: Sequence[float | None]) -> dict:
    """
    Mean of the rows that have a value, its 95 % bootstrap interval, and the counts that say how far to trust it.

    None stands for a row without a value: it is `missing`, and never counts as 0. A NaN is a fault and raises.

    >>> summary([0.5, None, 0.5])
    {'mean': 0.5, 'interval': [0.5, 0.5], 'n': 2, 'missing': 1}
    """
    present = np.array([value for value in values if value is not None], dtype=float)
    return {
        "mean": float(present.mean()) if len(present) else None,
        "interval": bootstrap_interval(present),
        "n": len(present),
        "missing": len(values) - len(present),
    }


def not_available(why: str) -> dict[str, str]:
    """What stands in the results in place of numbers that cannot be had: the reason, and never 0."""
    return {"not_available": why}


def clopper_pearson_upper(hits: int, n: int) -> float:
    """
    One-sided 95 % upper bound on a probability of which `hits` were seen in `n` independent trials: at this
    probability so few hits have become as rare as 0.05. After no hit at all it is about 3 / n.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    1934. In closed form, so to the last digits, which `scipy.stats.binomtest` finds by a search.

    >>> round(clopper_pearson_upper(0, 100), 4), round(clopper_pearson_upper(1, 100), 4)
    (0.0295, 0.0466)
    """
    return float(stats.beta.ppf(0.95, hits + 1, n - hits)) if hits < n else 1.0
