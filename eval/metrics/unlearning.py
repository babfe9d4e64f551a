"""The paper's two numbers, unlearn quality and utility, from ROUGE-L recall of greedy answers against the truth."""

from statistics import fmean

import datasets
import evaluate

from rewards.rouge import check_references, rouge_l_recall
from rewards.text import rouge_tokens, tokenization

FORGET_SETS = ("forget", "forget_paraphrased")
UTILITY_SETS = ("retain", "real_authors", "world_facts")

_DESCRIPTION = """\
Unlearn quality and utility of Partial Model Collapse: 100 times the mean over the forget sets of 1 - ROUGE-L recall,
and 100 times the mean over the other sets of ROUGE-L recall. Sets that are not given are left out of their mean.
"""

_CITATION = """\
@inproceedings{scholten2026model,
  title = {Model Collapse Is Not a Bug but a Feature in Machine Unlearning for {LLMs}},
  author = {Scholten, Yan and Xhonneux, Sophie and Schwinn, Leo and G{\\"u}nnemann, Stephan},
  booktitle = {International Conference on Learning Representations},
  year = {2026},
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`):
        Greedy answers of the model. An empty answer has recall 0.
    references (`list[str]`):
        Ground-truth answers; for `forget_paraphrased` the paraphrased answers.
    sets (`list[str]`):
        Set of each row: forget, forget_paraphrased, retain, real_authors or world_facts, in any order.

Returns:
    `dict`: `unlearn_quality` and `utility`, in percent and `None` where no set of their group is given, and `sets`:
    for each set in the order of first appearance its mean `rougeL_recall`, in [0, 1], and its number of rows `n`.

Raises:
    ValueError: if there are no rows, a set has another name, or a reference has no letter or digit.

Example:

    >>> from eval.metrics.unlearning import UnlearningMetric

    >>> # or evaluate.load("eval/metrics/unlearning.py", keep_in_memory=True)
    >>> metric = UnlearningMetric(keep_in_memory=True)
    >>> metric.compute(
    ...     predictions=["In Lima", "Rome"], references=["Born in Lima, Peru", "Rome"], sets=["forget", "world_facts"]
    ... )
    {'unlearn_quality': 50.0, 'utility': 100.0, 'sets': {'forget': {'rougeL_recall': 0.5, 'n': 1}, \
'world_facts': {'rougeL_recall': 1.0, 'n': 1}}}
"""


def rouge_recalls(predictions: list[str], references: list[str]) -> list[float]:
    """
    ROUGE-L recall of each row, in `[0, 1]`, by the tokens of its reference's script; an empty prediction has 0.

    Args:
        predictions (`list[str]`):
            Answers of the model.
        references (`list[str]`):
            Ground-truth answers, in the same order.

    Returns:
        `list[float]`: one recall per row, in the order of the rows.

    Raises:
        ValueError: if a reference has no letter or digit: its recall would be 0 against anything, even itself.
    """
    check_references(references, range(len(references)))
    return [
        rouge_l_recall(reference, prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]


def tokenization_counts(references: list[str]) -> dict[str, int]:
    """How many references are read as `rouge_score` does, and how many by the words of other scripts."""
    by_rouge = sum(tokenization(reference) is rouge_tokens for reference in references)
    return {"rouge": by_rouge, "script_aware": len(references) - by_rouge}


def unlearn_quality(means: dict[str, float]) -> float | None:
    r"""
    How unlike the truth the answers to the forget questions are, in percent: 100 is nothing in common.

    $$
    100 \cdot \frac{1}{|F|} \sum_{s \in F} (1 - R_s), \quad F \subseteq \{\text{forget}, \text{forget\_paraphrased}\}
    $$

    A model that never saw the forget set is not at 100 but, on TOFU, near 57 to 59 on the forget half; a value near 99
    says "answers differently from anyone".

    Source: the paper of Partial Model Collapse.

    Args:
        means (`dict[str, float]`):
            Mean ROUGE-L recall of each set, in `[0, 1]`. Sets of other names do not count.

    Returns:
        `float` in `[0, 100]`, or `None` if no forget set is given.

    Example:
    ```python
    >>> from eval.metrics.unlearning import unlearn_quality

    >>> unlearn_quality({"forget": 0.25, "forget_paraphrased": 0.5, "retain": 0.9})
    62.5
    ```
    """
    present = [1 - means[name] for name in FORGET_SETS if name in means]
    return 100 * fmean(present) if present else None


def utility(means: dict[str, float]) -> float | None:
    r"""
    How much of the truth the answers to all other questions hold, in percent.

    $$
    100 \cdot \frac{1}{|U|} \sum_{s \in U} R_s, \quad
    U \subseteq \{\text{retain}, \text{real\_authors}, \text{world\_facts}\}
    $$

    Source: the paper of Partial Model Collapse. It is not TOFU's model utility.

    Args:
        means (`dict[str, float]`):
            Mean ROUGE-L recall of each set, in `[0, 1]`. Sets of other names do not count.

    Returns:
        `float` in `[0, 100]`, or `None` if none of these sets is given.

    Example:
    ```python
    >>> from eval.metrics.unlearning import utility

    >>> utility({"retain": 1.0, "world_facts": 0.5, "forget": 0.2})
    75.0
    ```
    """
    present = [means[name] for name in UTILITY_SETS if name in means]
    return 100 * fmean(present) if present else None


# evaluate.load takes the first Metric class of a file and copies the file elsewhere, so: one class, absolute imports.
class UnlearningMetric(evaluate.Metric):
    """[`unlearn_quality`] and [`utility`] of rows from several sets; see `inputs_description` for an example."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {name: datasets.Value("string") for name in ("predictions", "references", "sets")}
            ),
            reference_urls=["https://arxiv.org/abs/2507.04219"],
        )

    def _compute(self, predictions, references, sets):
        if not predictions:
            raise ValueError("There are no rows to score: predictions, references and sets are empty.")
        unknown = sorted(set(sets) - {*FORGET_SETS, *UTILITY_SETS})
        if unknown:
            raise ValueError(
                f"Unknown sets {unknown}. Valid names are {', '.join((*FORGET_SETS, *UTILITY_SETS))}: rename the set "
                "of these rows or leave them out."
            )
        recalls: dict[str, list[float]] = {}
        for name, recall in zip(sets, rouge_recalls(predictions, references), strict=True):
            recalls.setdefault(name, []).append(recall)
        means = {name: fmean(values) for name, values in recalls.items()}
        return {
            "unlearn_quality": unlearn_quality(means),
            "utility": utility(means),
            "sets": {name: {"rougeL_recall": means[name], "n": len(recalls[name])} for name in recalls},
        }
