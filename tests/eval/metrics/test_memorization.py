"""Exact memorization and extraction strength: edge cases by hand, against a plain search, and as a metric."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.columns import Outputs, Scored, membership_numbers, memorization_numbers
from eval.data import AuditData, OptionSet
from eval.metrics import memorization
from eval.metrics.intervals import bootstrap_interval
from eval.metrics.memorization import MemorizationMetric, exact_memorization, extraction_strength
from eval.passes import TokenScores

# Mostly right, else the end is nearly always lost.
HITS = st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=40)


@pytest.fixture
def metric():
    return MemorizationMetric(keep_in_memory=True)


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        ("", None, None),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),  # open-unlearning's variant gives 1
        ("1111", 1.0, 1.0),
        ("0000", 0.0, 0.0),
        ("1110", 0.75, 0.0),  # the last one wrong: k = L
        ("0111", 0.75, 0.75),
        ("0001", 0.25, 0.25),
        ("1101", 0.75, 0.25),  # right before a wrong one does not count
        ("10101", 0.6, 0.2),
    ],
)
def test_by_hand(hits, exact, strength):
    hits = [hit == "1" for hit in hits]
    for given_hits in (hits, np.array(hits, dtype=bool)):
        assert exact_memorization(given_hits) == pytest.approx(exact)
        assert extraction_strength(given_hits) == pytest.approx(strength)


@settings(deadline=None)
@given(HITS)
def test_equal_to_a_plain_search(hits):
    k = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    assert extraction_strength(hits) == pytest.approx(1 - k / len(hits))
    assert exact_memorization(hits) == pytest.approx(hits.count(True) / len(hits))


@pytest.mark.parametrize("bad", [[1, 0, 1], [0.5], [[True, False]], True, ["yes"]])
def test_other_than_booleans_are_refused(bad):
    for function in (exact_memorization, extraction_strength):
        with pytest.raises(ValueError, match="Hits are one boolean an answer token"):
            function(bad)


def test_metric_by_hand(metric):
    result = metric.compute(predictions=[[5, 0, 7, 8], [], [3], [1, 2]], references=[[5, 6, 7, 8], [], [4], [1, 2]])
    exact, strength = [0.75, 0.0, 1.0], [0.5, 0.0, 1.0]
    assert result == {
        "exact_memorization": {
            "mean": pytest.approx(1.75 / 3),
            "interval": bootstrap_interval(exact),
            "n": 3,
            "missing": 1,
        },
        "extraction_strength": {"mean": 0.5, "interval": bootstrap_interval(strength), "n": 3, "missing": 1},
    }


def test_metric_of_rows_of_one_length(metric):
    # evaluate hands them over as one table, not as a list of rows
    result = metric.compute(predictions=[[1, 2], [3, 4]], references=[[0, 2], [3, 4]])
    assert (result["exact_memorization"]["mean"], result["extraction_strength"]["mean"]) == (0.75, 0.75)


def test_metric_of_empty_answers_only(metric):
    result = metric.compute(predictions=[[], []], references=[[], []])
    assert result["extraction_strength"] == {"mean": None, "interval": None, "n": 0, "missing": 2}


def test_metric_refuses_bad_rows(metric):
    with pytest.raises(ValueError, match="Row 1 has 1 predictions for 2 tokens"):
        metric.compute(predictions=[[1], [2]], references=[[1], [2, 3]])
    with pytest.raises(ValueError, match="no rows"):
        metric.compute(predictions=[], references=[])


def test_examples_run():
    sources = {f.__name__: f.__doc__ for f in (exact_memorization, extraction_strength)}
    for name, source in (sources | {"MemorizationMetric": memorization._INPUTS_DESCRIPTION}).items():
        test = doctest.DocTestParser().get_doctest(source.replace("```", ""), {}, name, None, None)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0, name


def scored(*log_probs):
    """An answer's tokens with its end token, each right where its log-probability is above -1."""
    own = np.array(log_probs)
    return TokenScores(own, own > -1, np.full(len(own), -2.0), np.ones(len(own)))


def test_an_end_token_is_no_token_of_an_answer():
    """A wrong word with its end is not half memorized; loss and probability do count the end."""
    sets = {"forget": [scored(-5.0, -0.1), scored(-0.5, -4.0, -0.1)], "holdout": [scored(-6.0, -0.1)]}
    options = {name: OptionSet(["Who?"] * len(rows), ["a"] * len(rows), None, None) for name, rows in sets.items()}
    data = AuditData({}, options, {}, None)
    said = Outputs({}, [], {name: Scored(rows, None, None) for name, rows in sets.items()})
    numbers = memorization_numbers(data, said)
    assert numbers["exact_memorization"]["mean"] == 0.25 and numbers["extraction_strength"]["mean"] == 0.0
    members = membership_numbers(data, said, None)
    # the lowest 40 % of one or two tokens is the lowest one: 5 and 4, or 3 and 2 deviations below the mean, against 6
    assert members["min_k"]["auc"] == 1.0 and members["loss"]["auc"] == 1.0
    sets["holdout"][0] = scored(-0.05, -7.0)  # its end alone is improbable
    members = membership_numbers(data, said, None)
    assert members["min_k"]["auc"] == members["min_k_plus_plus"]["auc"] == 0.0 and members["loss"]["auc"] == 1.0
