"""Exact memorization and extraction strength: edge cases by hand, against a plain search, and without end tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.columns import Outputs, Scored, membership_numbers, memorization_numbers
from eval.data import AuditData, OptionSet
from eval.metrics.memorization import exact_memorization, extraction_strength
from tests.training import scores_of


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        ("", None, None),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),  # open-unlearning's variant gives 1
        ("0000", 0.0, 0.0),
        ("1110", 0.75, 0.0),  # the last one wrong: k = L
        ("0111", 0.75, 0.75),
        ("1101", 0.75, 0.25),  # right before a wrong one does not count
        ("10101", 0.6, 0.2),
    ],
)
def test_by_hand(hits, exact, strength):
    hits = np.array([hit == "1" for hit in hits], dtype=bool)
    assert exact_memorization(hits) == pytest.approx(exact)
    assert extraction_strength(hits) == pytest.approx(strength)


# mostly right, else the end is nearly always lost
@given(st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=40))
def test_equal_to_a_plain_search(hits):
    k = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    assert extraction_strength(np.array(hits)) == pytest.approx(1 - k / len(hits))
    assert exact_memorization(np.array(hits)) == pytest.approx(hits.count(True) / len(hits))


def test_an_end_token_is_no_token_of_an_answer():
    """A wrong word with its end is not half memorized; loss and probability do count the end."""
    sets = {"forget": [scores_of(5.0, 0.1), scores_of(0.5, 4.0, 0.1)], "holdout": [scores_of(6.0, 0.1)]}
    options = {name: OptionSet(["Who?"] * len(rows), ["a"] * len(rows), None, None) for name, rows in sets.items()}
    data = AuditData({}, options, {}, None)
    said = Outputs({}, [], {name: Scored(rows, None, None) for name, rows in sets.items()})
    numbers = memorization_numbers(data, said)
    assert numbers["exact_memorization"]["mean"] == 0.25 and numbers["extraction_strength"]["mean"] == 0.0
    members = membership_numbers(data, said, None)
    # the lowest 40 % of one or two tokens is the lowest one: 5 and 4, or 3 and 2 deviations below the mean, against 6
    assert members["min_k"]["auc"] == 1.0 and members["loss"]["auc"] == 1.0
    sets["holdout"][0] = scores_of(0.05, 7.0)  # its end alone is improbable
    members = membership_numbers(data, said, None)
    assert members["min_k"]["auc"] == members["min_k_plus_plus"]["auc"] == 0.0 and members["loss"]["auc"] == 1.0
