"""Intervals: what a bootstrap must satisfy whatever its draws, stratification, counts, the binomial tail; examples."""

import doctest
from importlib import import_module
from math import comb, inf, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.metrics import intervals
from eval.metrics.intervals import bootstrap_interval, clopper_pearson_upper, paired_interval, summary

METRICS = sorted(path.stem for path in Path(intervals.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", [*(f"eval.metrics.{name}" for name in METRICS), "eval.attacks.options"])
def test_examples_of_docstrings(name):
    results = doctest.testmod(import_module(name))
    assert results.attempted and not results.failed


def difference(a, b, axis):
    return a.mean(axis) - b.mean(axis)


def test_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(3).normal(5, 2, 2000)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / sqrt(2000), rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


@settings(max_examples=10)
@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-100, 100), st.sampled_from([-4, -0.5, 0.25, 8])
)
def test_interval_moves_and_stretches_with_the_values(values, shift, scale):
    low, high = bootstrap_interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    expected = sorted(shift + scale * end for end in (low, high))
    assert bootstrap_interval([shift + scale * value for value in values]) == pytest.approx(expected, abs=1e-7)


def test_interval_is_the_same_every_time_and_in_all_batches(monkeypatch):
    values, drawn = np.random.default_rng(0).random(50), []
    first = bootstrap_interval(values)

    def mean(resamples, axis):
        drawn.append(resamples.size)
        return resamples.mean(axis)

    np.random.seed(1)
    monkeypatch.setattr(intervals, "VALUES_PER_BATCH", 5000)
    assert bootstrap_interval(values, statistic=mean) == pytest.approx(first) and first[0] < first[1]
    assert max(drawn) == 5000 and drawn.count(5000) == 20


def test_samples_are_resampled_each_for_themselves():
    def share_of_first(a, b, axis):
        return np.concatenate([a, b], axis=axis).mean(axis)

    # one value within each set: only a draw from one set for the other could move the mean
    assert bootstrap_interval([1.0] * 3, [0.0] * 9, statistic=share_of_first) == [0.25, 0.25]
    values = np.random.default_rng(0).random(100)
    low, high = bootstrap_interval(values, values, statistic=difference)
    assert high - low == pytest.approx(2 * 1.96 * values.std() * sqrt(2 / 100), rel=0.15)  # paired, it would be 0


@pytest.mark.filterwarnings("error")
def test_interval_at_the_edges():
    assert bootstrap_interval([0.25] * 5) == [0.25, 0.25]
    assert bootstrap_interval([]) is bootstrap_interval([1.0]) is None
    assert bootstrap_interval([1.0, 2.0], [1.0], statistic=difference) is None
    for bad in (nan, inf):
        for refuse, values in ((bootstrap_interval, [1.0, bad, 2.0]), (summary, [None, bad])):
            with pytest.raises(ValueError, match="NaN or infinite"):
                refuse(values)


def test_paired_interval_is_of_second_less_first():
    first = np.random.default_rng(0).normal(0, 10, 40)
    assert paired_interval(first.tolist(), (first + 0.5).tolist()) == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])


def test_summary_counts_missing_rows_and_leaves_them_out():
    result = summary([0.25, None, 0.5, None, 0.75])
    assert result == {"mean": 0.5, "interval": bootstrap_interval([0.25, 0.5, 0.75]), "n": 3, "missing": 2}
    assert summary([0.0, None]) == {"mean": 0.0, "interval": None, "n": 1, "missing": 1}  # 0 is a value
    assert summary([None, None]) == {"mean": None, "interval": None, "n": 0, "missing": 2}


@settings(max_examples=50)
@given(st.integers(1, 60), st.data())
def test_upper_bound_is_where_so_few_hits_become_rare(n, data):
    hits = data.draw(st.integers(0, n - 1))
    bound = clopper_pearson_upper(hits, n)
    tail = sum(comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(hits + 1))
    assert tail == pytest.approx(0.05, rel=1e-6) and hits / n < bound < 1
    of_scipy = stats.binomtest(hits, n, alternative="less").proportion_ci(0.95, "exact").high
    assert bound == pytest.approx(of_scipy, abs=1e-11)
    assert clopper_pearson_upper(n, n) == 1.0
