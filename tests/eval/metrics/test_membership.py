"""Membership inference: scores by hand and against plain loops, AUC over all pairs, privleak's refusals."""

import doctest
import zlib
from math import floor, inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import membership
from eval.metrics.membership import (
    MembershipMetric,
    auc_interval,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    zlib_score,
)

LOG_PROBS = st.lists(st.floats(-30, 0), min_size=1, max_size=30)
# Few values, so that there are ties.
SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=15)


@pytest.fixture
def metric():
    return MembershipMetric(keep_in_memory=True)


def pairs_auc(members, nonmembers):
    wins = sum((n > m) + (n == m) / 2 for m in members for n in nonmembers)
    return wins / (len(members) * len(nonmembers))


# scores


def test_scores_by_hand():
    log_probs = [-1.0, -5.0, -2.0, 0.0, -3.0]
    assert loss_score(log_probs) == pytest.approx(2.2)
    assert zlib_score(log_probs, "Perú") == pytest.approx(2.2 / len(zlib.compress(b"Per\xc3\xba")))
    assert min_k_score(log_probs) == pytest.approx(4.0)  # 2 of 5
    assert min_k_score(log_probs, fraction=1.0) == pytest.approx(2.2)
    assert min_k_score([-1.0, -3.0]) == 3.0  # not none of 2 but one
    assert min_k_score([-1.0, -2.0, -3.0, -4.0]) == 4.0  # 1.6 of 4 is one
    # z = 2, -1, -2.5, 3: one of four
    assert min_k_plus_plus_score([-1, -4, -7, 0], mean=[-2, -3, -2, -3], std=[0.5, 1, 2, 1]) == pytest.approx(2.5)


def test_deviations_have_a_floor():
    # where the model is certain of another token, the deviation is 0
    assert min_k_plus_plus_score([-2.0], mean=[-1.0], std=[0.0]) == pytest.approx(1000.0)
    assert min_k_plus_plus_score([-2.0], mean=[-1.0], std=[5e-4]) == pytest.approx(1000.0)
    assert min_k_plus_plus_score([-2.0], mean=[-1.0], std=[2e-3]) == pytest.approx(500.0)


def test_an_empty_answer_has_no_score():
    assert loss_score([]) is None
    assert zlib_score([], "") is None
    assert min_k_score([]) is None
    assert min_k_plus_plus_score([], [], []) is None


@settings(deadline=None)
@given(LOG_PROBS, st.sampled_from([0.1, 0.4, 0.75, 1.0]), st.data())
def test_min_k_equals_a_plain_loop(log_probs, fraction, data):
    size = len(log_probs)
    mean = data.draw(st.lists(st.floats(-20, 0), min_size=size, max_size=size))
    std = data.draw(st.lists(st.floats(0, 5), min_size=size, max_size=size))
    count = max(1, floor(fraction * size))

    def score(values):
        rest, lowest = list(values), []
        for _ in range(count):
            lowest.append(rest.pop(rest.index(min(rest))))
        return -sum(lowest) / count

    assert min_k_score(log_probs, fraction) == pytest.approx(score(log_probs), abs=1e-12)
    standardised = [(p - m) / sqrt(max(s * s, 1e-6)) for p, m, s in zip(log_probs, mean, std, strict=True)]
    assert min_k_plus_plus_score(log_probs, mean, std, fraction) == pytest.approx(score(standardised), abs=1e-9)


@pytest.mark.parametrize("bad", [[0.5], [-1.0, nan], [-inf], [None], [[-1.0]], -1.0])
def test_scores_refuse_other_than_log_probabilities(bad):
    for call in (
        lambda: loss_score(bad),
        lambda: zlib_score(bad, "text"),
        lambda: min_k_score(bad),
        lambda: min_k_plus_plus_score(bad, bad, bad),
    ):
        with pytest.raises(ValueError, match="Log-probabilities must be"):
            call()


@pytest.mark.parametrize("fraction", [0, -0.4, 1.5, 40])
def test_fraction_is_a_share(fraction):
    with pytest.raises(ValueError, match="fraction of tokens"):
        min_k_score([-1.0, -2.0], fraction)
    with pytest.raises(ValueError, match="fraction of tokens"):
        min_k_plus_plus_score([-1.0], [-1.0], [1.0], fraction)


@pytest.mark.parametrize(
    ("mean", "std"), [([-1.0], [1.0, 1.0]), ([-1.0], [1.0]), ([-1.0, nan], [1.0, 1.0]), ([-1.0, -1.0], [1.0, -1.0])]
)
def test_min_k_plus_plus_refuses_statistics_of_other_tokens(mean, std):
    with pytest.raises(ValueError, match="one finite mean and standard deviation for each of 2 tokens"):
        min_k_plus_plus_score([-1.0, -2.0], mean, std)


# AUC


@settings(deadline=None)
@given(SCORES, SCORES)
def test_auc_equals_a_loop_over_pairs(members, nonmembers):
    assert membership_auc(members, nonmembers) == pytest.approx(pairs_auc(members, nonmembers))


def test_auc_by_hand():
    assert membership_auc([0.1, 0.2], [0.3, 0.4]) == 1.0  # plainly memorised: members have the lower loss
    assert membership_auc([0.3, 0.4], [0.1, 0.2]) == 0.0
    assert membership_auc([1.0, 1.0], [1.0, 1.0, 1.0]) == 0.5
    assert membership_auc([0.0, 2.0], [1.0]) == 0.5
    assert membership_auc([0.0, 1.0], [1.0, 1.0]) == 0.75


@pytest.mark.parametrize(
    ("members", "nonmembers", "side"),
    [([], [1.0], "members"), ([1.0], [], "non-members"), ([nan], [1.0], "members"), ([1.0], [None], "non-members")],
)
def test_auc_refuses_missing_scores(members, nonmembers, side):
    with pytest.raises(ValueError, match=f"^The {side} must have"):
        membership_auc(members, nonmembers)


def test_interval_of_the_auc_against_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(0, 1, 40).round(1), rng.normal(0.5, 1, 25).round(1)
    wins = (nonmembers > members[:, None]) + (nonmembers == members[:, None]) / 2
    drawn = [wins[np.ix_(rng.integers(0, 40, 40), rng.integers(0, 25, 25))].mean() for _ in range(4000)]
    low, high = auc_interval(members, nonmembers)
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert low < membership_auc(members, nonmembers) < high


def test_interval_of_the_auc_at_the_edges():
    assert auc_interval([1.0, 2.0], [3.0, 4.0]) == [1.0, 1.0]
    assert auc_interval([1.0, 1.0], [1.0, 1.0]) == [0.5, 0.5]
    assert auc_interval([1.0], [3.0, 4.0]) is None
    with pytest.raises(ValueError, match="missing or infinite"):
        auc_interval([1.0, nan], [3.0, 4.0])


# privleak


def test_privleak_by_hand():
    assert privleak(0.5) == 0.0
    assert privleak(1.0) == -100.0
    assert privleak(0.0) == 100.0
    assert privleak(0.7, 0.6) == pytest.approx(-25.0)
    assert privleak(0.6, 0.6) == 0.0
    assert privleak(0.9, 0.9) == 0.0


def test_privleak_refuses_the_target_as_its_own_reference():
    with pytest.raises(ValueError, match=r"AUC of 0\.930, above 0\.9: it has memorized the members itself"):
        privleak(0.93, 0.93)


@pytest.mark.parametrize(("auc", "reference"), [(1.5, 0.5), (-0.1, 0.5), (0.5, 40.0), (nan, 0.5), (0.5, nan)])
def test_privleak_refuses_other_than_an_auc(auc, reference):
    with pytest.raises(ValueError, match=r"An AUC is in \[0, 1\]"):
        privleak(auc, reference)


# metric


def test_metric_agrees_with_the_functions(metric):
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(0, 1, 30).round(1), rng.integers(0, 2, 30)
    members, nonmembers = scores[labels == 0], scores[labels == 1]
    assert metric.compute(predictions=scores, references=labels) == {
        "auc": pytest.approx(pairs_auc(members, nonmembers)),
        "interval": auc_interval(members, nonmembers),
        "n_members": len(members),
        "n_nonmembers": len(nonmembers),
    }
    assert len(members) != len(nonmembers)


def test_metric_keeps_small_differences(metric):
    assert metric.compute(predictions=[1.0, 1.0 + 1e-12], references=[0, 1])["auc"] == 1.0


def test_metric_refuses_bad_rows(metric):
    with pytest.raises(ValueError, match=r"there are \[2\]"):
        metric.compute(predictions=[1.0, 2.0, 3.0], references=[0, 1, 2])
    with pytest.raises(ValueError, match="The non-members must have"):
        metric.compute(predictions=[1.0, 2.0], references=[0, 0])
    with pytest.raises(ValueError, match="The members must have"):
        metric.compute(predictions=[], references=[])


def test_examples_run():
    functions = (loss_score, zlib_score, min_k_score, min_k_plus_plus_score, membership_auc, auc_interval, privleak)
    sources = {f.__name__: f.__doc__ for f in functions}
    for name, source in (sources | {"MembershipMetric": membership._INPUTS_DESCRIPTION}).items():
        test = doctest.DocTestParser().get_doctest(source.replace("```", ""), {}, name, None, None)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0, name
