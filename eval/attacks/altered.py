"""What comes out of an altered model, relearned or quantized: recall and probability of the truth."""

from math import exp
from statistics import fmean

from eval.data import QuestionSet
from eval.metrics.unlearning import rouge_recalls
from eval.passes import ModelPasses


def forget_measures(passes: ModelPasses, rows: QuestionSet) -> tuple[dict[int, float], float]:
    """ROUGE-L recall of each greedy answer by its row, and mean of exp(-mean loss a token) of the true ones."""
    texts = [answer.text for answer in passes.answer(rows.questions)]
    losses = passes.score(rows.questions, rows.answers)
    recalls = dict(zip(rows.rows, rouge_recalls(texts, rows.answers), strict=True))
    return recalls, fmean(exp(-row.loss) for row in losses)


def recovered_share(after: float, unlearned: float, before: float) -> float | None:
    """The part of the way back that an attack has gone: 0 at the unlearned model, 1 at the one before unlearning; None
    where unlearning has lowered nothing."""
    return (after - unlearned) / (before - unlearned) if before > unlearned else None
