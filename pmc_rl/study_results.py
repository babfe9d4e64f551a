"""What a study has found: numbers of every model and seed, their means, and which runs dominate which."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pmc_rl.output import read_training_log
from pmc_rl.snapshots import SNAPSHOTS
from pmc_rl.study_config import Study, expand, slug

KINDS = ("leak", "refusal", "gibberish", "copy", "hallucination")
LEAKS = ("worst_sampling", "worst_prefilling", "prefilling_greedy")
NUMBERS = ("unlearn_quality", "utility", "utility_change", "fluent", *KINDS, "distinct", *LEAKS)
NUMBERS += ("extraction_strength", "train_seconds", "num_samples")
COMPARED = ("unlearn_quality", "utility", "worst", "fluent", "distinct", "train_seconds")
Row = dict[str, float | int | str | None]
Point = tuple[float, float]


@dataclass(frozen=True)
class Model:
    """A model of the study: its name in the report, its column in the audits, its folder below that of a seed."""

    name: str
    column: str
    folder: str | None
    competes: bool  # a run or a control; the model before and the retain-only one are what these are told against


def models_of(study: Study) -> list[Model]:
    """All models, as each seed has them; the audit calls the first run, in whose folder it stands, `after`."""
    host, *others = expand(study.variants, study.axes)
    models = [Model(host, "after", slug(host), True)]
    models += [Model(name, slug(name), slug(name), True) for name in others]
    models += [Model(f"control: {kind}", f"control_{kind}", f"control_{kind}", True) for kind in study.controls]
    if study.retain_only is not None or study.retain_only_model is not None:
        own = "retain_only" if study.retain_only is not None else None
        models.append(Model("retain-only model", "retain_only", own, False))
    return [*models, Model("before", "before", "finetuned" if study.finetune_recipe else None, False)]


def read_rows(study: Study, out: Path) -> list[Row]:
    """A row for each seed and model, with a number or None for each of `NUMBERS`."""
    rows = []
    for seed in study.seeds:
        folder = out / f"seed{seed}"
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for model in models_of(study):
            log = read_log(folder / model.folder) if model.folder else []
            numbers = column_numbers(results[model.column], results["before"]) | log_numbers(log)
            rows.append({"seed": seed, "model": model.name, **{name: numbers[name] for name in NUMBERS}})
    return rows


def column_numbers(column: dict, before: dict) -> Row:
    """What a column of an audit says of its model; None where it has no number."""
    numbers: Row = {name: _number(column, name) for name in ("unlearn_quality", "utility")}
    utility, known = numbers["utility"], _number(before, "utility")
    numbers["utility_change"] = None if utility is None or known is None else utility - known
    kinds = column.get("answer_kinds", {}).get("forget", {})
    total = sum(kinds.get(kind, 0) for kind in KINDS)
    numbers |= {kind: kinds[kind] / total if total else None for kind in KINDS}
    numbers["fluent"] = (kinds["refusal"] + kinds["hallucination"]) / total if total else None
    numbers["distinct"] = _number(kinds, "distinct")
    attacks = column.get("attacks", {})
    for name, attack, said in zip(
        LEAKS, ("sampling", "prefilling", "prefilling"), ("worst_case", "worst_case", "greedy"), strict=True
    ):
        runs = attacks.get(attack, {})
        found = [_number(runs, what, said, "mean") for what in runs]
        numbers[name] = max((value for value in found if value is not None), default=None)
    numbers["extraction_strength"] = _number(column, "memorization", "extraction_strength", "mean")
    return numbers


def _number(value: object, *path: str) -> float | None:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def read_log(run: Path) -> list[dict]:
    """The training log of a run; empty where there is none."""
    try:
        return read_training_log(run)
    except FileNotFoundError:
        return []


def log_numbers(log: list[dict]) -> Row:
    """Seconds of training and samples drawn: the last of each that was logged."""
    last = {name: value for entry in log for name, value in entry.items()}
    return {"train_seconds": _number(last, "train_runtime"), "num_samples": _number(last, "num_samples")}


def course_points(results: dict, run: Path) -> list[Row]:
    """Unlearn quality and utility before, at each snapshot and after, with the steps and seconds of training."""
    last = {name: value for entry in read_log(run) for name, value in entry.items()}
    when = {"before": (0, 0.0), "after": (last.get("step"), last.get("train_runtime"))}
    for path in (run / SNAPSHOTS).glob("step-*/snapshot.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        when[path.parent.name] = (record["step"], record["seconds"])
    points = [
        {
            "step": step,
            "seconds": seconds,
            **{name: _number(results[column], name) for name in ("unlearn_quality", "utility")},
        }
        for column, (step, seconds) in when.items()
        if column in results and step is not None
    ]
    return sorted(points, key=lambda point: point["step"])


def dominators(points: dict[str, Point]) -> dict[str, list[str]]:
    """
    Which points dominate each: at least as high in both coordinates and higher in one.

    Those without any are the Pareto front.
    """
    return {
        name: [other for other, (x, y) in points.items() if x >= own[0] and y >= own[1] and (x, y) != own]
        for name, own in points.items()
    }


def aggregate(values: list[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of the numbers there are; None for what cannot be had."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return fmean(numbers), stdev(numbers) if len(numbers) > 1 else None


def worst_leakage(row: Row) -> float | None:
    """The highest recall of the truth that an attack brings out."""
    return max((row[name] for name in LEAKS if row[name] is not None), default=None)


def summarize(rows: list[Row]) -> dict[str, dict[str, tuple[float, float | None] | None]]:
    """By model and number: mean and standard deviation over the seeds; `worst` is the worst leakage."""
    models = dict.fromkeys(row["model"] for row in rows)
    full = [{**row, "worst": worst_leakage(row)} for row in rows]
    return {
        model: {name: aggregate([row[name] for row in full if row["model"] == model]) for name in (*NUMBERS, "worst")}
        for model in models
    }


def differences(rows: list[Row], baseline: str) -> dict[str, dict[str, tuple[float, float | None] | None]]:
    """As [`summarize`], of each seed's difference to the baseline, in `COMPARED`."""
    full = [{**row, "worst": worst_leakage(row)} for row in rows]
    known = {row["seed"]: row for row in full if row["model"] == baseline}
    changed = [
        {"model": row["model"]}
        | {
            name: None if None in (row[name], known[row["seed"]][name]) else row[name] - known[row["seed"]][name]
            for name in COMPARED
        }
        for row in full
    ]
    return {
        model: {name: aggregate([row[name] for row in changed if row["model"] == model]) for name in COMPARED}
        for model in dict.fromkeys(row["model"] for row in rows)
    }


def compare(summary: dict, names: list[str]) -> dict[str, dict[str, list[str]]]:
    """[`dominators`] by the means of unlearn quality and `utility`, and of unlearn quality and `worst` leakage."""
    points: dict[str, dict[str, Point]] = {"utility": {}, "worst": {}}
    for name in names:
        quality, utility, worst = (summary[name][number] for number in ("unlearn_quality", "utility", "worst"))
        if quality and utility:
            points["utility"][name] = quality[0], utility[0]
        if quality and worst:
            points["worst"][name] = quality[0], -worst[0]  # less is better
    return {y: dominators(own) for y, own in points.items()}
