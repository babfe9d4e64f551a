"""What comes out of altered states of the unlearned model, relearned or quantized: how far the way back is gone."""

from collections.abc import Callable
from math import exp

from transformers import PreTrainedModel

from eval.metrics.intervals import summary
from eval.metrics.semantic import semantic_numbers
from eval.passes import ModelPasses
from eval.sets import QuestionSet

States = dict[str, Callable[[], PreTrainedModel]]


def forget_measures(passes: ModelPasses, rows: QuestionSet) -> dict:
    """Summaries: ROUGE-L and fact recall of the greedy answers, also by row, semantic similarity where it is measured,
    and exp(-mean loss a token) of the true ones."""
    texts = [answer.text for answer in passes.answer(rows.questions)]
    return {
        **rows.recall_numbers(texts, "recall"),
        **semantic_numbers(passes.similarity, "semantic", rows, [[text] for text in texts]),
        "probability": summary([exp(-row.loss) for row in passes.score(rows.questions, rows.answers)]),
    }


def altered_measures(
    passes: ModelPasses, before: ModelPasses, rows: QuestionSet, states: States, fingerprint: str = ""
) -> list[dict]:
    """
    [`forget_measures`] of the unlearned model and of each altered state, with the share of the way back by recall:
    `recovered` is 0 at the unlearned model, 1 at the one before, None where unlearning has lowered nothing.

    A state is made only if the cache lacks its answers; it is known there by its name and the `fingerprint` of what
    alters the model.
    """
    measured = [forget_measures(passes, rows)]
    unlearned, goal = measured[0]["recall"]["mean"], forget_measures(before, rows)["recall"]["mean"]
    passes.release()  # one model at a time: the altered one needs the room
    before.release()
    for name, load in states.items():
        altered = passes.altered(f"{passes.name}, {name}", f"{passes.fingerprint} {fingerprint} {name}", load)
        measured.append(forget_measures(altered, rows))
        altered.release()
    for measures in measured:
        way_back = measures["recall"]["mean"] - unlearned
        measures["recovered"] = way_back / (goal - unlearned) if goal > unlearned else None
    return measured
