"""What the trials of a study have found: numbers of every model and seed, their means, what dominates what."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev

from eval.metrics.answers import KINDS
from eval.results import ATTACKS, leakage_by_attack, leakage_by_measure
from pmc_rl.output import read_training_log

Numbers = dict[str, float | None]
Mean = tuple[float, float | None]  # and standard deviation, None of a single number
NUMBERS = ("unlearn_quality", "utility", "utility_change", *KINDS, "fluent", "distinct", *ATTACKS, "prefilling_greedy")
NUMBERS += ("worst_leakage", "extraction_strength", "exact_memorization", "forget_quality", "membership_auc")
NUMBERS += ("forget_token_shift", "other_token_shift", "train_seconds", "peak_memory_gib", "num_samples")
OF_TRAINING = {"train_seconds": "train_runtime", "peak_memory_gib": "peak_memory_gib", "num_samples": "num_samples"}


def trial_numbers(run: Path, controls: dict[str, Path]) -> dict[str, Numbers]:
    """The numbers of every column of a run's audit, with those of the trainings: `after` is the run itself."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    untrained = dict.fromkeys(OF_TRAINING)
    numbers = {name: column_numbers(column, results["before"]) | untrained for name, column in results.items()}
    for name, folder in {"after": run, **controls}.items():
        last = {key: value for entry in read_training_log(folder) for key, value in entry.items()}
        numbers[name] |= {number: last.get(logged) for number, logged in OF_TRAINING.items()}
    return numbers


def column_numbers(column: dict, before: dict) -> Numbers:
    """What a column of an audit says of its model; None where it has no number."""
    numbers: Numbers = {name: column[name] for name in ("unlearn_quality", "utility")}
    unknown = None in (column["utility"], before["utility"])
    numbers["utility_change"] = None if unknown else column["utility"] - before["utility"]
    kinds = column["answer_kinds"].get("forget", {})
    total = sum(kinds.get(kind, 0) for kind in KINDS)
    numbers |= {kind: kinds[kind] / total if total else None for kind in KINDS}
    numbers["fluent"] = numbers["refusal"] + numbers["hallucination"] if total else None
    numbers["distinct"] = kinds.get("distinct")
    leakage = leakage_by_attack(column)
    numbers |= {attack: leakage.get(attack) for attack in ATTACKS}
    numbers["worst_leakage"] = max((leakage[attack] for attack in ATTACKS if attack in leakage), default=None)
    greedy = [
        value
        for (attack, what), value in leakage_by_measure(column).items()
        if attack == "prefilling" and what.endswith("greedy")
    ]
    numbers["prefilling_greedy"] = max(greedy, default=None)
    for name in ("extraction_strength", "exact_memorization"):
        numbers[name] = column["memorization"].get(name, {}).get("mean")
    numbers["forget_quality"] = column["tofu"]["forget_quality"].get("p_value")
    numbers["membership_auc"] = column["membership"].get("min_k", {}).get("auc")
    shift = column["attacks"].get("token_shift", {})
    for tokens in ("forget", "other"):
        numbers[f"{tokens}_token_shift"] = shift.get(f"{tokens}_tokens", {}).get("mean")
    return numbers


def aggregate(values: list[float | None]) -> Mean | None:
    """Mean and sample standard deviation of the numbers there are; None for what cannot be had."""
    numbers = [value for value in values if value is not None]
    return (fmean(numbers), stdev(numbers) if len(numbers) > 1 else None) if numbers else None


def summarize(rows: list[dict]) -> dict[str, dict[str, Mean | None]]:
    """By model and number, mean and deviation over the seeds; rows have `model`, `seed` and numbers."""
    summary = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        summary[model] = {name: aggregate([row[name] for row in own]) for name in own[0].keys() - {"model", "seed"}}
    return summary


def dominators(points: dict[str, Sequence[float]], ways: Collection[str]) -> dict[str, list[str]]:
    """
    Which points dominate each: at least as good in every coordinate and better in one.

    `ways` are maximize or minimize, one a coordinate. Points without any are the Pareto front.
    """
    signs = [1 if way == "maximize" else -1 for way in ways]
    points = {name: [sign * value for sign, value in zip(signs, own, strict=True)] for name, own in points.items()}
    return {
        name: [
            other
            for other, theirs in points.items()
            if theirs != own and all(a >= b for a, b in zip(theirs, own, strict=True))
        ]
        for name, own in points.items()
    }
