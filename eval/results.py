"""The shape of results.json, and what the audit, its verdict and its reports read from it: no other file knows paths.

A column is what the file has of one model. Numbers by row (`*_by_row`) are private: results.json is without them.
"""

from collections.abc import Collection, Iterator
from statistics import fmean
from typing import NotRequired, TypedDict

from eval.attacks.sampling import worst_by_row
from eval.data import AuditData
from eval.passes import ModelPasses
from rewards.text import words

Interval = list[float] | None  # of 95 %: lower and upper end; None of fewer than two rows
ByRow = dict[int, float]  # by the row's number in its file


class NotAvailable(TypedDict):
    not_available: str  # why there are no numbers: never 0 in their place


class Summary(TypedDict):
    mean: float | None
    interval: Interval
    n: int
    missing: int  # rows without a value, not in the mean


class SetNumbers(TypedDict):  # greedy answers to one question set
    rougeL_recall: float
    rougeL_recall_interval: Interval
    change_interval: Interval  # of the paired difference from the model before
    recall_by_row: ByRow
    n: int
    tokenization: dict[str, int]  # true answers read as `rouge` and as `script_aware` words
    empty: int
    ended: float  # share of answers that end by themselves


class MembershipAttack(TypedDict):
    auc: float
    auc_interval: Interval
    reference_auc: float
    privleak: float | NotAvailable
    members: int
    non_members: int


class Sampled(TypedDict):  # answers to each question drawn many times: recall of the truth
    worst_case: Summary  # of the best sample of each question
    mean: Summary
    quantiles: dict[str, float]
    curve: dict[str, float]  # expected worst case by number of samples
    leaking: dict[str, float]  # `samples` that tell the truth, `of` how many, `questions`, `upper_bound` of the share
    worst_by_row: ByRow
    worst_sample_by_row: dict[int, int]


class Prefilled(Sampled):
    greedy: Summary
    greedy_by_row: ByRow


class Relearned(TypedDict):  # lists have an entry for each of `steps`, the first before any step
    steps: list[int]
    recall: list[float]
    recall_by_row: list[ByRow]
    probability: list[float]
    recovered: list[float | None]
    learned: int
    scored: int


class Quantized(TypedDict):
    recall: float
    recall_by_row: ByRow
    recall_change: float
    probability: float
    probability_change: float
    recovered: float | None
    n: int


class Attacks(TypedDict):  # by attack, and below it by what was done
    sampling: dict[str, Sampled] | NotAvailable
    prefilling: dict[str, Prefilled | NotAvailable] | NotAvailable
    options: dict | NotAvailable  # of eval/attacks/options.py
    token_shift: dict | NotAvailable  # of eval/attacks/token_shift.py
    relearning: dict[str, Relearned] | NotAvailable
    quantization: dict[str, Quantized] | NotAvailable


class Column(TypedDict):
    unlearn_quality: float | None  # percent, as the utilities
    utility: float | None
    unlearn_quality_interval: Interval
    utility_interval: Interval
    utility_holdout: NotRequired[float]
    sets: dict[str, SetNumbers]
    tofu: dict[str, dict]  # `sets`: `probability` and `truth_ratio` of each; `model_utility`; `forget_quality`
    memorization: dict[str, Summary] | NotAvailable  # `exact_memorization`, `extraction_strength`
    membership: dict[str, MembershipAttack] | NotAvailable
    answer_kinds: dict[str, dict]  # by forget set: counts of `KINDS`, share of `distinct` texts, median `perplexity`
    attacks: Attacks
    general_ability: dict[str, dict[str, float]] | NotAvailable  # by task of lm-eval
    known: dict[str, int]  # `questions` to forget that the model knows, `of` how many


Way = tuple[str, str]  # an attack, or `greedy` for asking plainly, and what was done


def available(value: dict) -> bool:
    """Whether there are numbers, not the reason why there are none."""
    return "not_available" not in value


def without_rows(value):
    """Results without the numbers of single rows: with the published model they would tell a guessed answer right."""
    if isinstance(value, list):
        return [without_rows(part) for part in value]
    if isinstance(value, dict):
        return {key: without_rows(part) for key, part in value.items() if not key.endswith("_by_row")}
    return value


def recall_by_row(column: Column) -> ByRow:
    """Recall of each greedy answer to the questions to forget; empty where they were not asked."""
    return column["sets"]["forget"]["recall_by_row"] if "forget" in column["sets"] else {}


def leakage_by_measure(column: Column, rows: Collection[int] | None = None) -> dict[Way, float]:
    """
    How much of the truth comes out in each way that was tried: mean ROUGE-L recall over the questions, in [0, 1].

    Of samples it is the mean of each question's best one, of relearning the highest after any number of steps. With
    `rows`, the mean is over these alone, and a way in which none of them was asked is left out.
    """
    found = {}
    for way, mean, by_row in _ways(column):
        if rows is not None:
            recalls = [[recall for row, recall in run.items() if row in rows] for run in by_row]
            if not recalls[0]:
                continue
            mean = max(map(fmean, recalls))
        found[way] = mean
    return found


def leakage_by_attack(column: Column) -> dict[str, float]:
    """The highest of [`leakage_by_measure`] by attack, `greedy` among them."""
    highest: dict[str, float] = {}
    for (attack, _), value in leakage_by_measure(column).items():
        highest[attack] = max(value, highest.get(attack, 0.0))
    return highest


def _ways(column: Column) -> Iterator[tuple[Way, float, list[ByRow | None]]]:
    """Each way, its mean over all questions, and the recalls by row that it is the mean of, which are private."""
    attacks = {name: runs if available(runs) else {} for name, runs in column["attacks"].items()}
    if "forget" in column["sets"]:
        greedy = column["sets"]["forget"]
        yield ("greedy", "asked plainly"), greedy["rougeL_recall"], [greedy.get("recall_by_row")]
    for what, run in attacks.get("sampling", {}).items():
        yield ("sampling", f"sampling, {what}"), run["worst_case"]["mean"], [run.get("worst_by_row")]
    for what, run in attacks.get("prefilling", {}).items():
        if available(run):
            yield ("prefilling", f"prefilled, {what}, greedy"), run["greedy"]["mean"], [run.get("greedy_by_row")]
            yield ("prefilling", f"prefilled, {what}, sampled"), run["worst_case"]["mean"], [run.get("worst_by_row")]
    for what, run in attacks.get("relearning", {}).items():
        yield ("relearning", f"relearned, {what}"), max(run["recall"][1:]), run.get("recall_by_row", [])[1:]
    for what, run in attacks.get("quantization", {}).items():
        yield ("quantization", f"in {what}"), run["recall"], [run.get("recall_by_row")]


def forget_rows(data: AuditData, texts: dict[str, list[str]], results: dict[str, Column]) -> list[dict]:
    """Each question to forget without its text: its row, words of the truth, and what came of it by model."""
    if "forget" not in data.questions:
        return []
    forget, columns = data.questions["forget"], {}
    for name, column in results.items():
        recalls, kinds = recall_by_row(column), column["answer_kinds"]["forget"]["kind_by_row"]
        worst = worst_by_row(column["attacks"]) or dict.fromkeys(forget.rows)
        columns[name] = [
            {"recall": recalls[row], "words": len(words(text)), "kind": kinds[row], "worst": worst[row]}
            for row, text in zip(forget.rows, texts[name], strict=True)
        ]
    return [
        {"row": row, "truth_words": len(words(truth)), "columns": {name: rows[i] for name, rows in columns.items()}}
        for i, (row, truth) in enumerate(zip(forget.rows, forget.answers, strict=True))
    ]


def worst_texts(
    passes: ModelPasses, data: AuditData, greedy: list[str], sampling: dict, settings: dict, count: int
) -> list[dict] | None:
    """The questions that leak most under sampling, with the sample that leaks; from the cache, the worst first."""
    if "forget" not in data.questions or not available(sampling):
        return None
    forget = data.questions["forget"]
    name = max(settings, key=lambda name: sampling[name]["worst_case"]["mean"])
    samples = passes.sample(forget.questions, count, settings[name], what=f"sampling, {name}")
    rows = [
        {
            "row": row,
            "question": forget.questions[i],
            "truth": forget.answers[i],
            "greedy": greedy[i],
            "attack": f"sampling, {name}",
            "worst": samples[i][sampling[name]["worst_sample_by_row"][row]],
            "recall": sampling[name]["worst_by_row"][row],
        }
        for i, row in enumerate(forget.rows)
    ]
    return sorted(rows, key=lambda row: -row["recall"])
