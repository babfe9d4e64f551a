"""Picks and the pool, against loops in plain Python that say the same rule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmc_rl.selection import TOLERANCE, BestAnswer, is_solved, select_best, update_pool

# few values, so that ties are common
scores = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, math.nan])
tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(scores, min_size=k, max_size=k), min_size=1, max_size=6)
)


def first_best(row):
    best = None
    for i, score in enumerate(row):
        if not math.isnan(score) and (best is None or score > row[best]):
            best = i
    return best


@given(tables)
def test_select_best(table):
    expected = [first_best(row) for row in table]
    rewards = np.array(table)
    if None in expected:
        message = (
            rf"^no reward function scored any of the {len(table[0])} samples of {expected.count(None)} question\(s\), "
            rf"the first at position {expected.index(None)} of the batch"
        )
        with pytest.raises(ValueError, match=message):
            select_best(rewards)
    else:
        picks = select_best(rewards)
        assert picks.shape == (len(table),) and picks.tolist() == expected
    np.testing.assert_array_equal(rewards, table)  # left as it was


def test_select_best_by_hand():
    table = [[0.2, 0.9, 0.9], [math.nan, -3.0, math.nan], [1.0, 1.0, 1.0], [-2.0, -1.0, math.nan]]
    assert select_best(np.array(table)).tolist() == [1, 1, 0, 1]


def test_nan_loses_to_minus_infinity():
    assert select_best(np.array([[math.nan, -math.inf]])).tolist() == [1]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), max_size=20))
def test_update_pool(offers):
    pool, expected = {}, {}
    for number, (row_id, score) in enumerate(offers):
        before = pool[row_id].reward if row_id in pool else -math.inf
        update_pool(pool, row_id, [number], score)
        if not (row_id in expected and score < expected[row_id][1]):
            expected[row_id] = ([number], score)
        assert pool[row_id].reward == max(before, score)  # never worse
    assert {row_id: (best.completion_ids, best.reward) for row_id, best in pool.items()} == expected


def test_an_equal_newer_answer_replaces_the_old():
    pool = {}
    for ids, score in [([1], 0.5), ([2], 0.4), ([3], 0.5), ([4], math.nan)]:
        update_pool(pool, 7, ids, score)
    assert pool == {7: BestAnswer([3], 0.5)}


def test_solved_up_to_rounding():
    # what three weights give in floats: just below their exact sum
    total = 0.1 * 3 + 0.7 - 1e-15
    assert total < 1.0
    pool = {0: BestAnswer([1], total), 1: BestAnswer([1], 1.0 - 2 * TOLERANCE), 2: BestAnswer([1], 1.5)}
    assert [is_solved(pool, row_id, 1.0) for row_id in range(4)] == [True, False, True, False]
    assert not any(is_solved(pool, row_id, None) for row_id in range(4))
    assert is_solved({0: BestAnswer([1], 0.0)}, 0, 0.0)
    assert not is_solved({0: BestAnswer([1], -1e-3)}, 0, 0.0)
