"""The report of a study: study.csv, study.md, study.html, figures and a table, without any text of the data."""

import csv
import time
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markdown import Markdown

from eval.metrics.answers import KINDS
from eval.report.page import COLOURS, environment, escape, html_page, new_figure, svg, table
from eval.study.results import Mean, aggregate, dominators, summarize
from eval.study.settings import StudySettings, grid_runs, ranges
from eval.study.trials import run_of
from pmc_rl.output import write_text

LABELS = {"unlearn_quality": "unlearn quality, %", "utility": "utility, %", "utility_change": "change of utility"}
LABELS |= {"worst_leakage": "worst leakage", "prefilling_greedy": "prefilling, greedy", "train_seconds": "training, s"}
LABELS |= {"extraction_strength": "extraction strength", "exact_memorization": "exact memorization"}
LABELS |= {"forget_quality": "forget quality, p", "membership_auc": "membership, AUC of min-k"}
LABELS |= {"forget_token_shift": "shift of forgotten tokens", "other_token_shift": "shift of other tokens"}
LABELS |= {"peak_memory_gib": "peak memory, GiB", "num_samples": "samples drawn"}
DIGITS = {"num_samples": 0, "train_seconds": 0, "unlearn_quality": 1, "utility": 1, "utility_change": 1}  # else 3
HEADLINE = ("unlearn_quality", "utility", "utility_change", "worst_leakage", "sampling", "prefilling")
HEADLINE += ("prefilling_greedy", "relearning", "quantization", "train_seconds", "peak_memory_gib", "num_samples")
PROBABILITIES = ("extraction_strength", "exact_memorization", "forget_quality", "membership_auc")
PROBABILITIES += ("forget_token_shift", "other_token_shift")
PRINTED = ("unlearn_quality", "utility", "worst_leakage", "fluent", "train_seconds")
REFERENCES = {"retain_only": "retain-only model", "before": "before"}  # columns of an audit that do not compete


def write_report(study: StudySettings, trials: list[FrozenTrial], out: Path) -> None:
    """Writes the files of the report below `out` and prints its short table."""
    rows = rows_of(study, trials)
    summary = summarize(rows)
    competing = [name for name in summary if name not in REFERENCES.values()]
    means = {model: [summary[model][name] for name in study.objectives] for model in competing}
    means = {model: [mean for mean, _ in own] for model, own in means.items() if None not in own}
    ways = study.objectives.values()
    beaten = {name: by for name, by in dominators(means, ways).items() if by}
    searched = {run_of(trial).name: trial for trial in trials if run_of(trial).searched}
    found = {name: trial.values for name, trial in searched.items()}
    front = [name for name, by in dominators(found, ways).items() if not by]
    [first] = [trial for trial in trials if run_of(trial).folder == grid_runs(study)[0].folder]
    pictures = {"pareto.svg": svg(pareto_figure(rows, summary, competing))}
    if shifted := [name for name in competing if summary[name]["forget_token_shift"]]:
        pictures["token_shift.svg"] = svg(shift_figure(summary, shifted))
    title = f"Study {Path(study.output_dir).name}"
    likely = tuple(name for name in PROBABILITIES if any(own[name] for own in summary.values()))
    values = {
        "title": title,
        "shown": pictures,
        "study": study,
        "date": time.strftime("%Y-%m-%d"),
        "headline": means_table(summary, HEADLINE),
        "probabilities": means_table(summary, likely) if likely else "",
        "kinds": means_table(summary, (*KINDS, "fluent", "distinct")),
        "beaten": beaten,
        "objectives": [LABELS.get(name, name) for name in study.objectives],
        "baseline": run_of(first).name,
        "searched": search_table(study, [*searched.values(), first], front),
        "front": front,
        "runs": {run.name: study.overrides | run.overrides for run in grid_runs(study)},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "optuna")},
    }
    text = environment().get_template("study.md.j2").render(values)
    with (out / "study.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for name, picture in pictures.items():
        write_text(out / name, picture)
    write_text(out / "study.md", text)
    write_text(out / "study.html", html_page(title, text, pictures))
    Console().print(Markdown(means_table(summary, PRINTED)))
    print(f"{out / 'study.html'}; study.md, study.csv and figures beside it")


def rows_of(study: StudySettings, trials: list[FrozenTrial]) -> list[dict]:
    """A row for each model and seed: runs and controls, then the models they are compared with; no searched ones."""
    by_folder = {run_of(trial).folder: trial for trial in trials}
    others = {f"control_{kind}": f"control: {kind}" for kind in study.controls} | REFERENCES
    rows: dict[tuple[str, int], dict] = {}
    for run in grid_runs(study):
        names = {"after": run.name, **others}
        for column, numbers in by_folder[run.folder].user_attrs["numbers"].items():
            if column in names:  # each audit of a seed says the same of the references
                row = {"model": names[column], "seed": run.seed, **numbers}
                rows.setdefault((names[column], run.seed), row)
    order = [*(run.name for run in grid_runs(study)), *others.values()]
    return sorted(rows.values(), key=lambda row: (order.index(row["model"]), study.seeds.index(row["seed"])))


def means_table(summary: dict[str, dict[str, Mean | None]], names: tuple[str, ...]) -> str:
    """Means with deviations, in Markdown; a column that nobody has a number for is left out."""
    shown = [name for name in names if any(own[name] for own in summary.values())]
    rows = [[escape(model), *(in_words(own[name], name) for name in shown)] for model, own in summary.items()]
    return table(["model", *(LABELS.get(name, name) for name in shown)], rows)


def search_table(study: StudySettings, trials: list[FrozenTrial], front: list[str]) -> str:
    """The values that each trial of the search had and what came of them, in Markdown."""
    names = list(ranges(study.search))
    rows = []
    for trial in trials:
        name, numbers = run_of(trial).name, trial.user_attrs["numbers"]["after"]
        values = [trial.params.get(key, "-") for key in names]  # the variant beside them has the recipe's
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        cells += [in_words(aggregate([numbers[key]]), key) for key in study.objectives]
        rows.append([name.removeprefix("search_"), "yes" if name in front else "", *cells])
    head = ["trial", "on the front", *names, *(LABELS.get(name, name) for name in study.objectives)]
    return table(map(escape, head), (map(escape, row) for row in rows))


def in_words(number: Mean | None, name: str) -> str:
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


def shift_figure(summary: dict, names: list[str]) -> Figure:
    """How the probability of tokens in unrelated text has changed: of forgotten ones, and of all others."""
    figure = new_figure(9, 1.2 + 0.35 * len(names))
    axes = figure.subplots()
    for i, number in enumerate(("forget_token_shift", "other_token_shift")):
        means, deviations = zip(*(summary[name][number] or (0.0, None) for name in names), strict=True)
        places = [place + 0.4 * i for place in range(len(names))]
        errors = [deviation or 0.0 for deviation in deviations]
        axes.barh(places, means, height=0.36, xerr=errors, color=COLOURS[i], label=LABELS[number], ecolor=COLOURS[5])
    axes.set_yticks([place + 0.2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("mean change of the probability of a token, in text that has nothing to do with it")
    figure.legend(loc="outside lower left", ncols=2)
    return figure
