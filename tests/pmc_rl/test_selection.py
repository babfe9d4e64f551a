"""Picks, the pool and the sharing out of samples, against plain Python and against the probabilities they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pmc_rl import selection
from pmc_rl.selection import TOLERANCE, BestAnswer

# few values, so that ties are common
scores = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf, math.nan])
tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(scores, min_size=k, max_size=k), min_size=1, max_size=6)
)


def by_rank(row):
    """Indices of what has a score, the best first, the first of equal ones first."""
    return sorted((i for i, score in enumerate(row) if not math.isnan(score)), key=lambda i: (-row[i], i))


@given(tables, st.integers(1, 6))
def test_select_best(table, count):
    expected = [by_rank(row)[:count] for row in table]
    rewards = np.array(table)
    if [] in expected:
        message = rf"of the {len(table[0])} samples of {expected.count([])} .* position {expected.index([])} of the"
        with pytest.raises(ValueError, match=message):
            selection.select_best(rewards, np.full(rewards.shape, True), count)
    else:
        assert selection.select_best(rewards, np.full(rewards.shape, True), count) == expected
    np.testing.assert_array_equal(rewards, table)  # left as it was


def tiled(row: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """A question's rewards so many times, all of which passed."""
    return np.tile(row, (times, 1)), np.full((times, len(row)), True)


def test_bradley_terry_picks_with_the_probabilities_of_the_softmax():
    """20,000 draws of each question, by the numbers that training uses; one sample has no reward."""
    row, draws = np.array([0.0, 0.3, 1.0, math.nan, 0.9, -0.5]), 20_000
    known = ~np.isnan(row)
    steps = [selection.selection_uniforms(0, step, list(range(100)), len(row)) for step in range(draws // 100)]
    for temperature in (0.2, 1.0, 5.0):
        picks = selection.select_bradley_terry(*tiled(row, draws), temperature, np.concatenate(steps))
        counts = np.bincount([pick for [pick] in picks], minlength=len(row))
        weights = np.exp(row[known] / temperature)
        assert counts[3] == 0
        expected = draws * weights / weights.sum()
        common = expected >= 5  # what the test wants of a cell; rarer ones share one
        cells = [[*values[common], *filter(None, [values[~common].sum()])] for values in (counts[known], expected)]
        assert chisquare(*cells).pvalue > 1e-3


def test_bradley_terry_draws_several_without_replacement():
    """The second pick is a softmax over what the first one left (Plackett-Luce)."""
    row = np.array([0.0, 0.5, 1.0])
    draws = 20_000
    uniforms = np.random.default_rng(0).random((draws, 3))
    pairs = [tuple(picks) for picks in selection.select_bradley_terry(*tiled(row, draws), 1.0, uniforms, 2)]
    weights = np.exp(row)
    orders = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = [draws * weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i]) for i, j in orders]
    assert set(pairs) == set(orders)
    assert chisquare([pairs.count(order) for order in orders], expected).pvalue > 1e-3


@given(
    st.lists(st.lists(st.integers(-20, 20), min_size=4, max_size=4, unique=True), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_towards_temperature_zero_bradley_terry_is_the_best(table, seed):
    rewards = np.array(table) / 10
    uniforms = np.random.default_rng(seed).random(rewards.shape).clip(1e-12)
    passed = uniforms < 0.8
    drawn = selection.select_bradley_terry(rewards, passed, 1e-6, uniforms, 3)
    assert drawn == selection.select_best(rewards, passed, 3)


def test_selection_numbers_depend_on_what_names_a_sample_only():
    numbers = selection.selection_uniforms(3, 5, [7, 8, 9], 4)
    assert numbers.shape == (3, 4) and (numbers > 0).all() and (numbers < 1).all()
    np.testing.assert_array_equal(selection.selection_uniforms(3, 5, [9, 7], 4), numbers[[2, 0]])
    for other in (selection.selection_uniforms(4, 5, [7], 4), selection.selection_uniforms(3, 6, [7], 4)):
        assert (other != numbers[:1]).all()


@given(tables, st.integers(0, 2**30 - 1), st.integers(1, 7))
def test_the_gate_shuts_out_what_fails(table, bits, count):
    """One rule in plain Python: what passed and has a reward, largest first, then as they came."""
    rewards = np.array(table)
    passed = np.array([bits >> i & 1 for i in range(rewards.size)], dtype=bool).reshape(rewards.shape)
    if np.isnan(rewards).all(1).any():
        with pytest.raises(ValueError):
            selection.select_best(rewards, passed, count)
        return
    for row, allowed, picks in zip(table, passed, selection.select_best(rewards, passed, count), strict=True):
        possible = [(-score, i) for i, score in enumerate(row) if allowed[i] and not math.isnan(score)]
        assert picks == [i for _, i in sorted(possible)][:count]


numbers = st.one_of(st.floats(-5, 5), st.just(math.nan))


@given(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=2, max_size=6))
def test_normalized_within_questions(table):
    table = np.array(table[: len(table) // 2 * 2])  # a row for each question and reward
    rewards = table.reshape(-1, 2, 4).transpose(0, 2, 1)
    normalized = selection.normalize_within_questions(rewards).transpose(0, 2, 1).reshape(-1, 4)
    for before, after in zip(table, normalized, strict=True):
        known = ~np.isnan(before)
        assert np.isnan(after[~known]).all()
        if known.any() and before[known].std() > 2 * TOLERANCE:
            np.testing.assert_allclose(after[known], (before[known] - before[known].mean()) / before[known].std())
        elif known.any() and before[known].std() < TOLERANCE / 2:
            assert (after[known] == 0).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 64), st.integers(0, 20))
def test_samples_are_shared_out(visits, num_generations, solved):
    """Within the budget, none left out, no more for a question that is more successful, at most four even shares."""
    budget = num_generations * (len(visits) + solved)
    shares = selection.share_samples(visits, num_generations, budget)
    assert len(shares) == len(visits) and min(shares) >= 1
    assert sum(shares) <= max(budget, len(visits))
    assert max(shares) <= 4 * num_generations
    by_visits = sorted(zip(visits, shares, strict=True))
    for (a, fewer), (b, more) in zip(by_visits, by_visits[1:], strict=False):
        assert fewer == more if a == b else fewer <= more


def test_shares_by_hand():
    assert selection.share_samples([0, 0], 48, 96) == [6, 6]
    assert selection.share_samples([0, 1, 7], 48, 48 * 3) == [6, 12, 48]
    assert selection.share_samples([15, 99], 8, 1000) == [16, 32] and selection.share_samples([31], 8, 1000) == [32]
    assert selection.share_samples([7, 7], 48, 48) == [24, 24]  # cut to the budget
    assert selection.share_samples([0], 5, 5) == [1]
    # the least one of a question is taken from the others, as far as there are any
    assert selection.share_samples([0, 0, 31], 1, 3) == [1, 1, 1]
    assert selection.share_samples([0] * 9 + [31], 5, 20) == [1] * 9 + [11]
    assert selection.share_samples([0, 0, 9], 1, 2) == [1, 1, 1]


completions = st.lists(st.integers(0, 2), min_size=1, max_size=2)
answers = st.lists(st.builds(BestAnswer, completions, st.sampled_from([0.0, 0.5, 1.0])), max_size=6)


@given(answers, answers, st.integers(1, 3))
def test_best_answers(new, stored, count):
    kept = selection.best_answers(new, stored, count)
    texts = [tuple(answer.completion_ids) for answer in kept]
    assert len(set(texts)) == len(texts) == min(count, len({tuple(a.completion_ids) for a in new + stored}))
    assert [a.reward for a in kept] == sorted((a.reward for a in kept), reverse=True)
    # one rule in plain Python: of equal texts the first, of equal rewards the newer
    first = {}
    for position, answer in enumerate(new + stored):
        first.setdefault(tuple(answer.completion_ids), (position, answer))
    ordered = sorted(first.values(), key=lambda item: (-item[1].reward, item[0]))
    assert kept == [answer for _, answer in ordered[:count]]


def test_solved_up_to_rounding():
    below = 0.1 * 3 + 0.7 - 1e-15  # what three weights give in floats: just below their exact sum
    assert below < 1.0
    for rewards, count, max_reward, solved in [
        ([below], 1, 1.0, True),
        ([1.5], 1, 1.0, True),
        ([1.0, 1.0], 2, 1.0, True),
        ([1.0 - 2 * TOLERANCE], 1, 1.0, False),
        ([], 1, 1.0, False),
        ([1.0], 1, None, False),
        ([1.0], 2, 1.0, False),
        ([1.0, 0.9], 2, 1.0, False),
    ]:
        answers = [BestAnswer([i], reward) for i, reward in enumerate(rewards)]
        assert selection.is_solved(answers, count, max_reward) is solved
