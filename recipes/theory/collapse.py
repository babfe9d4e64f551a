"""Total and partial model collapse of a categorical distribution, exact and simulated: Lemma 1 and Theorem 1 visible.

python recipes/theory/collapse.py OUTPUT_DIR
"""

import argparse
import math
from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# eight answers to one question. The first is the model's own original answer; the reward grows away from it.
INITIAL = np.array([0.30, 0.12, 0.08, 0.18, 0.12, 0.10, 0.06, 0.04])
REWARDS = np.array([0.0, 0.1, 0.2, 0.4, 0.55, 0.7, 0.85, 1.0])
FORGOTTEN = np.array([True, True, True, False, False, False, False, False])
RETAINED = np.where(FORGOTTEN, 0, INITIAL) / INITIAL[~FORGOTTEN].sum()
PICKS, RUNS, SAMPLES, SEED = 50, 2000, 5, 0


def heterozygosity(p: np.ndarray) -> np.ndarray:
    """1 - sum p^2 over the last axis: how often two draws differ; 0 once a single category is left."""
    return 1 - (p**2).sum(-1)


def reward_moments(p: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[e^r] and Var[e^r] over the last axis of `p` `(..., n)`, the two quantities of Theorem 1."""
    mean = p @ np.exp(rewards)
    return mean, (p * (np.exp(rewards) - mean[..., None]) ** 2).sum(-1)


def choice_probabilities(counts: np.ndarray, rewards: np.ndarray, temperature: float) -> np.ndarray:
    """
    Bradley-Terry choice of one of k samples: softmax(reward / temperature) over the samples, summed by category
    (arXiv 2507.04219, before Theorem 1; Ferbach et al. 2024, arXiv 2407.09499, section 2). `counts` `(..., n)` say how
    many of the samples fall into each category; temperature 0 takes the best, equal ones by lot, infinity any.
    """
    below_best = rewards - np.where(counts > 0, rewards, -np.inf).max(-1, keepdims=True)
    if temperature == 0:
        weights = counts * (below_best == 0)
    else:
        weights = counts * np.exp(np.minimum(below_best, 0) / temperature)  # a category above the best has count 0
    return weights / weights.sum(-1, keepdims=True)


@cache
def multisets(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All C(n + k - 1, k) ways to draw k of n categories as counts `(M, n)`, and their multinomial coefficients."""
    draws = combinations_with_replacement(range(n), k)
    counts = np.array([np.bincount(draw, minlength=n) for draw in draws])
    return counts, np.array([math.factorial(k) / math.prod(map(math.factorial, row)) for row in counts.tolist()])


def pick_exact(p: np.ndarray, rewards: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """
    Distribution `(n,)` of the pick among k samples of `p` `(n,)`, the refit of infinitely many picks: the mean choice
    over all k-tuples, at temperature 1 p(x) E[k e^{r(x)} / (e^{r(x)} + e^r of k - 1 others)] (2407.09499, section 2).
    """
    counts, coefficients = multisets(len(p), k)
    probabilities = coefficients * np.prod(p**counts, axis=1)
    picked = probabilities @ choice_probabilities(counts, rewards, temperature)
    return picked / picked.sum()  # it sums to (sum p)^k: a rounding error would grow k-fold a generation


def pick_sampled(p: np.ndarray, rewards: np.ndarray, k: int, temperature: float, picks: int, rng) -> np.ndarray:
    """Relative frequencies of `picks` picks, the maximum likelihood refit, for every run of `p` `(runs, n)`."""
    if k == 1:
        return rng.multinomial(picks, p) / picks
    counts = rng.multinomial(k, p[:, None], size=(len(p), picks))
    return rng.multinomial(1, choice_probabilities(counts, rewards, temperature)).mean(1)


def mix_retained(picked: np.ndarray, retained: np.ndarray, weight: float) -> np.ndarray:
    """Minimiser of NLL(picked) + weight NLL(retained): the mixture with share weight / (1 + weight) retained."""
    return (picked + weight * retained) / (1 + weight)


def iterate(p: np.ndarray, pick: Callable, retained: np.ndarray, weight: float, generations: int) -> np.ndarray:
    """`p` `(..., n)` and its next `generations`, each a refit to picks of the last and retained: `(1 + T, ..., n)`."""
    history = [p]
    for _ in range(generations):
        history.append(mix_retained(pick(history[-1]), retained, weight))
    return np.stack(history)


def exact(k: int, temperature: float, weight: float, generations: int) -> np.ndarray:
    """Infinitely many picks from `INITIAL` on: `(1 + T, n)`."""
    return iterate(INITIAL, lambda p: pick_exact(p, REWARDS, k, temperature), RETAINED, weight, generations)


def simulated(k: int, temperature: float, weight: float, generations: int) -> np.ndarray:
    """`PICKS` picks a generation from `INITIAL` on, in independent runs: `(1 + T, RUNS, n)`."""
    rng = np.random.default_rng(SEED)
    start = np.tile(INITIAL, (RUNS, 1))
    return iterate(
        start, lambda p: pick_sampled(p, REWARDS, k, temperature, PICKS, rng), RETAINED, weight, generations
    )


def plot(total: np.ndarray, partial: np.ndarray, path: Path) -> None:
    """Four panels: a run of each collapse, Lemma 1 over many runs, Theorem 1."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    (left, right), (lemma, theorem) = figure.subplots(2, 2)
    reds, blues = (matplotlib.colormaps[name](np.linspace(0.85, 0.3, 5)) for name in ("Reds", "Blues"))
    colors = [*reds[:3], *blues]
    for axes, run, title in (
        (left, total[:101, 0], f"Total collapse: one run, {PICKS} samples a generation"),
        (right, partial[:41, 0], "Partial collapse: blue is mixed in, λ = 0.25"),
    ):
        axes.stackplot(range(len(run)), run.T, colors=colors)
        axes.set(title=title, xlabel="generation", ylabel="probability", xlim=(0, len(run) - 1), ylim=(0, 1))

    for color, k, weight, history in (
        ("tab:gray", 1, 0, total),
        ("tab:red", 1, 0.25, partial),
        ("tab:purple", SAMPLES, 0.25, simulated(SAMPLES, 1, 0.25, 40)),
        ("tab:blue", 1, 1.5, simulated(1, 1, 1.5, 40)),
    ):
        lemma.plot(
            exact(k, 1, weight, 40)[:, FORGOTTEN].sum(-1),
            color=color,
            label=f"k = {k}, τ = 1, λ = {weight:g}" if k > 1 else f"k = 1, λ = {weight:g}",
        )
        mass = history[:41][..., FORGOTTEN].sum(-1).mean(1)
        lemma.plot(np.where(mass > 0, mass, np.nan), ".", color=color)
    lemma.set(title=f"Lemma 1: mass of red, dots: mean of {RUNS} runs", yscale="log", ylim=(1e-4, 1), xlim=(0, 40))
    lemma.set(xlabel="generation")
    lemma.legend(loc="upper right", bbox_to_anchor=(1, 0.9))

    theorem.axhline(np.exp(REWARDS.max()), color="black", linewidth=0.8, linestyle="--", label="largest e^r")
    for color, k, temperature, weight in (
        ("tab:red", SAMPLES, 0, 0),
        ("tab:orange", SAMPLES, 0.25, 0),
        ("tab:blue", SAMPLES, 1, 0),
        ("tab:cyan", 2, 1, 0),
        ("tab:purple", SAMPLES, 0, 1.5),
    ):
        mean, variance = reward_moments(exact(k, temperature, weight, 100), REWARDS)
        label = f"k = {k}, τ = {temperature:g}" + (f", λ = {weight:g}" if weight else "")
        theorem.plot(mean, color=color, label=label)
        theorem.plot(variance, ":", color=color)
    theorem.set(title="Theorem 1: E[e^r], and Var[e^r] dotted", xlabel="generation", xlim=(0, 100))
    theorem.legend(loc="center right", bbox_to_anchor=(1, 0.42))
    with matplotlib.rc_context({"svg.hashsalt": "collapse"}):  # the same bytes each time
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="collapse.svg is written here")
    output_dir = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)

    total, partial = simulated(1, 1, 0, 500), simulated(1, 1, 0.25, 60)
    print(f"{RUNS} runs, {PICKS} picks a generation\n\ntotal collapse: E[1 - sum p^2], and runs with one answer left")
    for t in (0, 10, 50, 100, 500):
        decay, collapsed = heterozygosity(INITIAL) * (1 - 1 / PICKS) ** t, (total[t].max(-1) == 1).mean()
        print(f"  t = {t:<3}  theory {decay:.4f}  measured {heterozygosity(total[t]).mean():.4f}  {collapsed:6.1%}")
    print("  initial probability ", INITIAL, "\n  share of runs' ends ", total[-1].mean(0).round(3))

    print("\npartial collapse, lambda = 0.25: mass of the forgotten answers, runs in which it is exactly 0")
    mass = partial[..., FORGOTTEN].sum(-1)
    for t in (0, 5, 10, 20, 60):
        theory = INITIAL[FORGOTTEN].sum() / 1.25**t
        print(f"  t = {t:<3}  theory {theory:.2e}  measured {mass[t].mean():.2e}  {(mass[t] == 0).mean():6.1%}")
    print("  retained distribution", RETAINED.round(3)[~FORGOTTEN])
    print("  mean of the runs     ", partial[-1].mean(0).round(3)[~FORGOTTEN])

    print(f"\nguided collapse, k = {SAMPLES}: E[e^r] (Var[e^r]), largest e^r {np.exp(REWARDS.max()):.4f}")
    for temperature, weight in ((0, 0), (0.25, 0), (1, 0), (np.inf, 0), (0, 1.5)):
        history = exact(SAMPLES, temperature, weight, 200)[[0, 1, 5, 20, 200]]
        moments = zip(*reward_moments(history, REWARDS), strict=True)
        row = "  ".join(f"{mean:.4f} ({variance:.4f})" for mean, variance in moments)
        print(f"  tau = {temperature:<4} lambda = {weight:<3}  t = 0, 1, 5, 20, 200: {row}")
    plot(total, partial, output_dir / "collapse.svg")
    print(f"\nWrote {output_dir / 'collapse.svg'}")


if __name__ == "__main__":
    main()
