"""The collapse recipe keeps what is proved: Wright-Fisher drift, Lemma 1, Theorem 1, and the limits of the choice."""

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "theory"
spec = importlib.util.spec_from_file_location("collapse", RECIPE / "collapse.py")
collapse = importlib.util.module_from_spec(spec)
spec.loader.exec_module(collapse)

INITIAL, REWARDS, FORGOTTEN, RETAINED = collapse.INITIAL, collapse.REWARDS, collapse.FORGOTTEN, collapse.RETAINED
PICKS, RUNS, SIGMAS = 20, 4000, 4  # seeds are fixed: 4 sigma is the size of error seen, not a chance of failure


def simulate(weight, generations):
    rng = np.random.default_rng(1)
    start = np.tile(INITIAL, (RUNS, 1))
    return collapse.iterate(
        start, lambda p: collapse.pick_sampled(p, REWARDS, 1, 1, PICKS, rng), RETAINED, weight, generations
    )


def guided(p, rewards, k, temperature, generations, weight=0.0):
    return collapse.iterate(
        p, lambda p: collapse.pick_exact(p, rewards, k, temperature), RETAINED, weight, generations
    )


def assert_mean(values, expected, deviation=None):
    """Mean over the first axis within Monte Carlo error; `deviation` of one run, measured if no formula gives it."""
    deviation = values.std(0) if deviation is None else deviation
    assert (np.abs(values.mean(0) - expected) <= SIGMAS * deviation / len(values) ** 0.5).all()


def test_the_set_up():
    assert INITIAL.sum() == pytest.approx(1) and RETAINED.sum() == pytest.approx(1)
    assert RETAINED[FORGOTTEN].sum() == 0 and REWARDS[FORGOTTEN].max() < REWARDS[~FORGOTTEN].min()
    assert collapse.heterozygosity(np.array([[0.5, 0.5], [1, 0]])).tolist() == [0.5, 0]
    assert collapse.reward_moments(np.array([0.25, 0.75]), np.log([1, 3])) == pytest.approx((2.5, 0.75))


def test_total_collapse_is_a_martingale_that_loses_diversity_and_ends_in_one_category():
    """Each probability keeps its mean, with variance p (1 - p) (1 - (1 - 1/N)^t), until one category has it all."""
    total = simulate(0, 400)
    for t in (1, 10, 50):
        kept = (1 - 1 / PICKS) ** t
        variance = INITIAL * (1 - INITIAL) * (1 - kept)
        assert_mean(total[t], INITIAL, variance**0.5)
        assert total[t].var(0) == pytest.approx(variance, rel=0.15)
        assert_mean(collapse.heterozygosity(total[t]), collapse.heterozygosity(INITIAL) * kept)
    assert (total[-1].max(-1) == 1).all()
    assert_mean(total[-1], INITIAL, (INITIAL * (1 - INITIAL)) ** 0.5)
    lost = total[:-1] == 0
    assert (total[1:][lost] == 0).all()


@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_lemma_1(weight):
    """The forgotten mass is divided by 1 + lambda each time, simulated in the mean; the retained keep a variance."""
    share = 1 / (1 + weight)
    exact = guided(INITIAL, REWARDS, 1, 1, 70, weight)
    mass = exact[:, FORGOTTEN].sum(-1)
    assert mass == pytest.approx(INITIAL[FORGOTTEN].sum() * share ** np.arange(71), rel=1e-9)
    assert mass[-1] < 1e-6 and exact[-1] == pytest.approx(RETAINED, abs=1e-6)

    history = simulate(weight, 60)
    mass = history[..., FORGOTTEN].sum(-1)
    for t in (1, 3, 6):
        assert_mean(mass[t], INITIAL[FORGOTTEN].sum() * share**t)
    assert (mass[-1] == 0).all()
    # V = share^2 (V + (q (1 - q) - V) / N), the fixed point of drift against the pull of the retained
    variance = share**2 * RETAINED * (1 - RETAINED) / PICKS / (1 - share**2 * (1 - 1 / PICKS))
    assert_mean(history[-1], RETAINED, variance**0.5)
    assert history[-1].var(0) == pytest.approx(variance, rel=0.15)


def test_guidance_speeds_lemma_1_up_or_outweighs_the_retained():
    mass = guided(INITIAL, REWARDS, 5, 0.25, 60, 0.25)[:, FORGOTTEN].sum(-1)
    assert (mass[1:] < mass[:-1] / 1.25).all() and mass[-1] < 1e-6
    # towards a category: the best of k multiplies a rare one by k, the mixture divides by 1 + lambda
    towards = {k: guided(INITIAL, -REWARDS, k, 0, 200, 1.5)[-1, FORGOTTEN].sum() for k in (2, 5)}
    assert towards[2] < 1e-6 and towards[5] > 0.1


@pytest.mark.parametrize(("k", "temperature"), [(2, 1), (5, 0), (5, 0.25)])
def test_theorem_1(k, temperature):
    mean, variance = collapse.reward_moments(guided(INITIAL, REWARDS, k, temperature, 400), REWARDS)
    assert (np.diff(mean) >= -1e-12).all() and mean[1] > mean[0]
    assert mean[-1] == pytest.approx(np.exp(REWARDS.max()), rel=1e-6)
    assert variance[-1] < 1e-6 < variance[0]


def test_theorem_1_ends_in_the_initial_distribution_of_the_best():
    """With several best categories their proportions stay (Ferbach et al. 2024, Theorem 2.1)."""
    rewards = np.array([0, 0.1, 0.2, 0.4, 1, 0.7, 0.85, 1])
    best = rewards == 1
    last = guided(INITIAL, rewards, 5, 1, 400)[-1]
    assert last == pytest.approx(np.where(best, INITIAL, 0) / INITIAL[best].sum(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0, 0.3, 1, np.inf])
def test_the_pick_is_the_mean_over_all_tuples(temperature):
    """Exact, and in one simulated generation. Of no choice nothing is selected."""
    p, rewards, k, picks = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.5, 0, 1, 0.5]), 4, 200_000
    expected = np.zeros(4)
    for draw in map(list, product(range(4), repeat=k)):
        if temperature == 0:
            weights = (rewards[draw] == rewards[draw].max()).astype(float)
        else:
            weights = np.exp(rewards[draw] / temperature)
        np.add.at(expected, draw, np.prod(p[draw]) * weights / weights.sum())
    assert collapse.pick_exact(p, rewards, k, temperature) == pytest.approx(expected, rel=1e-12)
    assert temperature < np.inf or expected == pytest.approx(p)
    assert collapse.pick_exact(p, rewards, 1, temperature) == pytest.approx(p, rel=1e-9)
    [measured] = collapse.pick_sampled(p[None], rewards, k, temperature, picks, np.random.default_rng(3))
    assert (np.abs(measured - expected) <= SIGMAS * (expected * (1 - expected) / picks) ** 0.5).all()


def test_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collapse, "RUNS", 20)
    monkeypatch.setattr(collapse, "SAMPLES", 3)
    monkeypatch.setattr("sys.argv", ["collapse.py", str(tmp_path / "new")])
    collapse.main()
    assert "</svg>" in (tmp_path / "new" / "collapse.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "nan" not in printed and "total collapse" in printed and "partial collapse" in printed
