"""Pictures of a study as SVG: inline ones in colours that are variables of the page, and one in a file of its own."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pmc_rl.study_results import Row, worst_leakage

LIGHT = {"ink": "#1b1f24", "muted": "#5b6470", "line": "#dde1e6", "page": "#ffffff"}
SERIES = ("#0068b5", "#c8500a", "#00805a", "#a0459b", "#7a6a00", "#5b6470", "#0d7a88", "#7d4b2a")
LIGHT |= {f"series-{i}": colour for i, colour in enumerate(SERIES)}
# inline pictures are drawn in these, which stand for variables of the page: one picture serves light and dark
PLACEHOLDERS = {name: f"#{0xA17E00 + i:06x}" for i, name in enumerate(LIGHT)}
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">")
MARKER_PATHS = (  # the same, for legends
    "M2 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "M2.5 2.5h5v5h-5z",
    "M5 1.5l3.5 6h-7z",
    "M5 1.5l3.5 3.5-3.5 3.5-3.5-3.5z",
    "M5 8.5l-3.5-6h7z",
    "M4 2h2v2h2v2h-2v2h-2v-2h-2v-2h2z",
    "M1.5 5l6-3.5v7z",
    "M8.5 5l-6-3.5v7z",
)
WIDTH, HEIGHT = 3.5, 2.7  # inches; inline pictures are scaled to the page
LABELS = {"unlearn_quality": "unlearn quality, %", "utility": "utility, %", "worst": "worst leakage"}
# (what is drawn over unlearn quality, the better side of it, the model that never saw the rows or the one before)
PARETO = (("utility", "up", "before"), ("worst", "down", "retain-only model"))


@dataclass
class Panel:
    """One picture with its caption."""

    caption: str
    svg: str


def style_of(names: list[str], name: str) -> tuple[int, int]:
    """Numbers of a model's colour and marker; 64 models differ in the pair."""
    i = names.index(name)
    return i % len(SERIES), (i + i // len(SERIES)) % len(MARKERS)


def keys(names: list[str], shown: list[str]) -> list[tuple[str, str]]:
    """Legend of the models shown, of all in `names`: a little SVG each, and the name."""
    found = []
    for name in shown:
        colour, marker = style_of(names, name)
        path = f'<path d="{MARKER_PATHS[marker]}" style="fill:var(--series-{colour})"/>'
        found.append((f'<svg class="key" viewBox="0 0 10 10" aria-hidden="true">{path}</svg>', name))
    return found


def pareto_panels(rows: list[Row], names: list[str], summary: dict, beaten: dict) -> list[Panel]:
    """Unlearn quality against utility and against the worst leakage."""
    panels = []
    for y, better, reference in PARETO:
        if not beaten[y]:
            continue
        known = summary.get(reference, {}).get(y)
        caption = f"{LABELS[y]}, {better} is better" + (f"; dotted: {reference}" if known else "")
        means = "; ".join(
            f"{name} {own['unlearn_quality'][0]:.1f}, {own[y][0]:.3g}"
            for name, own in summary.items()
            if name in beaten[y]
        )
        svg = _inline(
            f"pareto-{y}",
            f"Unlearn quality and {LABELS[y]}: {means}",
            lambda axes, y=y, better=better, known=known: draw_pareto(
                axes, PLACEHOLDERS, rows, names, summary, beaten[y], y, better, known
            ),
        )
        panels.append(Panel(caption, svg))
    return panels


def pareto_file(rows: list[Row], names: list[str], summary: dict, beaten: dict) -> str:
    """The same two as one SVG file with a legend, on white."""
    shown = [entry for entry in PARETO if beaten[entry[0]]]
    with matplotlib.rc_context(_style(LIGHT, "pareto")):
        figure = Figure(
            figsize=(1.3 * WIDTH * max(len(shown), 1), 1.3 * HEIGHT + 0.2 * len(names)), layout="constrained"
        )
        figure.patch.set_facecolor(LIGHT["page"])
        grid = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
        for axes, (y, better, reference) in zip(grid, shown, strict=False):
            known = summary.get(reference, {}).get(y)
            draw_pareto(axes, LIGHT, rows, names, summary, beaten[y], y, better, known)
            axes.set_title(f"{better} is better" + (f"; dotted: {reference}" if known else ""), fontsize=8)
        handles, labels = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", ncols=1)
        return _save(figure)


def course_panels(courses: dict[str, list[Row]], names: list[str]) -> list[Panel]:
    """Unlearn quality and utility over the steps and over the seconds of training; `courses` are by run."""
    panels = []
    for x, label in (("step", "step"), ("seconds", "seconds of training")):
        for y in ("unlearn_quality", "utility"):
            curves = {
                name: [(point[x], point[y]) for point in points if point[x] is not None and point[y] is not None]
                for name, points in courses.items()
            }
            curves = {name: curve for name, curve in curves.items() if curve}
            if not curves:
                continue

            def draw(axes: Axes, curves=curves, label=label, y=y) -> None:
                for name, curve in curves.items():
                    colour, marker = style_of(names, name)
                    axes.plot(
                        *zip(*curve, strict=True), marker=MARKERS[marker], color=PLACEHOLDERS[f"series-{colour}"]
                    )
                axes.set_xlabel(label)
                axes.set_ylabel(LABELS[y])
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

            last = "; ".join(f"{name} {curve[-1][1]:.1f} at {curve[-1][0]:.0f}" for name, curve in curves.items())
            told = f"{LABELS[y]} over {label}; last: {last}"
            panels.append(Panel(f"{LABELS[y]} over {label}", _inline(f"course-{y}-{x}", told, draw)))
    return panels


def staircase(front: list[tuple[float, float]], left: float, end: float) -> tuple[list[float], list[float]]:
    """
    The border of what a front dominates, where more of x is better: from `left` over its points, then to `end` in y.

    Args:
        front (`list[tuple[float, float]]`): points none of which dominates another, in any order.
    """
    xs, ys = [left], []
    for x, y in sorted(front):
        xs += [x, x]
        ys += [y, y]
    return xs, [*ys, end]


def draw_pareto(
    axes: Axes,
    colours: dict[str, str],
    rows: list[Row],
    names: list[str],
    summary: dict,
    beaten: dict[str, list[str]],
    y: str,
    better: str,
    reference: tuple[float, float | None] | None,
) -> None:
    """Seeds as small dots, means as large ones, hollow where dominated, and the front."""
    front = []
    for name in (name for name in names if name in beaten):
        colour, marker = style_of(names, name)
        style = {"marker": MARKERS[marker], "linestyle": "none", "color": colours[f"series-{colour}"]}
        found = [(row["unlearn_quality"], _value(row, y)) for row in rows if row["model"] == name]
        found = [point for point in found if None not in point]
        axes.plot(*zip(*found, strict=True), markersize=2.5, alpha=0.6, **style)
        mean = summary[name]["unlearn_quality"][0], summary[name][y][0]
        fill = colours["page"] if beaten[name] else style["color"]
        axes.plot(*mean, markersize=8, markerfacecolor=fill, markeredgewidth=1.4, label=name, zorder=3, **style)
        if not beaten[name]:
            front.append(mean)
    if reference is not None:
        axes.axhline(reference[0], color=colours["muted"], linewidth=0.9, linestyle=":")
    axes.margins(0.12)
    axes.autoscale_view()
    (left, right), limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(*staircase(front, left, limits[better == "down"]), color=colours["muted"], linewidth=1)
    axes.set_xlim(left, right)
    axes.set_ylim(limits)
    axes.set_xlabel(LABELS["unlearn_quality"])
    axes.set_ylabel(LABELS[y])


def _value(row: Row, name: str) -> float | None:
    return worst_leakage(row) if name == "worst" else row[name]


def _style(colours: dict[str, str], identifier: str) -> dict:
    own = {"text.color": "ink", "axes.edgecolor": "muted", "axes.labelcolor": "ink", "grid.color": "line"}
    own |= {"xtick.color": "muted", "ytick.color": "muted", "xtick.labelcolor": "ink", "ytick.labelcolor": "ink"}
    return {name: colours[colour] for name, colour in own.items()} | {
        "svg.fonttype": "none",
        "svg.hashsalt": identifier,  # ids are hashes with it, the same in every run
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "font.size": 8,
        "figure.facecolor": "none",
        "savefig.facecolor": "auto",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
        "legend.frameon": False,
    }


def _save(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _inline(identifier: str, label: str, draw: Callable[[Axes], None]) -> str:
    """What `draw` draws on axes, as SVG to stand in a page: text as text, no size but its shape."""
    with matplotlib.rc_context(_style(PLACEHOLDERS, identifier)):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure.subplots())
        svg = _save(figure)
    view_box = re.search(r'viewBox="[^"]*"', svg).group()
    body = re.sub(r"font-family: [^;\"]*;?", "", svg[svg.index("<g ") :])
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    for name, colour in PLACEHOLDERS.items():
        body = body.replace(colour, f"var(--{name})")
    label = escape(label)
    return f'<svg class="plot" role="img" aria-label="{label}" {view_box}><title>{label}</title>{body}'
