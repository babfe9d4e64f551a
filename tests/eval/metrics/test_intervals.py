"""Intervals: what a bootstrap must satisfy whatever its draws, stratification, counts, the binomial tail."""

import doctest
import warnings
from math import comb, inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import intervals
from eval.metrics.intervals import bootstrap_interval, clopper_pearson_upper, paired_interval, summary

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def difference(a, b, axis):
    return a.mean(axis) - b.mean(axis)


def test_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(3).normal(5, 2, 2000)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / sqrt(2000), rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


@settings(max_examples=10, deadline=None)
@given(VALUES)
def test_interval_of_symmetric_values_holds_their_mean(values):
    low, high = bootstrap_interval([5 + value for value in values] + [5 - value for value in values])
    assert low - 1e-9 <= 5 <= high + 1e-9


@settings(max_examples=10, deadline=None)
@given(VALUES, st.floats(-100, 100), st.floats(0.125, 8))
def test_interval_moves_and_stretches_with_the_values(values, shift, scale):
    expected = [shift + scale * end for end in bootstrap_interval(values)]
    assert bootstrap_interval([shift + scale * value for value in values]) == pytest.approx(expected, abs=1e-7)


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(0).random(50)
    first = bootstrap_interval(values)
    np.random.seed(1)
    assert bootstrap_interval(values) == first
    assert first[0] < first[1]
    assert all(type(end) is float for end in first)


def test_interval_does_not_depend_on_the_size_of_batches(monkeypatch):
    values = np.random.default_rng(0).random(50)
    shapes = []

    def mean(resamples, axis):
        shapes.append(resamples.shape)
        return resamples.mean(axis)

    monkeypatch.setattr(intervals, "VALUES_PER_BATCH", 5000)
    assert bootstrap_interval(values, statistic=mean) == pytest.approx(bootstrap_interval(values, statistic=None))
    assert max(np.prod(shape) for shape in shapes) == 5000
    assert sum(shape[0] for shape in shapes if len(shape) == 2 and shape[0] > 1) == 2000


def test_samples_are_resampled_each_for_themselves():
    def share_of_first(a, b, axis):
        return np.concatenate([a, b], axis=axis).mean(axis)

    # one value within each set: only a draw from one set for the other could move the mean
    assert bootstrap_interval([1.0] * 3, [0.0] * 9, statistic=share_of_first) == [0.25, 0.25]


def test_samples_are_resampled_independently():
    values = np.random.default_rng(0).random(100)
    low, high = bootstrap_interval(values, values, statistic=difference)
    assert high - low == pytest.approx(2 * 1.96 * values.std() * sqrt(2 / 100), rel=0.15)  # paired, it would be 0
    assert low < 0 < high


def test_interval_of_equal_values_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_interval([0.25] * 5) == [0.25, 0.25]
        assert bootstrap_interval([0.1] * 7) == pytest.approx([0.1, 0.1])


def test_too_few_values_have_no_interval():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([1.0]) is None
    assert bootstrap_interval([1.0, 2.0], [1.0], statistic=difference) is None


@pytest.mark.parametrize("bad", [nan, inf, None])
def test_interval_refuses_what_is_no_number(bad):
    with pytest.raises(ValueError, match="missing or infinite"):
        bootstrap_interval([1.0, bad, 2.0])


@pytest.mark.parametrize("samples", [(), ([1.0, 2.0], [1.0, 2.0])])
def test_interval_without_statistic_is_of_one_sample(samples):
    with pytest.raises(ValueError, match=f"there are {len(samples)}"):
        bootstrap_interval(*samples)


def test_paired_interval_is_of_second_less_first():
    first = np.random.default_rng(0).normal(0, 10, 40)
    assert paired_interval(first.tolist(), (first + 0.5).tolist()) == pytest.approx([0.5, 0.5])
    low, high = paired_interval([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1 <= low < 3 < high <= 5
    assert paired_interval([1.0], [2.0]) is None


def test_paired_interval_refuses_other_rows():
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="missing"):
        paired_interval([1.0, None], [1.0, 2.0])


def test_summary_counts_missing_rows_and_leaves_them_out():
    values = [0.25, None, 0.5, None, 0.75]
    result = summary(values)
    assert list(result) == ["mean", "interval", "n", "missing"]
    assert (result["mean"], result["n"], result["missing"]) == (0.5, 3, 2)
    assert result["interval"] == bootstrap_interval([0.25, 0.5, 0.75])
    assert summary([0.0, None]) == {"mean": 0.0, "interval": None, "n": 1, "missing": 1}  # 0 is a value
    assert summary([None, None]) == {"mean": None, "interval": None, "n": 0, "missing": 2}
    assert summary([]) == {"mean": None, "interval": None, "n": 0, "missing": 0}
    assert summary(np.array([1.0, 1.0])) == {"mean": 1.0, "interval": [1.0, 1.0], "n": 2, "missing": 0}


@pytest.mark.parametrize("bad", [nan, inf])
def test_summary_refuses_faults(bad):
    with pytest.raises(ValueError, match="1 of 2 values"):
        summary([1.0, None, bad])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_upper_bound_is_where_so_few_hits_become_rare(n, data, confidence):
    hits = data.draw(st.integers(0, n - 1))
    bound = clopper_pearson_upper(hits, n, confidence)
    tail = sum(comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(hits + 1))
    assert tail == pytest.approx(1 - confidence, rel=1e-6)
    assert hits / n < bound < 1 or confidence == 0.5


def test_upper_bound_by_hand():
    assert clopper_pearson_upper(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert clopper_pearson_upper(7, 7) == 1.0
    assert clopper_pearson_upper(0, 1, confidence=0.9) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("hits", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 95), (1, 5, 0)]
)
def test_upper_bound_refuses_impossible_numbers(hits, n, confidence):
    with pytest.raises(ValueError, match="no bound"):
        clopper_pearson_upper(hits, n, confidence)


def test_examples_run():
    for function in (bootstrap_interval, paired_interval, summary, clopper_pearson_upper):
        source = function.__doc__.replace("```", "")
        test = doctest.DocTestParser().get_doctest(source, {}, function.__name__, None, None)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0, function.__name__
