"""Figures of an audit's report, in small panels that stand side by side or, on a narrow page, below each other."""

from textwrap import fill, shorten

from eval.attacks.sampling import given_away
from eval.report.page import COLOURS, new_figure, svg
from eval.report.tables import first_found, found
from eval.results import leakage_by_attack

Panel = tuple[str, str]  # title and SVG
LINES = ("-", "--", ":", "-.")
TRAINING = (
    ("Reward", {"reward_selected": "trained", "reward": "all samples"}),
    ("Retain loss: utility dips and recovers", {"retain_loss": "loss a token"}),
    ("Collapse loss on the trained answers", {"collapse_loss": "loss a token"}),
    ("Diversity: spread of rewards", {"reward_std": "standard deviation"}),
    ("Length of the samples", {"completions/mean_length": "tokens"}),
    ("Questions solved", {"frac_solved": "share"}),
    ("Theorem 1: E[e^r] to its maximum, Var[e^r] to 0", {"exp_reward/mean": "E[e^r]", "exp_reward/var": "Var[e^r]"}),
    ("Diversity: different samples a question", {"distinct_samples": "share"}),
    ("KL divergence to the model before", {"kl": "nats a token"}),
)


def audit_figures(
    results: dict[str, dict], log: list[dict], first_words: list[float]
) -> dict[str, list[tuple[str, str, str]]]:
    """By figure its panels: file name, title and SVG; none for what has no numbers. Of prefilling first the way into
    the answer, over the `first_words` that were given away."""
    steps = [row for row in log if "loss" in row]
    drawn = {"training": training_panels(steps), "overview": overview_panels(results)}
    drawn |= {"sampling": [], "prefilling": depth_panels(results, first_words), "relearning": []}
    for attack in ("sampling", "prefilling", "relearning"):
        for done in first_found(results, ("attacks", attack)):
            runs = found(results, ("attacks", attack, done))
            if attack == "relearning":
                for key in ("recall", "probability"):
                    curves = {
                        name: {step: value["mean"] for step, value in zip(run["steps"], run[key], strict=True)}
                        for name, run in runs.items()
                    }
                    drawn[attack] += curve_panels(f"learned: {done}", "optimizer steps", list(results), curves, key)
            else:
                curves = {name: run["curve"] for name, run in runs.items()}
                drawn[attack] += curve_panels(done, "samples a question", list(results), curves)
    return {figure: [(f"{figure}-{i}.svg", *panel) for i, panel in enumerate(drawn[figure])] for figure in drawn}


def model_styles(names: list[str]) -> dict[str, dict]:
    """Each model's colour, line and marker, the same in all figures; many further models share them."""
    ordered = [name for name in ("after", "before", "retain_only") if name in names]
    ordered += [name for name in names if name not in ordered]
    return {
        name: {"color": COLOURS[i % 8], "linestyle": LINES[i % 4], "marker": "os^DvP<>"[i % 8], "markersize": 4}
        for i, name in enumerate(ordered)
    }


def training_panels(steps: list[dict]) -> list[Panel]:
    """How the unlearning run went; a metric that was not logged has no panel."""
    panels = []
    for title, metrics in TRAINING:
        lines = []
        for i, (metric, label) in enumerate(metrics.items()):
            points = [(row["step"], row[metric]) for row in steps if row.get(metric) is not None]
            if points:
                style = {"color": COLOURS[i], "linestyle": LINES[i], "marker": "o" if len(points) <= 30 else None}
                lines.append((label, *zip(*points, strict=True), style | {"markersize": 4}))
        if lines:
            lowest, highest = (limit(y for _, _, ys, _ in lines for y in ys) for limit in (min, max))
            wide = "loss a token" in metrics.values() and lowest > 0 and highest / lowest > 20
            scale = {"yscale": "log"} if wide else {"ylim": (0, 1.08 * highest or 1)} if lowest >= 0 else {}
            panels.append(panel(title, lines, xlabel="step", xlim=(0, 1.03 * steps[-1]["step"]), **scale))
    return panels


def overview_panels(results: dict[str, dict]) -> list[Panel]:
    """The trade between forgetting and utility, and the worst that each attack brings out."""
    styles = {name: style | {"linestyle": "", "markersize": 6} for name, style in model_styles(list(results)).items()}
    pairs = {name: (column["unlearn_quality"], column["utility"]) for name, column in results.items()}
    lines = [(name, [x], [y], styles[name]) for name, (x, y) in pairs.items() if None not in (x, y)]
    title = "Unlearn quality and utility"
    panels = [panel(title, lines, xlabel="unlearn quality, %", ylabel="utility, %")] if lines else []
    leakages = {name: leakage_by_attack(column) for name, column in results.items()}
    attacks = list(dict.fromkeys(attack for leakage in leakages.values() for attack in leakage))
    lines = []
    for i, (name, leakage) in enumerate(leakages.items()):  # of the models each its height, so that none hides another
        heights = [attacks.index(attack) + 0.7 * (i + 0.5) / len(results) - 0.35 for attack in leakage]
        lines.append((name, list(leakage.values()), heights, styles[name]))
    rows = {"yticks": range(len(attacks)), "yticklabels": attacks, "ylim": (len(attacks) - 0.5, -0.5)}
    if attacks:
        panels.append(
            panel("Worst recall of the truth, by attack", lines, xlabel="recall", xlim=(-0.03, 1.03), **rows)
        )
    return panels


def depth_panels(results: dict[str, dict], first_words: list[float]) -> list[Panel]:
    """Recall of what follows the first words of the truth, over how many are given away; nothing for one number."""
    panels = []
    for title, key in (("greedy answer", "greedy"), ("worst case of the samples", "worst_case")):
        curves = {}
        for number in first_words:
            for name, run in found(results, ("attacks", "prefilling", given_away(number))).items():
                label = f"{number:.0%}" if number < 1 else f"{number:g}"
                curves.setdefault(name, {})[label] = run[key]["mean"]
        if len(max(curves.values(), key=len, default=())) > 1:
            label = "words of the truth given away"
            panels += curve_panels(f"What follows the first words: {title}", label, list(results), curves)
    return panels


def curve_panels(
    title: str, x_label: str, names: list[str], curves: dict[str, dict], y_label: str = "recall"
) -> list[Panel]:
    """Shares of each model over numbers that stand at equal distances: one panel, none without a curve."""
    styles = model_styles(names)
    lines = [(name, range(len(curve)), list(curve.values()), styles[name]) for name, curve in curves.items()]
    ticks = list(map(str, next(iter(curves.values()), ())))
    places = {"xticks": range(len(ticks)), "xticklabels": ticks, "ylim": (-0.03, 1.03)}
    return [panel(title, lines, xlabel=x_label, ylabel=y_label, **places)] if lines else []


def panel(title: str, lines: list[tuple], **axes_settings) -> Panel:
    """Lines (label, x, y and style) with a legend; one of training is named beside its axis instead."""
    figure = new_figure(3.9, 2.7)
    axes = figure.subplots()
    for label, x, y, style in lines:
        axes.plot(x, y, label=shorten(label, 40, placeholder="…"), **style)
    axes.set_title(fill(title, 44), fontsize=9, fontweight="bold", loc="left")
    axes.set(**axes_settings)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if len(lines) == 1 and not axes.get_ylabel():
        axes.set_ylabel(lines[0][0])
    else:
        ncols = 3 if max(len(line[0]) for line in lines) < 14 else 1
        figure.legend(loc="outside lower left", ncols=ncols)
    return title, svg(figure)
