"""Membership inference: scores by hand and against plain loops, AUC over all pairs, privleak's refusal."""

import zlib
from math import floor, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.membership import (
    auc_interval,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    zlib_score,
)

TOKENS = st.lists(st.tuples(st.floats(-30, 0), st.floats(-20, 0), st.floats(0, 5)), min_size=1, max_size=30)


def test_scores_by_hand():
    log_probs = [-1.0, -5.0, -2.0, 0.0, -3.0]
    assert loss_score(log_probs) == pytest.approx(2.2)
    assert zlib_score(log_probs, "Perú") == pytest.approx(2.2 / len(zlib.compress(b"Per\xc3\xba")))
    assert min_k_score([-1.0, -3.0]) == 3.0  # not none of 2 but one
    # where the model is certain of another token, the deviation is 0, and its floor 0.001
    for std, score in ((0.0, 1000.0), (5e-4, 1000.0), (2e-3, 500.0)):
        assert min_k_plus_plus_score([-2.0], mean=[-1.0], std=[std]) == pytest.approx(score)


@given(TOKENS)
def test_min_k_equals_a_plain_loop(tokens):
    def score(values):
        rest, lowest = list(values), []
        for _ in range(max(1, floor(0.4 * len(values)))):
            lowest.append(rest.pop(rest.index(min(rest))))
        return -sum(lowest) / len(lowest)

    log_probs, mean, std = zip(*tokens, strict=True)
    assert min_k_score(log_probs) == pytest.approx(score(log_probs), abs=1e-12)
    standardised = [(p - m) / sqrt(max(s * s, 1e-6)) for p, m, s in tokens]
    assert min_k_plus_plus_score(log_probs, mean, std) == pytest.approx(score(standardised), abs=1e-9)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (12, 6), (40, 25)])
def test_auc_equals_a_loop_over_pairs(sizes):
    rng = np.random.default_rng(sum(sizes))
    for _ in range(10):  # few values, so that there are ties
        members, nonmembers = (rng.integers(0, 6, size).astype(float).tolist() for size in sizes)
        wins = sum((n > m) + (n == m) / 2 for m in members for n in nonmembers)
        assert membership_auc(members, nonmembers) == pytest.approx(wins / (sizes[0] * sizes[1]), abs=1e-12)
    # plainly memorised: members have the lower loss, be it by next to nothing
    assert membership_auc([0.1, 0.2], [0.3, 0.4]) == membership_auc([1.0], [1.0 + 1e-12]) == 1.0


@pytest.mark.filterwarnings("error")
def test_interval_of_the_auc_against_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(0, 1, 40).round(1), rng.normal(0.5, 1, 25).round(1)
    wins = (nonmembers > members[:, None]) + (nonmembers == members[:, None]) / 2
    drawn = [wins[np.ix_(rng.integers(0, 40, 40), rng.integers(0, 25, 25))].mean() for _ in range(4000)]
    low, high = auc_interval(members, nonmembers)
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert low < membership_auc(members, nonmembers) < high
    assert auc_interval([1.0, 2.0], [3.0, 4.0]) == [1.0, 1.0]
    assert auc_interval([1.0, 1.0], [1.0, 1.0]) == [0.5, 0.5]
    assert auc_interval([1.0], [3.0, 4.0]) is None


def test_privleak_by_hand():
    assert privleak(0.0) == 100.0 and privleak(0.7, 0.6) == pytest.approx(-25.0)
    assert privleak(0.6, 0.6) == privleak(0.9, 0.9) == 0.0
    with pytest.raises(ValueError, match=r"AUC of 0\.930 has memorized the members itself"):
        privleak(0.93, 0.93)  # the target as its own reference
