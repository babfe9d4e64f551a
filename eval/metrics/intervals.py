"""Confidence intervals and counts that stand beside every mean of the audit."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000
# Values that the bootstrap draws at a time, 32 MB as float64: enough to be fast, and no more for 40,000 samples.
VALUES_PER_BATCH = 2**22


def bootstrap_interval(*samples: Sequence[float], statistic: Callable | None = None) -> list[float] | None:
    """
    95 % percentile bootstrap interval of a statistic, the same for the same values: the seed is fixed.

    Every sample is resampled for itself, so its size stays as it is: a statistic over several question sets is
    resampled within each of them (stratified).

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; `scipy.stats.bootstrap`.

    Args:
        *samples (`Sequence[float]`):
            One or more samples of shape `(n_i,)`, of any order.
        statistic (`Callable`, *optional*):
            Called as `statistic(*resamples, axis=-1)` with arrays of shape `(..., n_i)`; returns shape `(...)`. By
            default the mean of the one sample.

    Returns:
        `list[float]`: lower and upper end, or `None` where a sample has fewer than 2 values.

    Raises:
        ValueError: if a value is not finite, or several samples come without a statistic.

    Example:
    ```python
    >>> from eval.metrics.intervals import bootstrap_interval

    >>> bootstrap_interval([0.0, 1.0] * 200)
    [0.45, 0.5475]
    >>> bootstrap_interval([3.0, 3.0], [1.0, 1.0, 1.0], statistic=lambda a, b, axis: a.mean(axis) - b.mean(axis))
    [2.0, 2.0]
    ```
    """
    if statistic is None and len(samples) != 1:
        raise ValueError(f"The mean is of one sample, but there are {len(samples)}: give a statistic of all of them.")
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("Samples hold missing or infinite values: leave these rows out and count them.")
    if min(map(len, arrays)) < 2:
        return None
    result = stats.bootstrap(
        arrays,
        statistic or np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, VALUES_PER_BATCH // sum(map(len, arrays))),
        vectorized=True,
        method="percentile",
        rng=0,
    )
    return [float(end) for end in result.confidence_interval]


def paired_interval(first: Sequence[float], second: Sequence[float]) -> list[float] | None:
    """
    95 % bootstrap interval of the mean of `second - first` on the same rows.

    What is easy or hard for both cancels, so it is narrower than two intervals side by side.

    Args:
        first, second (`Sequence[float]`):
            Values of two models, shape `(n,)`, in the same order of rows. Leave out a row that either of them misses.

    Returns:
        `list[float]`: lower and upper end, or `None` for fewer than 2 rows.

    Raises:
        ValueError: if the lengths differ or a value is not finite.

    Example:
    ```python
    >>> from eval.metrics.intervals import paired_interval

    >>> paired_interval([0.25, 0.5, 1.0], [0.75, 1.0, 1.5])
    [0.5, 0.5]
    ```
    """
    if len(first) != len(second):
        raise ValueError(f"A paired comparison needs the same rows twice, not {len(first)} and {len(second)} values.")
    return bootstrap_interval(np.asarray(second, dtype=float) - np.asarray(first, dtype=float))


def summary(values: Sequence[float | None]) -> dict:
    """
    Mean of the rows that have a value, with its interval and the two counts that say how far to trust it.

    Args:
        values (`Sequence[float]`):
            One value a row, shape `(n + missing,)`; `None` for a row without one, which never counts as 0.

    Returns:
        `dict`: `mean` and its 95 % bootstrap `interval` (`None` where there are too few values: none for the mean,
        fewer than 2 for the interval), `n` rows counted, and `missing` rows left out.

    Raises:
        ValueError: if a value is NaN or infinite: it is the sign of a fault, where `None` is the sign of no answer.

    Example:
    ```python
    >>> from eval.metrics.intervals import summary

    >>> summary([0.5, None, 0.5])
    {'mean': 0.5, 'interval': [0.5, 0.5], 'n': 2, 'missing': 1}
    >>> summary([None])
    {'mean': None, 'interval': None, 'n': 0, 'missing': 1}
    ```
    """
    present = np.array([value for value in values if value is not None], dtype=float)
    bad = len(present) - int(np.isfinite(present).sum())
    if bad:
        raise ValueError(f"{bad} of {len(present)} values are NaN or infinite; a row without a value must be None.")
    return {
        "mean": float(present.mean()) if len(present) else None,
        "interval": bootstrap_interval(present),
        "n": len(present),
        "missing": len(values) - len(present),
    }


def not_available(why: str) -> dict[str, str]:
    """What stands in the results in place of numbers that cannot be had: the reason, and never 0."""
    return {"not_available": why}


def clopper_pearson_upper(hits: int, n: int, confidence: float = 0.95) -> float:
    r"""
    One-sided upper bound on a probability of which `hits` were seen in `n` independent trials.

    It is the probability at which so few hits become as rare as $1 - \text{confidence}$; after no hit at all it is
    about $3 / n$.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    1934.

    Args:
        hits (`int`):
            Number of hits, in `[0, n]`.
        n (`int`):
            Number of trials, at least 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often the bound holds, at least; between 0 and 1.

    Returns:
        `float`: the bound, in `(0, 1]`.

    Raises:
        ValueError: if a number is out of its range.

    Example:
    ```python
    >>> from eval.metrics.intervals import clopper_pearson_upper

    >>> round(clopper_pearson_upper(0, 100), 4), round(clopper_pearson_upper(1, 100), 4)
    (0.0295, 0.0466)
    ```
    """
    if not (0 <= hits <= n and n > 0 and 0 < confidence < 1):
        raise ValueError(
            f"There is no bound for {hits} hits in {n} trials at confidence {confidence}: use 0 <= hits <= n, at "
            "least one trial and a confidence between 0 and 1."
        )
    return float(stats.beta.ppf(confidence, hits + 1, n - hits)) if hits < n else 1.0
