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


def simulate(weight, generations, k=1, temperature=1, picks=PICKS, runs=RUNS):
    rng = np.random.default_rng(1)
    return collapse.iterate(
        np.tile(INITIAL, (runs, 1)),
        lambda p: collapse.pick_sampled(p, REWARDS, k, temperature, picks, rng),
        RETAINED,
        weight,
        generations,
    )


def guided(p, rewards, k, temperature, generations, weight=0.0, retained=RETAINED):
    return collapse.iterate(
        p, lambda p: collapse.pick_exact(p, rewards, k, temperature), retained, weight, generations
    )


def assert_mean(values, expected, deviation=None):
    """Mean over the first axis within Monte Carlo error; `deviation` of one run, measured if no formula gives it."""
    deviation = values.std(0) if deviation is None else deviation
    assert (np.abs(values.mean(0) - expected) <= SIGMAS * deviation / len(values) ** 0.5).all()


@pytest.fixture(scope="module")
def total():
    return simulate(0, 400)


def test_the_set_up():
    assert INITIAL.sum() == pytest.approx(1) and RETAINED.sum() == pytest.approx(1)
    assert RETAINED[FORGOTTEN].sum() == 0 and REWARDS[FORGOTTEN].max() < REWARDS[~FORGOTTEN].min()
    assert collapse.heterozygosity(np.array([[0.5, 0.5], [1, 0]])).tolist() == [0.5, 0]
    mean, variance = collapse.reward_moments(np.array([0.25, 0.75]), np.log([1, 3]))
    assert (mean, variance) == (pytest.approx(2.5), pytest.approx(0.75))


@pytest.mark.parametrize("generation", [1, 10, 50])
def test_total_collapse_is_a_martingale(total, generation):
    """Each probability keeps its mean, with variance p (1 - p) (1 - (1 - 1/N)^t)."""
    variance = INITIAL * (1 - INITIAL) * (1 - (1 - 1 / PICKS) ** generation)
    assert_mean(total[generation], INITIAL, variance**0.5)
    assert total[generation].var(0) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("generation", [1, 10, 50])
def test_total_collapse_loses_diversity_by_one_in_n(total, generation):
    expected = collapse.heterozygosity(INITIAL) * (1 - 1 / PICKS) ** generation
    assert_mean(collapse.heterozygosity(total[generation]), expected)


def test_total_collapse_ends_in_one_category_with_its_initial_probability(total):
    assert (total[-1].max(-1) == 1).all()
    assert_mean(total[-1], INITIAL, (INITIAL * (1 - INITIAL)) ** 0.5)
    lost = total[:-1] == 0
    assert (total[1:][lost] == 0).all()


@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_lemma_1_exact(weight):
    history = guided(INITIAL, REWARDS, 1, 1, 70, weight)
    mass = history[:, FORGOTTEN].sum(-1)
    assert mass == pytest.approx(INITIAL[FORGOTTEN].sum() / (1 + weight) ** np.arange(71), rel=1e-9)
    assert mass[-1] < 1e-6
    assert history[-1] == pytest.approx(RETAINED, abs=1e-6)


@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_lemma_1_simulated(weight):
    """Geometric in the mean, exactly 0 in the end; what is retained keeps its mean, and a variance that stays."""
    history = simulate(weight, 60)
    mass, share = history[..., FORGOTTEN].sum(-1), 1 / (1 + weight)
    for generation in (1, 3, 6):
        assert_mean(mass[generation], INITIAL[FORGOTTEN].sum() * share**generation)
    assert (mass[-1] == 0).all()
    # V = share^2 (V + (q (1 - q) - V) / N), the fixed point of drift against the pull of the retained
    variance = share**2 * RETAINED * (1 - RETAINED) / PICKS / (1 - share**2 * (1 - 1 / PICKS))
    assert_mean(history[-1], RETAINED, variance**0.5)
    assert history[-1].var(0) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("temperature", [0.25, 1])
@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_guidance_away_from_the_forgotten_speeds_lemma_1_up(weight, temperature):
    mass = guided(INITIAL, REWARDS, 5, temperature, 60, weight)[:, FORGOTTEN].sum(-1)
    assert (mass[1:] < mass[:-1] / (1 + weight)).all() and mass[-1] < 1e-6


@pytest.mark.parametrize(("k", "stays"), [(2, False), (5, True)])
def test_guidance_towards_a_category_can_outweigh_the_retained(k, stays):
    """The best of k multiplies a rare category by k and the mixture divides by 1 + lambda: k > 1 + lambda keeps it."""
    mass = guided(INITIAL, -REWARDS, k, 0, 200, 1.5)[-1, FORGOTTEN].sum()
    assert mass > 0.1 if stays else mass < 1e-6


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("temperature", [0, 0.25, 1])
def test_theorem_1(k, temperature):
    history = guided(INITIAL, REWARDS, k, temperature, 400)
    mean, variance = collapse.reward_moments(history, REWARDS)
    assert (np.diff(mean) >= -1e-12).all() and mean[1] > mean[0]
    assert mean[-1] == pytest.approx(np.exp(REWARDS.max()), rel=1e-6)
    assert variance[-1] < 1e-6 < variance[0]


def test_theorem_1_ends_in_the_initial_distribution_of_the_best():
    """With several best categories their proportions stay (Ferbach et al. 2024, Theorem 2.1)."""
    rewards = np.array([0, 0.1, 0.2, 0.4, 1, 0.7, 0.85, 1])
    best = rewards == 1
    last = guided(INITIAL, rewards, 5, 1, 400)[-1]
    assert last == pytest.approx(np.where(best, INITIAL, 0) / INITIAL[best].sum(), abs=1e-6)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_gain_is_at_least_proportional_to_the_variance(k):
    """
    E'[e^r] - E[e^r] >= (k - 1) / k Var[e^r] / e^{r*} at temperature 1 (Ferbach et al. 2024, Lemma 2.2).

    With w = e^r the pick among k samples has the mean sum w^2 / sum w = mean w + sum (w - mean w)^2 / sum w. The sum
    below is at most k e^{r*}, the one above has expectation (k - 1) Var w. Small differences of reward: near equality.
    """
    rng = np.random.default_rng(2)
    for scale in (3, 1, 0.001):
        for _ in range(30):
            p, rewards = rng.dirichlet(np.full(5, 0.5)), scale * rng.uniform(size=5)
            mean, variance = collapse.reward_moments(p, rewards)
            gain = collapse.reward_moments(collapse.pick_exact(p, rewards, k, 1), rewards)[0] - mean
            bound = (k - 1) / k * variance / np.exp(rewards.max())
            assert gain >= bound - 1e-12
            if scale == 0.001:
                assert gain == pytest.approx(bound, rel=0.01, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1, 2])
def test_exact_pick_is_the_mean_over_all_tuples(temperature):
    p, rewards, k = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.5, 0, 1, 0.5]), 4
    expected = np.zeros(4)
    for draw in product(range(4), repeat=k):
        weights = np.exp(rewards[list(draw)] / temperature)
        np.add.at(expected, list(draw), np.prod(p[list(draw)]) * weights / weights.sum())
    assert collapse.pick_exact(p, rewards, k, temperature) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_cold_choice_is_the_best_of_k(k):
    """P(best of k in level) = F(level)^k - F(levels below)^k; equal rewards share it as they share p."""
    rewards = np.array([0.5, 0, 1, 0.5, 0.2])
    p = np.array([0.1, 0.3, 0.15, 0.25, 0.2])
    up_to, below, level = (
        np.array([p[compare(rewards, r)].sum() for r in rewards]) for compare in (np.less_equal, np.less, np.equal)
    )
    expected = (up_to**k - below**k) * p / level
    assert collapse.pick_exact(p, rewards, k, 0) == pytest.approx(expected, rel=1e-12)
    assert collapse.pick_exact(p, rewards, k, 1e-3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("k", "temperature"), [(5, np.inf), (5, 1e12), (1, 0), (1, 1)])
def test_no_choice_is_no_selection(k, temperature):
    assert collapse.pick_exact(INITIAL, REWARDS, k, temperature) == pytest.approx(INITIAL, rel=1e-9)


@pytest.mark.parametrize(("k", "temperature"), [(1, 1), (2, 1), (5, 0), (5, 0.25), (5, np.inf)])
def test_one_simulated_generation_is_the_exact_one(k, temperature):
    picks = 200_000
    expected = collapse.pick_exact(INITIAL, REWARDS, k, temperature)
    [measured] = collapse.pick_sampled(INITIAL[None], REWARDS, k, temperature, picks, np.random.default_rng(3))
    assert measured.sum() == pytest.approx(1)
    assert (np.abs(measured - expected) <= SIGMAS * (expected * (1 - expected) / picks) ** 0.5).all()


def test_guided_runs_follow_the_exact_path():
    measured, _ = collapse.reward_moments(simulate(0, 8, k=5, picks=2000, runs=40), REWARDS)
    expected, _ = collapse.reward_moments(guided(INITIAL, REWARDS, 5, 1, 8), REWARDS)
    assert_mean(measured[1:].T, expected[1:])


def test_script_and_readme(tmp_path, monkeypatch, capsys):
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert "python recipes/theory/collapse.py " in readme and len(readme.splitlines()) <= 25
    monkeypatch.setattr(collapse, "RUNS", 20)
    monkeypatch.setattr("sys.argv", ["collapse.py", str(tmp_path / "new")])
    collapse.main()
    assert "</svg>" in (tmp_path / "new" / "collapse.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "nan" not in printed and "total collapse" in printed and "partial collapse" in printed
