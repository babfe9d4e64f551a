"""The report of a study: study.csv, study.md, study.html, pareto.svg and a table, without any text of the data."""

import csv
import time
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from eval.metrics.answers import KINDS
from eval.report.page import COLOURS, environment, escape, html_page, new_figure, svg, table
from eval.study.results import Mean, aggregate, dominators, summarize
from eval.study.settings import StudySettings, grid_runs, ranges
from eval.study.trials import run_of
from pmc_rl.output import write_text

LABELS = {"unlearn_quality": "unlearn quality, %", "utility": "utility, %", "utility_change": "change of utility"}
LABELS |= {"worst_leakage": "worst leakage", "prefilling_greedy": "prefilling, greedy", "train_seconds": "training, s"}
LABELS |= {"extraction_strength": "extraction strength", "num_samples": "samples drawn"}
DIGITS = {"num_samples": 0, "train_seconds": 0, "unlearn_quality": 1, "utility": 1, "utility_change": 1}  # else 3
HEADLINE = ("unlearn_quality", "utility", "utility_change", "worst_leakage", "sampling", "prefilling")
HEADLINE += ("prefilling_greedy", "relearning", "quantization", "extraction_strength", "train_seconds", "num_samples")
PRINTED = ("unlearn_quality", "utility", "worst_leakage", "fluent", "train_seconds")
REFERENCES = {"retain_only": "retain-only model", "before": "before"}  # columns of an audit that do not compete


def write_report(study: StudySettings, trials: list[FrozenTrial], out: Path) -> None:
    """Writes the files of the report below `out` and prints its short table."""
    rows = rows_of(study, trials)
    summary = summarize(rows)
    competing = [name for name in summary if name not in REFERENCES.values()]
    signs = {name: 1 if way == "maximize" else -1 for name, way in study.objectives.items()}
    beaten = dominators(
        {
            model: tuple(sign * summary[model][name][0] for name, sign in signs.items())
            for model in competing
            if all(summary[model][name] for name in signs)
        }
    )
    searched = [trial for trial in trials if run_of(trial).searched]
    front = dominators(
        {run_of(t).name: tuple(s * v for s, v in zip(signs.values(), t.values, strict=True)) for t in searched}
    )
    first = next(trial for trial in trials if run_of(trial).folder == grid_runs(study)[0].folder)
    title = f"Study {Path(study.output_dir).name}"
    values = {
        "title": title,
        "study": study,
        "date": time.strftime("%Y-%m-%d"),
        "headline": means_table(summary, HEADLINE),
        "kinds": means_table(summary, (*KINDS, "fluent", "distinct")),
        "beaten": beaten,
        "objectives": [LABELS.get(name, name) for name in study.objectives],
        "baseline": run_of(first).name,
        "searched": search_table(study, [*searched, first], front),
        "front": [name for name, by in front.items() if not by],
        "runs": {run.name: study.overrides | run.overrides for run in grid_runs(study)},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "optuna")},
    }
    text = environment().get_template("study.md.j2").render(values)
    picture = svg(pareto_figure(rows, summary, competing))
    with (out / "study.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(out / "pareto.svg", picture)
    write_text(out / "study.md", text)
    write_text(out / "study.html", html_page(title, text, {"pareto.svg": picture}))
    print_table(summary, beaten)
    print(f"{out / 'study.html'}; study.md, study.csv and pareto.svg beside it")


def rows_of(study: StudySettings, trials: list[FrozenTrial]) -> list[dict]:
    """A row for each model and seed: runs and controls, then the models they are told against; no searched ones."""
    order = [run.folder for run in grid_runs(study)]
    rows, references = [], {}
    for trial in sorted((t for t in trials if run_of(t).folder in order), key=lambda t: order.index(run_of(t).folder)):
        run = run_of(trial)
        for column, numbers in trial.user_attrs["numbers"].items():
            if column in REFERENCES:  # each audit of a seed says the same of these
                references.setdefault((column, run.seed), {"model": REFERENCES[column], "seed": run.seed, **numbers})
            elif column != "merged":
                name = run.name if column == "after" else column.replace("control_", "control: ")
                rows.append({"model": name, "seed": run.seed, **numbers})
    names = [*(run.name for run in grid_runs(study)), *(f"control: {kind}" for kind in study.controls)]
    rows += references.values()
    names += REFERENCES.values()
    return sorted(rows, key=lambda row: (names.index(row["model"]), study.seeds.index(row["seed"])))


def means_table(summary: dict[str, dict[str, Mean | None]], names: tuple[str, ...]) -> str:
    """Means with deviations, in Markdown; a column that nobody has a number for is left out."""
    shown = [name for name in names if any(own[name] for own in summary.values())]
    rows = [[escape(model), *(told(own[name], name) for name in shown)] for model, own in summary.items()]
    return table(["model", *(LABELS.get(name, name) for name in shown)], rows)


def search_table(study: StudySettings, trials: list[FrozenTrial], front: dict[str, list[str]]) -> str:
    """The values that each trial of the search had and what came of them, in Markdown."""
    names = [name for name, _ in ranges(study.search)]
    rows = []
    for trial in trials:
        name, numbers = run_of(trial).name, trial.user_attrs["numbers"]["after"]
        values = [trial.params.get(key, "-") for key in names]  # the variant beside them has the recipe's
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        cells += [told(aggregate([numbers[key]]), key) for key in study.objectives]
        rows.append([name.removeprefix("search_"), "yes" if name in front and not front[name] else "", *cells])
    head = ["trial", "on the front", *names, *(LABELS.get(name, name) for name in study.objectives)]
    return table(map(escape, head), (map(escape, row) for row in rows))


def told(number: Mean | None, name: str) -> str:
    """A mean and its standard deviation in words; a dash for what cannot be had."""
    if number is None:
        return "-"
    (mean, deviation), digits = number, DIGITS.get(name, 3)
    sign = "+" if name == "utility_change" else ""
    return f"{mean:{sign},.{digits}f}" + ("" if deviation is None else f" ±{deviation:,.{digits}f}")


def pareto_figure(rows: list[dict], summary: dict, names: list[str]) -> Figure:
    """Unlearn quality against utility and against the worst leakage: means, and a faint mark for each seed."""
    figure = new_figure(9, 3.4 + 0.1 * len(names))
    grid = figure.subplots(1, 2)
    goals = (("utility", "higher is better", "before"), ("worst_leakage", "lower is better", "retain-only model"))
    for axes, (y, better, reference) in zip(grid, goals, strict=True):
        for i, name in enumerate(names):
            points = [(row["unlearn_quality"], row[y]) for row in rows if row["model"] == name]
            points = [point for point in points if None not in point]
            if points:
                style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^DvP<>"[(i + i // 8) % 8], "linestyle": ""}
                axes.plot(*zip(*points, strict=True), alpha=0.35, markersize=4, **style)
                axes.plot(summary[name]["unlearn_quality"][0], summary[name][y][0], markersize=8, label=name, **style)
        if reference in summary and summary[reference][y]:
            axes.axhline(summary[reference][y][0], linestyle=":", color=COLOURS[5])
        axes.set_xlabel("unlearn quality, %")
        axes.set_title(f"{LABELS[y]}, {better}; dotted: {reference}", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def print_table(summary: dict, beaten: dict[str, list[str]]) -> None:
    """The most important numbers on the terminal."""
    shown = Table(title="Mean ± standard deviation over the seeds")
    shown.add_column("model", overflow="fold")
    for name in PRINTED:
        shown.add_column(LABELS.get(name, name), justify="right")
    for model, own in summary.items():
        cells = [told(own[name], name) for name in PRINTED]
        shown.add_row(escape_markup(model) + " *" * bool(beaten.get(model)), *cells)
    Console().print(shown)
    if any(beaten.values()):
        print("* dominated: another mean is at least as good in every objective, and better in one")
