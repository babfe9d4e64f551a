"""open-unlearning's files: a stored `TOFU_EVAL.json` as the reference, and a `TOFU_SUMMARY.json` of what we measured.

Names and definitions are those of https://github.com/locuslab/open-unlearning; docs/audit.md says where ours differ.
"""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from eval.results import available
from pmc_rl.errors import RecipeError, nearest_path, one_line

MEMBERSHIP = {
    "loss": "mia_loss",
    "zlib": "mia_zlib",
    "min_k": "mia_min_k",
    "min_k_plus_plus": "mia_min_k_plus_plus",
}
SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}


@dataclass
class Reference:
    """What other models are compared with: a model that never saw the rows to forget."""

    ratios: list[float] | None  # TOFU's truth ratio of each forget row
    aucs: dict[str, float]  # by membership score


def read_retain_logs(path: str) -> Reference:
    """
    The reference that a `TOFU_EVAL.json` of open-unlearning holds, of a model fine-tuned on the rows to retain.

    Raises:
        RecipeError: there is no such file, or no truth ratio of a forget row in it.
    """
    where = f"retain_logs_path: {path!r}"
    if not Path(path).is_file():
        raise RecipeError([f"retain_logs_path: there is no file {path!r}{nearest_path(Path(path))}"])
    try:
        logs = json.loads(Path(path).read_text(encoding="utf-8"))
        by_row = logs["forget_truth_ratio"]["value_by_index"]
        ratios = [float(by_row[row]["score"]) for row in sorted(by_row, key=int)]
        aucs = {ours: float(logs[name]["agg_value"]) for ours, name in MEMBERSHIP.items() if name in logs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = "is no TOFU_EVAL.json with forget_truth_ratio by row"
        raise RecipeError([f"{where} {what} ({type(error).__name__}: {one_line(error)})"]) from error
    if not ratios or not all(map(isfinite, [*ratios, *aucs.values()])):
        raise RecipeError([f"{where} holds no truth ratios, or numbers that are none"])
    return Reference(ratios, aucs)


def tofu_summary(column: dict) -> dict[str, float]:
    """A model's numbers under open-unlearning's names; what cannot be had is left out."""
    tofu, sets = column["tofu"], column["sets"]
    found: dict[str, Any] = {}
    for ours, theirs in SETS.items():
        measured = tofu["sets"].get(ours, {})
        normalised = "_normalised" if ours in ("real_authors", "world_facts") else ""
        found[f"{theirs}_Q_A_Prob{normalised}"] = _mean(measured.get("probability"))
        for answers, name in (("paraphrase", "PARA"), ("wrong", "PERT")):
            found[f"{theirs}_Q_A_{name}_Prob"] = _mean(measured.get(f"{answers}_probability"))
        found[f"{theirs}_Q_A_ROUGE"] = sets[ours]["rougeL_recall"] if ours in sets else None
        ratio = "forget_truth_ratio" if ours == "forget" else f"{theirs}_Truth_Ratio"
        found[ratio] = _mean(measured.get("truth_ratio"))
    found["model_utility"] = tofu["model_utility"].get("value")
    found["forget_quality"] = tofu["forget_quality"].get("p_value")
    for name in ("extraction_strength", "exact_memorization"):
        found[name] = _mean(column["memorization"].get(name))
    scores = column["membership"] if available(column["membership"]) else {}
    found |= {MEMBERSHIP[name]: score["auc"] for name, score in scores.items()}
    leak = scores.get("min_k", {}).get("privleak")
    found["privleak"] = leak if isinstance(leak, float) else None  # else the reason why there is none
    return {name: value for name, value in sorted(found.items()) if value is not None}


def _mean(value: dict | None) -> float | None:
    return None if value is None or not available(value) else value["mean"]
