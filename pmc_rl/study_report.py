"""The report of a study: its audits -> study.csv, study.html, pareto.svg and a table. No text of the data in any."""

import csv
import io
import json
import time
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pmc_rl.output import write_text
from pmc_rl.study_config import Study, expand, slug
from pmc_rl.study_plots import SERIES, course_panels, keys, pareto_file, pareto_panels
from pmc_rl.study_results import (
    COMPARED,
    KINDS,
    LEAKS,
    Row,
    compare,
    differences,
    models_of,
    read_rows,
    summarize,
)

LABELS = {"unlearn_quality": "unlearn quality, %", "utility": "utility, %", "utility_change": "change of utility"}
LABELS |= {"fluent": "refusal or hallucination", "distinct": "distinct answers", "train_seconds": "training, s"}
LABELS |= {"num_samples": "samples drawn", "prefilling_greedy": "prefilled, greedy", "worst": "worst leakage"}
LABELS |= {"worst_sampling": "worst of samples", "worst_prefilling": "prefilled, worst of samples"}
HEADLINE = ("unlearn_quality", "utility", "utility_change", "worst", *LEAKS, "extraction_strength")
HEADLINE += ("train_seconds", "num_samples")
DIGITS = {"num_samples": 0, "unlearn_quality": 1, "utility": 1, "utility_change": 1, "train_seconds": 0}  # else 3
SHORT = {"unlearn_quality": "unlearn\nquality %", "utility": "utility %", "worst": "worst\nleakage"}
SHORT |= {"fluent": "refusal or\nhallucination", "train_seconds": "training s"}


def write_report(study: Study, out: Path) -> None:
    """Writes the files of the report below `out` and prints its short table."""
    rows, models = read_rows(study, out), models_of(study)
    competing = [model.name for model in models if model.competes]
    summary = summarize(rows)
    beaten = compare(summary, competing)
    for row in rows:
        row["dominated"] = int(bool(beaten["utility"][row["model"]])) if row["model"] in beaten["utility"] else None
    courses = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in expand(study.variants, study.axes)
        if (path := out / f"seed{study.seeds[0]}" / f"course_{slug(name)}.json").exists()
    }
    write_text(out / "study.csv", csv_text(rows))
    write_text(out / "pareto.svg", pareto_file(rows, competing, summary, beaten))
    write_text(out / "study.html", page(study, rows, competing, summary, beaten, courses))
    print_table(summary, beaten)
    print(f"{out / 'study.html'}, study.csv and pareto.svg beside it")


def csv_text(rows: list[Row]) -> str:
    """Rows as CSV; an empty field where there is no number."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def page(study: Study, rows: list[Row], competing: list[str], summary: dict, beaten: dict, courses: dict) -> str:
    """The report as one page that needs no other file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    baseline, matched = competing[0], study.controls_of or competing[0]
    about = {
        "refusals": f"The same training as {matched} with fixed refusals as the answers to learn: nothing is sampled.",
        "retain_only": f"Fine-tuning on the retain rows alone, for as many seconds as {matched} took.",
    }
    runs = expand(study.variants, study.axes)
    against = {name: own for name, own in differences(rows, baseline).items() if name in competing[1:]}
    return environment.get_template("study.html.j2").render(
        study=study,
        title=Path(study.output_dir).name,
        series=SERIES,
        front={y: [name for name, by in own.items() if not by] for y, own in beaten.items()},
        controls={kind: about[kind] for kind in study.controls},
        overrides=_plain(study.overrides),
        changes={name: _plain(own) for name, own in runs.items()},
        baseline=baseline,
        tables={
            "headline": table(summary, HEADLINE),
            "kinds": table(summary, (*KINDS, "fluent", "distinct")),
            "differences": table(against, COMPARED, signed=True),
        },
        beaten=beaten,
        keys=keys(competing, competing),
        course_keys=keys(competing, list(courses)),
        pareto=pareto_panels(rows, competing, summary, beaten),
        course=course_panels(courses, competing),
        date=time.strftime("%Y-%m-%d"),
        versions={name: version(name) for name in ("torch", "transformers", "trl")},
    )


def table(numbers: dict, names: tuple[str, ...], signed: bool = False) -> dict:
    """Head and rows of a table of means; a column that nobody has a number for is left out."""
    shown = [name for name in names if any(own[name] for own in numbers.values())]
    return {
        "head": [LABELS.get(name, name.replace("_", " ")) for name in shown],
        "rows": {model: [told(own[name], name, signed) for name in shown] for model, own in numbers.items()},
    }


def told(
    number: tuple[float, float | None] | None, name: str, signed: bool = False, digits: int | None = None
) -> tuple[str, str]:
    """A mean and its standard deviation in words; a dash for what cannot be had."""
    if number is None:
        return "-", ""
    sign = "+" if signed or name == "utility_change" else ""
    digits = DIGITS.get(name, 3) if digits is None else digits
    mean, deviation = number
    return f"{mean:{sign},.{digits}f}", "" if deviation is None else f"± {deviation:,.{digits}f}"


def _plain(overrides: dict) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in overrides.items()
    }


def print_table(summary: dict, beaten: dict) -> None:
    """The most important numbers on the terminal."""
    shown = Table(title="Mean ± standard deviation over the seeds")
    shown.add_column("model", overflow="fold")
    for label in SHORT.values():
        shown.add_column(label, justify="right", no_wrap=True)
    for model, own in summary.items():
        mark = " *" if beaten["utility"].get(model) else ""
        cells = [told(own[name], name, digits=DIGITS.get(name, 2)) for name in SHORT]
        shown.add_row(escape(model) + mark, *("".join(cell).replace("± ", "±") for cell in cells))
    Console().print(shown)
    if any(beaten["utility"].values()):
        print("* another mean is at least as good in unlearn quality and in utility, and better in one")
