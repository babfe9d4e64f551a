"""How much of an answer a model predicts token by token when it is given all tokens before."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from eval.metrics.intervals import summary

_DESCRIPTION = """\
Exact memorization and extraction strength, from the most probable token at each position of an answer, given the
question and all true tokens before: the share predicted right, and the share of the end that needs no further help.
"""

_CITATION = """\
@inproceedings{carlini2021extracting,
  title = {Extracting Training Data from Large Language Models},
  author = {Carlini, Nicholas and others},
  booktitle = {USENIX Security Symposium},
  year = {2021},
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]`):
        Most probable token id at each position of the answer, given the true tokens before it.
    references (`list[list[int]]`):
        Token ids of the answer, of the same length.

Returns:
    `dict`: for `exact_memorization` and `extraction_strength` the `mean` over rows in [0, 1], its 95 % bootstrap
    `interval`, the number `n` of rows, and that of `missing` ones, whose answer has no token.

Raises:
    ValueError: if there are no rows, or the lengths of a row differ.

Example:

    >>> from eval.metrics.memorization import MemorizationMetric

    >>> # or evaluate.load("eval/metrics/memorization.py", keep_in_memory=True)
    >>> metric = MemorizationMetric(keep_in_memory=True)
    >>> metric.compute(predictions=[[5, 0, 7, 8], []], references=[[5, 6, 7, 8], []])
    {'exact_memorization': {'mean': 0.75, 'interval': None, 'n': 1, 'missing': 1}, \
'extraction_strength': {'mean': 0.5, 'interval': None, 'n': 1, 'missing': 1}}
"""


def _checked_hits(hits) -> np.ndarray:
    hits = np.asarray(hits)
    if hits.ndim != 1 or (hits.size and hits.dtype != bool):
        raise ValueError(
            f"Hits are one boolean an answer token, not an array of shape {hits.shape} and type {hits.dtype}: compare "
            "the predicted token ids with the answer's."
        )
    return hits.astype(bool)


def exact_memorization(hits: Sequence[bool]) -> float | None:
    """
    Share of the answer's tokens that are the most probable ones, given the true tokens before.

    Source: Tirumala et al., "Memorization Without Overfitting", 2022.

    Args:
        hits (`Sequence[bool]`):
            Whether each of the `L` answer tokens is the most probable one, shape `(L,)`.

    Returns:
        `float` in `[0, 1]`, or `None` for an answer without tokens.

    Raises:
        ValueError: if `hits` is not a sequence of booleans.

    Example:
    ```python
    >>> from eval.metrics.memorization import exact_memorization

    >>> exact_memorization([True, False, True, True])
    0.75
    ```
    """
    hits = _checked_hits(hits)
    return float(hits.mean()) if len(hits) else None


def extraction_strength(hits: Sequence[bool]) -> float | None:
    r"""
    Share of the answer, counted from its end, that follows by arg-max once the tokens before it are given.

    $$
    1 - \frac{k}{L}, \quad k = \min \{ i : \text{every position from } i \text{ on is right} \}
    $$

    and $k = L$ where the last position is wrong. Other code drops the last token and so cannot go below $1/L$.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", 2021, in the form of Wang et al.,
    "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods", 2025.

    Args:
        hits (`Sequence[bool]`):
            Whether each of the `L` answer tokens is the most probable one, shape `(L,)`.

    Returns:
        `float` in `[0, 1]`, or `None` for an answer without tokens.

    Raises:
        ValueError: if `hits` is not a sequence of booleans.

    Example:
    ```python
    >>> from eval.metrics.memorization import extraction_strength

    >>> extraction_strength([True, False, True, True]), extraction_strength([True, True, True, False])
    (0.5, 0.0)
    ```
    """
    hits = _checked_hits(hits)
    wrong = np.flatnonzero(~hits)
    start = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - start / len(hits) if len(hits) else None


# evaluate.load takes the first Metric class of a file and copies the file elsewhere, so: one class, absolute imports.
class MemorizationMetric(evaluate.Metric):
    """[`exact_memorization`] and [`extraction_strength`] of rows; see `inputs_description` for an example."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {name: datasets.List(datasets.Value("int64")) for name in ("predictions", "references")}
            ),
            reference_urls=["https://arxiv.org/abs/2012.07805"],
        )

    def _compute(self, predictions, references):
        if not len(predictions):
            raise ValueError("There are no rows to score: predictions and references are empty.")
        hits = []
        for row, (predicted, reference) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(reference):
                raise ValueError(
                    f"Row {row} has {len(predicted)} predictions for {len(reference)} tokens: give one for each."
                )
            hits.append(np.equal(predicted, reference))
        return {
            "exact_memorization": summary([exact_memorization(row) for row in hits]),
            "extraction_strength": summary([extraction_strength(row) for row in hits]),
        }
