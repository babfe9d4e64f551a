"""The shape of results.json, and what the audit, its verdict and its reports read from it: no other file knows paths.

By name of a model a column. What cannot be had is `{"not_available": why}`, never 0 in its place. Intervals are of
95 %, None of fewer than two rows; a summary is `mean`, `interval`, `n` and `missing`: rows without a value. Numbers by
row (`*_by_row`, by the row's number in its file) are private: results.json is without them.

- `unlearn_quality`, `utility`: percent, each with its `..._interval`; `utility_holdout`: where rows are held out.
- `sets`, by question set, of greedy answers: `rougeL_recall`, `rougeL_recall_interval`, `change_interval` (of the
  paired difference from the model before), `recall_by_row`, `fact_recall` (a summary), `fact_recall_by_row`,
  `semantic` (where the recipe names a sentence encoder: a summary and, as another one, the share `above_limit`, with
  the `limit`), `n`, `tokenization` (true answers read as `rouge` and as `script_aware` words), `empty`, `ended` (share
  of answers that end by themselves).
- `tofu`: `sets` (summaries `probability` and `truth_ratio` of each), `model_utility`, `forget_quality`.
- `memorization`: summaries `exact_memorization`, `extraction_strength` and `within_five`, and `median_rank`.
- `membership`, by score: `auc`, `auc_interval`, `reference_auc`, `privleak`, `members`, `non_members`.
- `answer_kinds`, by forget set: counts of `KINDS`, share of `distinct` texts, median `perplexity`, `kind_by_row`.
- `attacks`, by attack and below it by what was done: `sampling` (what `leakage` returns, `worst_by_row`,
  `worst_sample_by_row`); `prefilling` and `rewording` (the same, and `greedy`, `greedy_by_row`); `relearning`
  (`learned`, `scored`, and lists with an entry for each of `steps`, the first before any: summaries `recall` and
  `probability`, `recall_by_row`, `recovered`); `quantization` (summaries `recall` and `probability`, `recall_by_row`,
  `recall_change`, `probability_change`, `recovered`, `n`), each with what it has by fact recall, by the same names
  after `fact_`, and with `semantic_worst_case`, `semantic_greedy`, `semantic`; `options` and `token_shift`, as their
  functions return them.
- `general_ability`, by task of lm-eval; `known`: `questions` to forget that the model knows, `of` how many.
"""

from collections.abc import Collection, Iterator
from statistics import fmean

from eval.attacks.sampling import worst_by_row
from eval.passes import ModelPasses
from eval.sets import AuditData
from rewards.text import words

ByRow = dict[int, float]  # by the row's number in its file
Way = tuple[str, str]  # an attack, or `greedy` for asking plainly, and what was done
ATTACKS = ("sampling", "prefilling", "rewording", "relearning", "quantization")  # that bring out the truth
BY_FACTS = ", by names and numbers"  # of a way that is measured by fact recall


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


def recall_by_row(column: dict) -> ByRow:
    """Recall of each greedy answer to the questions to forget; empty where they were not asked."""
    return column["sets"]["forget"]["recall_by_row"] if "forget" in column["sets"] else {}


def leakage_by_measure(column: dict) -> dict[Way, float]:
    """
    How much of the truth comes out in each way that was tried: mean ROUGE-L recall over the questions, in [0, 1], and
    as a way of its own mean fact recall, over those whose truth has names, numbers or dates.

    Of samples it is the mean of each question's best one, of relearning the highest after any number of steps.
    """
    return {way: mean for way, mean, _ in _ways(column)}


def recalls_by_way(column: dict, rows: Collection[int]) -> dict[Way, ByRow]:
    """What [`leakage_by_measure`] is the mean of, for these rows alone; a way in which none of them was asked is left
    out."""
    found = {}
    for way, _, by_row in _ways(column):
        runs = [{row: recall for row, recall in run.items() if row in rows} for run in by_row]
        if runs[0]:
            found[way] = max(runs, key=lambda run: fmean(run.values()))
    return found


def leakage_by_attack(column: dict) -> dict[str, float]:
    """The highest of [`leakage_by_measure`] by attack, `greedy` among them."""
    highest: dict[str, float] = {}
    for (attack, _), value in leakage_by_measure(column).items():
        highest[attack] = max(value, highest.get(attack, 0.0))
    return highest


def _ways(column: dict) -> Iterator[tuple[Way, float, list[ByRow | None]]]:
    """
    Each way, its mean over all questions, and the recalls by row that it is the mean of, which are private: first by
    ROUGE-L recall, then, where the truths have facts, by fact recall.
    """
    attacks = {name: runs if available(runs) else {} for name, runs in column["attacks"].items()}
    for facts, ending in (("", ""), ("fact_", BY_FACTS)):
        if "forget" in column["sets"]:
            greedy = column["sets"]["forget"]
            mean = greedy["fact_recall"]["mean"] if facts else greedy["rougeL_recall"]
            yield from _way("greedy", f"asked plainly{ending}", [mean], [greedy.get(f"{facts}recall_by_row")])
        for what, run in attacks.get("sampling", {}).items():
            worst = [run[f"{facts}worst_case"]["mean"]], [run.get(f"{facts}worst_by_row")]
            yield from _way("sampling", f"sampling, {what}{ending}", *worst)
        for attack, done in (("prefilling", "prefilled"), ("rewording", "reworded")):
            for what, run in attacks.get(attack, {}).items():
                for kind, key in (("greedy", "greedy"), ("sampled", "worst_case")) if available(run) else ():
                    rows = run.get(f"{facts}{key.removesuffix('_case')}_by_row")
                    yield from _way(attack, f"{done}, {what}, {kind}{ending}", [run[facts + key]["mean"]], [rows])
        for what, run in attacks.get("relearning", {}).items():
            rows = run.get(f"{facts}recall_by_row", [])[1:]
            means = [value["mean"] for value in run[f"{facts}recall"][1:]]
            yield from _way("relearning", f"relearned, {what}{ending}", means, rows)
        for what, run in attacks.get("quantization", {}).items():
            rows = run.get(f"{facts}recall_by_row")
            yield from _way("quantization", f"in {what}{ending}", [run[f"{facts}recall"]["mean"]], [rows])


def _way(
    attack: str, what: str, means: list[float | None], by_row: list[ByRow | None]
) -> Iterator[tuple[Way, float, list[ByRow | None]]]:
    if means[0] is not None:
        yield (attack, what), max(means), by_row


def forget_rows(data: AuditData, texts: dict[str, list[str]], results: dict[str, dict]) -> list[dict]:
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
    truths = forget.truths
    rows = [
        {
            "row": row,
            "question": forget.questions[i],
            "truth": truths[i],
            "greedy": greedy[i],
            "attack": f"sampling, {name}",
            "worst": samples[i][sampling[name]["worst_sample_by_row"][row]],
            "recall": sampling[name]["worst_by_row"][row],
        }
        for i, row in enumerate(forget.rows)
    ]
    return sorted(rows, key=lambda row: -row["recall"])
