"""Exact memorization and extraction strength: against a plain search, and without end tokens."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.columns import Outputs, Scored, membership_numbers, memorization_numbers
from eval.metrics.memorization import exact_memorization, extraction_strength, within
from eval.sets import AuditData, OptionSet
from tests.training import scores_of


# mostly right, else the end is nearly always lost
@given(st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=40))
@example([False])  # open-unlearning's variant gives 1
@example([True, True, False, True])  # right before a wrong one does not count
def test_equal_to_a_plain_search(hits):
    k = next(k for k in range(len(hits) + 1) if all(hits[k:]))  # the length where the last one is wrong
    assert extraction_strength(np.array(hits)) == pytest.approx(1 - k / len(hits))
    assert exact_memorization(np.array(hits)) == pytest.approx(hits.count(True) / len(hits))
    nothing = np.array([], dtype=bool)
    assert exact_memorization(nothing) is extraction_strength(nothing) is within(nothing, 5) is None


def test_an_end_token_is_no_token_of_an_answer():
    """A wrong word with its end is not half memorized; loss and probability do count the end."""
    sets = {"forget": [scores_of(5.0, 0.1), scores_of(0.5, 4.0, 0.1)], "holdout": [scores_of(6.0, 0.1)]}
    options = {name: OptionSet(["Who?"] * len(rows), ["a"] * len(rows), None, None) for name, rows in sets.items()}
    data = AuditData({}, options, {}, None)
    said = Outputs({}, [], {name: Scored(rows, None, None) for name, rows in sets.items()})
    numbers = memorization_numbers(data, said)
    assert numbers["exact_memorization"]["mean"] == 0.25 and numbers["extraction_strength"]["mean"] == 0.0
    assert numbers["median_rank"] == 7 and numbers["within_five"]["mean"] == 0.25
    members = membership_numbers(data, said, None)
    # the lowest 40 % of one or two tokens is the lowest one: 5 and 4, or 3 and 2 deviations below the mean, against 6
    assert members["min_k"]["auc"] == 1.0 and members["loss"]["auc"] == 1.0
    sets["holdout"][0] = scores_of(0.05, 7.0)  # its end alone is improbable
    members = membership_numbers(data, said, None)
    assert members["min_k"]["auc"] == members["min_k_plus_plus"]["auc"] == 0.0 and members["loss"]["auc"] == 1.0
