"""Figures of the report: numbers of an audit -> inline SVG, in colours that are CSS variables of the page."""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from eval.metrics.answers import KINDS

# Drawn in these colours, which stand for variables of the page: one figure serves light and dark.
SERIES = 8
VARIABLES = ("ink", "muted", "line", *(f"series-{i}" for i in range(SERIES)), *(f"kind-{kind}" for kind in KINDS))
COLOURS = {name: f"#{0xA17E00 + i:06x}" for i, name in enumerate((*VARIABLES, "on-kind"))}
DASHES = ((), (5, 2), (1.5, 1.5), (5, 1.5, 1, 1.5), (8, 2), (3, 3), (7, 1.5, 1, 1.5, 1, 1.5), (1, 3))
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">")
MARKER_PATHS = (  # the same, for legends
    "M10 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "M10.5 2.5h5v5h-5z",
    "M13 1.5l3.5 6h-7z",
    "M13 1.5l3.5 3.5-3.5 3.5-3.5-3.5z",
    "M13 8.5l-3.5-6h7z",
    "M12 2h2v2h2v2h-2v2h-2v-2h-2v-2h2z",
    "M9.5 5l6-3.5v7z",
    "M16.5 5l-6-3.5v7z",
)
WIDTH = 3.5  # inches; panels are scaled to the page, and stand below each other where it is narrow
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 8,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
}
LOSS = "loss a token"
TRAINING_PANELS = (
    ("Reward", {"reward_selected": "trained", "reward": "all samples"}),
    ("Retain loss: utility dips and recovers", {"retain_loss": LOSS}),
    ("Collapse loss on the trained answers", {"collapse_loss": LOSS}),
    ("Diversity: spread of rewards", {"reward_std": "standard deviation"}),
    ("Length of the samples", {"completions/mean_length": "tokens"}),
    ("Questions solved", {"frac_solved": "share"}),
    ("Theorem 1: E[e^r] to its maximum, Var[e^r] to 0", {"exp_reward/mean": "E[e^r]", "exp_reward/var": "Var[e^r]"}),
    ("Diversity: different samples a question", {"distinct_samples": "share"}),
    ("KL divergence to the model before", {"kl": "nats a token"}),
)


@dataclass
class Panel:
    """One small figure with its caption."""

    caption: str
    svg: str


def model_style(columns: list[str]) -> dict[str, int]:
    """Number of each model's colour, dash and marker, the same in all figures; many further models share them."""
    fixed = {"after": 0, "before": 1, "retain_only": 2}
    others = [name for name in columns if name not in fixed]
    return {name: fixed[name] if name in fixed else 3 + others.index(name) % (SERIES - len(fixed)) for name in columns}


def model_keys(columns: list[str], shown: Iterable[str]) -> list[tuple[str, str]]:
    """Legend of the models shown, of those of the audit: a little SVG each, and the name."""
    keys = []
    styles = model_style(columns)
    for name in shown:
        i = styles[name]
        dash = " ".join(str(2 * length) for length in DASHES[i]) or "none"
        line = f'<path d="M0 5h26" style="stroke:var(--series-{i});stroke-width:2;stroke-dasharray:{dash}"/>'
        keys.append((_key(f'{line}<path d="{MARKER_PATHS[i]}" style="fill:var(--series-{i})"/>'), name))
    return keys


def kind_keys() -> list[tuple[str, str]]:
    """Legend of the kinds of answers."""
    return [(_key(f'<path d="M8 0h10v10h-10z" style="fill:var(--kind-{kind})"/>'), kind) for kind in KINDS]


def _key(paths: str) -> str:
    return f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true">{paths}</svg>'


def training_curves(log: list[dict]) -> list[Panel]:
    """How the unlearning run went, step by step; a metric that was not logged has no panel."""
    panels = []
    for caption, metrics in TRAINING_PANELS:
        points = {
            label: [(row["step"], row[metric]) for row in log if row.get(metric) is not None]
            for metric, label in metrics.items()
        }
        series = {label: values for label, values in points.items() if values}
        if series:
            panels.append(_training_panel(caption, series, log[-1]["step"], f"training-{len(panels)}"))
    return panels


def _training_panel(caption: str, series: dict[str, list[tuple]], last_step: int, identifier: str) -> Panel:
    values = [y for points in series.values() for _, y in points]

    def draw(axes: Axes) -> None:
        for i, (label, points) in enumerate(series.items()):
            marker = "o" if len(points) <= 30 else None
            axes.plot(*zip(*points, strict=True), marker=marker, color=_colour(i), dashes=DASHES[i], label=label)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.03 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if LOSS in series and min(values) > 0 and max(values) / min(values) > 20:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        elif min(values) >= 0:
            axes.set_ylim(0, 1.08 * max(values) or 1)
        if len(series) > 1:
            axes.legend(loc="best")
        else:
            axes.set_ylabel(next(iter(series)))

    last = ", ".join(f"{label} {points[-1][1]:.3g} at step {points[-1][0]}" for label, points in series.items())
    return Panel(caption, _svg(identifier, f"{caption}; last values: {last}", draw))


def leakage_curves(runs: dict[str, dict], columns: list[str], identifier: str) -> list[Panel]:
    """
    Expected worst recall over the number of samples, a panel for each setting or prefix.

    Args:
        runs (`dict`): by column what the sampling or the prefilling attack returned.
        columns (`list[str]`): all columns of the audit, which decide colours.
    """
    panels = []
    for setting in next(iter(runs.values())):
        curves = {name: run[setting]["curve"] for name, run in runs.items() if "curve" in run[setting]}
        if not curves:
            continue
        counts = list(map(int, next(iter(curves.values()))))

        def draw(axes: Axes, curves=curves, counts=counts) -> None:
            for name, curve in curves.items():
                axes.plot(counts, list(curve.values()), **_line(columns, name))
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, list(map(str, counts)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("samples a question")
            _share_axis(axes, "expected worst recall")

        last = ", ".join(f"{name} {list(curve.values())[-1]:.2f}" for name, curve in curves.items())
        label = f"{setting}: expected worst recall over the number of samples; with {counts[-1]}: {last}"
        panels.append(Panel(setting, _svg(f"{identifier}-{len(panels)}", label, draw)))
    return panels


def relearning_curves(runs: dict[str, dict], columns: list[str]) -> list[Panel]:
    """Recall over the steps of relearning, a panel for each set of learned rows; `runs` are by column."""
    panels = []
    for learned in next(iter(runs.values())):
        curves = {name: run[learned] for name, run in runs.items()}
        steps = next(iter(curves.values()))["steps"]

        def draw(axes: Axes, curves=curves, steps=steps) -> None:
            for name, curve in curves.items():
                axes.plot(range(len(steps)), curve["recall"], **_line(columns, name))
            axes.set_xticks(range(len(steps)), list(map(str, steps)))
            axes.set_xlabel("optimizer steps")
            _share_axis(axes, "recall")

        last = ", ".join(f"{name} {curve['recall'][-1]:.2f}" for name, curve in curves.items())
        label = f"Recall after relearning {learned}; after {steps[-1]} steps: {last}"
        panels.append(Panel(f"learned: {learned}", _svg(f"relearning-{len(panels)}", label, draw)))
    return panels


def option_shares(runs: dict[str, dict], columns: list[str]) -> list[Panel]:
    """How often the right option is the least and the most likely, and the least by quantile; `runs` are by column."""
    chance = 1 / next(iter(runs.values()))["options"]
    rows = {
        label: {name: (run[key], None) for name, run in runs.items()}
        for label, key in (("least likely", "least"), ("most likely", "most"))
    }

    def draw(axes: Axes) -> None:
        for name, run in runs.items():
            shares = [entry["least"] for entry in run["by_quantile"]]
            axes.plot(range(len(shares)), shares, **_line(columns, name))
        quantiles = [f"{entry['quantile']:.0%}" for entry in next(iter(runs.values()))["by_quantile"]]
        axes.set_xticks(range(len(quantiles)), quantiles)
        axes.set_xlabel("rows with the smallest probabilities")
        axes.axhline(chance, color=COLOURS["muted"], linewidth=0.8, linestyle=":")
        _share_axis(axes, "share least likely")

    shares = "Right option the least and the most likely; dotted: chance"
    by_quantile = "Right option the least likely, where the smallest probability is small; dotted: chance"
    return [
        dot_panel(shares, "share", rows, columns, chance, "options"),
        Panel(by_quantile, _svg("option-quantiles", by_quantile, draw)),
    ]


def dot_panel(
    caption: str,
    x_label: str,
    rows: dict[str, dict[str, tuple[float, list[float] | None]]],
    columns: list[str],
    reference: float | None,
    identifier: str,
) -> Panel:
    """
    Values between 0 and 1 as dots with their intervals, a line for each row and model.

    Args:
        rows (`dict`): by label and column the value and its interval.
        reference (`float`, *optional*): where a dotted line stands.
    """
    styles = model_style(columns)
    step = 1 / (len(columns) + 1)

    def draw(axes: Axes) -> None:
        for i, values in enumerate(rows.values()):
            for j, name in enumerate(columns):
                if name not in values:
                    continue
                value, interval = values[name]
                style = {"color": _colour(styles[name]), "clip_on": False}
                y = i + (j - (len(columns) - 1) / 2) * step
                if interval is not None:
                    axes.plot(interval, [y, y], linewidth=1.2, solid_capstyle="butt", **style)
                axes.plot([value], [y], MARKERS[styles[name]], markersize=4.5, **style)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(x_label)
        if reference is not None:
            axes.axvline(reference, color=COLOURS["muted"], linewidth=0.8, linestyle=":")

    told = "; ".join(
        f"{label}: " + ", ".join(f"{name} {value:.2f}" for name, (value, _) in values.items())
        for label, values in rows.items()
    )
    height = 0.5 + len(rows) * (0.14 * len(columns) + 0.14)
    return Panel(caption, _svg(identifier, f"{caption}: {told}", draw, height))


def answer_kinds(kinds: dict[str, dict], columns: list[str]) -> list[Panel]:
    """Shares of the kinds of answers as stacked bars, a panel for each set; `kinds` are by column."""
    panels = []
    for set_name in next(iter(kinds.values())):
        counts = {name: [kinds[name][set_name][kind] for kind in KINDS] for name in columns}

        def draw(axes: Axes, counts=counts) -> None:
            for row, (name, numbers) in enumerate(counts.items()):
                _stacked_bar(axes, row, numbers)
                # above its bar, so that a long name takes no room from the bars
                axes.text(0, row - 0.33, _short(name), va="bottom", ha="left")
            axes.set_ylim(len(counts) - 0.55, -0.75)
            axes.set_yticks([])
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)

        told = "; ".join(
            f"{name}: " + ", ".join(f"{number} {kind}" for kind, number in zip(KINDS, numbers, strict=True))
            for name, numbers in counts.items()
        )
        label = f"Kinds of answers to {set_name}. {told}"
        panels.append(Panel(set_name, _svg(f"kinds-{len(panels)}", label, draw, 0.45 + 0.52 * len(columns))))
    return panels


def _stacked_bar(axes: Axes, row: int, numbers: list[int]) -> None:
    left = 0.0
    for kind, number in zip(KINDS, numbers, strict=True):
        share = number / sum(numbers)
        axes.barh(row, share, 0.55, left, color=COLOURS[f"kind-{kind}"], linewidth=0)
        if share >= 0.05:
            x = left + share / 2
            axes.text(x, row + 0.01, str(number), va="center", ha="center", fontsize=7, color=COLOURS["on-kind"])
        left += share


def _share_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(label)


def _colour(i: int) -> str:
    return COLOURS[f"series-{i}"]


def _line(columns: list[str], name: str) -> dict:
    i = model_style(columns)[name]
    return {"color": _colour(i), "dashes": DASHES[i], "marker": MARKERS[i], "zorder": 3 if name == "after" else 2}


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _svg(identifier: str, label: str, draw: Callable[[Axes], None], height: float = 2.3) -> str:
    """
    What `draw` draws on axes, as SVG to stand inline: text as text, no size but its shape, nothing but what is drawn.

    `identifier` is one of its own on the page: ids are hashes with it as the salt, the same in every run.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": identifier}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg")
    svg = stream.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', svg).group()
    body = svg[svg.index("<g ") :]
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    label = escape(label)
    return f'<svg class="plot" role="img" aria-label="{label}" {view_box}><title>{label}</title>{body}'
