"""What the trials of a study have found: numbers of every model and seed, their means, what dominates what."""

import json
from pathlib import Path
from statistics import fmean, stdev

from eval.metrics.answers import KINDS
from eval.results import leakage_by_measure
from pmc_rl.output import read_training_log

Numbers = dict[str, float | None]
Mean = tuple[float, float | None]  # and standard deviation, None of a single number
ATTACKS = ("sampling", "prefilling", "relearning", "quantization")
NUMBERS = ("unlearn_quality", "utility", "utility_change", *KINDS, "fluent", "distinct", *ATTACKS, "prefilling_greedy")
NUMBERS += ("worst_leakage", "extraction_strength", "train_seconds", "num_samples")


def trial_numbers(run: Path, controls: dict[str, Path]) -> dict[str, Numbers]:
    """The numbers of every column of a run's audit, with those of the trainings: `after` is the run itself."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    untrained = {"train_seconds": None, "num_samples": None}
    numbers = {name: column_numbers(column, results["before"]) | untrained for name, column in results.items()}
    for name, folder in {"after": run, **controls}.items():
        last = {key: value for entry in read_training_log(folder) for key, value in entry.items()}
        numbers[name] |= {"train_seconds": last["train_runtime"], "num_samples": last.get("num_samples")}
    return numbers


def column_numbers(column: dict, before: dict) -> Numbers:
    """What a column of an audit says of its model; None where it has no number."""
    numbers: Numbers = {name: column[name] for name in ("unlearn_quality", "utility")}
    known = None in (column["utility"], before["utility"])
    numbers["utility_change"] = None if known else column["utility"] - before["utility"]
    kinds = column["answer_kinds"].get("forget")
    total = sum(kinds[kind] for kind in KINDS) if kinds else 0
    numbers |= {kind: kinds[kind] / total if total else None for kind in KINDS}
    numbers["fluent"] = numbers["refusal"] + numbers["hallucination"] if total else None
    numbers["distinct"] = kinds["distinct"] if kinds else None
    leakage = leakage_by_measure(column)
    for attack in ATTACKS:
        numbers[attack] = max((value for (name, _), value in leakage.items() if name == attack), default=None)
    numbers["prefilling_greedy"] = max(
        (value for (name, what), value in leakage.items() if name == "prefilling" and what.endswith("greedy")),
        default=None,
    )
    numbers["worst_leakage"] = max((numbers[name] for name in ATTACKS if numbers[name] is not None), default=None)
    memorization = column["memorization"]
    available = "extraction_strength" in memorization
    numbers["extraction_strength"] = memorization["extraction_strength"]["mean"] if available else None
    return numbers


def aggregate(values: list[float | None]) -> Mean | None:
    """Mean and sample standard deviation of the numbers there are; None for what cannot be had."""
    numbers = [value for value in values if value is not None]
    return (fmean(numbers), stdev(numbers) if len(numbers) > 1 else None) if numbers else None


def summarize(rows: list[dict]) -> dict[str, dict[str, Mean | None]]:
    """By model and number, mean and deviation over the seeds; rows have `model`, `seed` and numbers."""
    names = [name for name in rows[0] if name not in ("model", "seed")]
    models = dict.fromkeys(row["model"] for row in rows)
    return {
        model: {name: aggregate([row[name] for row in rows if row["model"] == model]) for name in names}
        for model in models
    }


def dominators(points: dict[str, tuple[float, ...]]) -> dict[str, list[str]]:
    """
    Which points dominate each: at least as high in every coordinate and higher in one.

    Those without any are the Pareto front.
    """
    return {
        name: [
            other
            for other, theirs in points.items()
            if theirs != own and all(a >= b for a, b in zip(theirs, own, strict=True))
        ]
        for name, own in points.items()
    }
