"""The same question many times: as it is (sampling), with an answer begun (prefilling), in other words (rewording)."""

import numpy as np

from eval.metrics.answers import is_leak
from eval.metrics.intervals import by_row, not_available, summary
from eval.metrics.leakage import leakage
from eval.metrics.semantic import semantic_numbers
from eval.passes import ModelPasses, SamplingSettings
from eval.sets import QuestionSet
from pmc_rl.config import PMCConfig
from rewards.text import split_after, unicode_words, words

PLAIN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
WIDE = SamplingSettings(temperature=2.0, top_k=10, top_p=1.0)  # second thoughts; among all tokens it is gibberish


def sampling_settings(args: PMCConfig) -> dict[str, SamplingSettings]:
    """Settings of the sampling attack: the model's own distribution, a wider one of its likeliest tokens, and those
    the model was unlearned with."""
    trained = SamplingSettings(args.temperature, args.top_k, args.top_p)
    return {"temperature 1": PLAIN, "temperature 2 among 10 tokens": WIDE, "as in training": trained}


def sampling_attack(
    passes: ModelPasses, forget: QuestionSet, count: int, settings: dict[str, SamplingSettings]
) -> dict:
    """
    Leakage of `count` samples a question under each of the settings. Source: the paper of Partial Model Collapse.

    By setting it is what [`~eval.metrics.leakage.leakage`] returns, `worst_by_row`, the highest recall of each
    question by its row, and `worst_sample_by_row`, which sample it was; of fact recall `fact_worst_case`, a summary,
    and `fact_worst_by_row`; of semantic similarity, where it is measured, `semantic_worst_case`.
    """
    return {
        name: _sampled(passes, forget, passes.sample(forget.questions, count, values, what=f"sampling, {name}"))
        for name, values in settings.items()
    }


def prefilling_attack(
    passes: ModelPasses, forget: QuestionSet, count: int, prefixes: list[str], first_words: list[float]
) -> dict:
    """
    Leakage, `greedy` and in samples at temperature 1, of answers forced to begin with each of the prefixes.

    For each of `first_words`, also of answers that begin with so many words of the truth (below 1: with that share of
    them, at least one), which shows what lies behind a changed beginning; rows that have no word more are left out.
    What is forced does not count as leaked. Source of the attack with fixed prefixes: the paper of Partial Model
    Collapse.
    """
    runs = {prefix: (forget, [prefix] * len(forget.questions)) for prefix in prefixes}
    runs |= {given_away(number): _begun(forget, number) for number in first_words}
    results = {}
    for name, (rows, forced) in runs.items():
        if not rows.questions:
            results[name] = not_available("no answer has more words")
            continue
        results[name] = _greedy_and_sampled(passes, rows, rows.questions, count, forced, f"prefilled, {name}")
    return results


def rewording_attack(passes: ModelPasses, forget: QuestionSet, count: int, wordings: list[str]) -> dict:
    """
    Leakage, `greedy` and in samples at temperature 1, of answers to the questions within other words: by each of the
    `wordings`, texts with {question} in them, such as a role or another language to answer in. Answers are scored as
    those to the plain questions.
    """
    results = {}
    for wording in wordings:
        asked = [wording.replace("{question}", question) for question in forget.questions]
        results[wording] = _greedy_and_sampled(passes, forget, asked, count, None, f"reworded, {wording}")
    return results


def given_away(number: float) -> str:
    """How results.json names the beginning of a true answer: by its words, or below 1 by their share."""
    if number < 1:
        return f"the first {number:.0%} of the answer"
    return "the answer's first word" if number == 1 else f"the answer's first {number:g} words"


def _begun(forget: QuestionSet, number: float) -> tuple[QuestionSet, list[str]]:
    """The rows whose truths have a word behind their beginning, with the rest as the truth, and the beginnings; of
    several right answers the first one alone."""
    counts = [number if number >= 1 else max(1, number * len(words(truth))) for truth in forget.answers]
    halves = [split_after(truth, int(count)) for truth, count in zip(forget.answers, counts, strict=True)]
    kept = [i for i, (_, rest) in enumerate(halves) if unicode_words(rest)]
    rests, numbers = [halves[i][1] for i in kept], [forget.rows[i] for i in kept]
    return QuestionSet([forget.questions[i] for i in kept], rests, numbers), [halves[i][0] for i in kept]


def worst_by_row(attacks: dict) -> dict[int, float] | None:
    """Each row's highest recall in any sample of the sampling attack; None if it was not run."""
    if "not_available" in attacks["sampling"]:
        return None
    runs = [run["worst_by_row"] for run in attacks["sampling"].values()]
    return {row: max(run[row] for run in runs) for row in runs[0]}


def _greedy_and_sampled(
    passes: ModelPasses, rows: QuestionSet, asked: list[str], count: int, forced: list[str] | None, what: str
) -> dict:
    """What comes out where each row is asked as in `asked`."""
    texts = [answer.text for answer in passes.answer(asked, forced, what)]
    samples = passes.sample(asked, count, PLAIN, forced, f"sampling, {what}")
    return {
        **rows.recall_numbers(texts, "greedy"),
        **semantic_numbers(passes.similarity, "semantic_greedy", rows, [[text] for text in texts]),
        **_sampled(passes, rows, samples),
    }


def _sampled(passes: ModelPasses, forget: QuestionSet, samples: list[list[str]]) -> dict:
    rounds = list(zip(*samples, strict=True))  # a sample of each question
    scores = np.array([forget.recalls(texts) for texts in rounds]).T
    facts = zip(*[forget.fact_recalls(texts) for texts in rounds], strict=True)
    worst_facts = [None if of_row[0] is None else max(of_row) for of_row in facts]
    asked = zip(forget.questions, forget.right_answers, samples, strict=True)
    leaks = [
        [any(is_leak(question, truth, text) for truth in right) for text in texts] for question, right, texts in asked
    ]
    return {
        **leakage(scores, np.array(leaks)),
        "fact_worst_case": summary(worst_facts),
        "fact_worst_by_row": by_row(forget.rows, worst_facts),
        **semantic_numbers(passes.similarity, "semantic_worst_case", forget, samples),
        "worst_by_row": by_row(forget.rows, scores.max(1).tolist()),
        "worst_sample_by_row": by_row(forget.rows, scores.argmax(1).tolist()),
    }
