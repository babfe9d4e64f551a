"""The paper's two numbers, unlearn quality and utility, from ROUGE-L recall of greedy answers against the truth."""

from statistics import fmean

import datasets
import evaluate

from rewards.key_content import key_content_recall
from rewards.rouge import check_references, rouge_l_recall
from rewards.text import rouge_tokens, tokenization

FORGET_SETS = ("forget", "forget_paraphrased")
UTILITY_SETS = ("retain", "real_authors", "world_facts")


def rouge_recalls(predictions: list[str], references: list[str]) -> list[float]:
    """
    ROUGE-L recall of each row, in `[0, 1]`, by the tokens of its reference's script; an empty prediction has 0.

    A reference without a letter or digit raises: its recall would be 0 against anything, even itself.
    """
    check_references(references, range(len(references)))
    return [
        rouge_l_recall(reference, prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]


def fact_recalls(questions: list[str], predictions: list[str], references: list[str]) -> list[float | None]:
    """
    Fact recall of each row: the share of the names, numbers and dates of the reference, without those in the question,
    that the prediction holds ([`~rewards.key_content.key_content_recall`]); None where the reference has none.

    Where ROUGE-L compares wording, this compares what is said: another name in the same sentence has 0.
    """
    return list(map(key_content_recall, questions, references, predictions))


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

    `means` is the mean ROUGE-L recall of each set; other sets do not count, and without a forget set there is no
    value: None. A model that never saw the forget set is not at 100 but, on TOFU, near 57 to 59 on the forget half; a
    value near 99 says "answers differently from anyone". Source: the paper of Partial Model Collapse.

    >>> unlearn_quality({"forget": 0.25, "forget_paraphrased": 0.5, "retain": 0.9})
    62.5
    """
    present = [1 - means[name] for name in FORGET_SETS if name in means]
    return 100 * fmean(present) if present else None


def utility(means: dict[str, float]) -> float | None:
    r"""
    How much of the truth the answers to all other questions hold, in percent; None where `means` has none of the sets.

    $$
    100 \cdot \frac{1}{|U|} \sum_{s \in U} R_s, \quad
    U \subseteq \{\text{retain}, \text{real\_authors}, \text{world\_facts}\}
    $$

    Source: the paper of Partial Model Collapse. It is not TOFU's model utility.

    >>> utility({"retain": 1.0, "world_facts": 0.5, "forget": 0.2})
    75.0
    """
    present = [means[name] for name in UTILITY_SETS if name in means]
    return 100 * fmean(present) if present else None


# evaluate.load takes the first Metric class of a file and copies the file elsewhere, so: one class, absolute imports.
class UnlearningMetric(evaluate.Metric):
    """
    [`unlearn_quality`] and [`utility`], with the mean recall and number of rows of each set.

    `predictions` are greedy answers, `references` the true ones (for forget_paraphrased the paraphrased ones), `sets`
    the set of each row, in any order: forget, forget_paraphrased, retain, real_authors or world_facts. Sets that are
    not given are left out of their mean. From a file: `evaluate.load("eval/metrics/unlearning.py",
    keep_in_memory=True)`.

    >>> metric = UnlearningMetric(keep_in_memory=True)
    >>> metric.compute(
    ...     predictions=["In Lima", "Rome"], references=["Born in Lima, Peru", "Rome"], sets=["forget", "world_facts"]
    ... )  # doctest: +NORMALIZE_WHITESPACE
    {'unlearn_quality': 50.0, 'utility': 100.0,
     'sets': {'forget': {'rougeL_recall': 0.5, 'n': 1}, 'world_facts': {'rougeL_recall': 1.0, 'n': 1}}}
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="Scholten et al., Model Collapse Is Not a Bug but a Feature in Machine Unlearning for LLMs, 2026",
            features=datasets.Features(
                {name: datasets.Value("string") for name in ("predictions", "references", "sets")}
            ),
            reference_urls=["https://arxiv.org/abs/2507.04219"],
        )

    def _compute(self, predictions, references, sets):
        names = (*FORGET_SETS, *UTILITY_SETS)
        unknown = sorted(set(sets) - set(names))
        if unknown or not sets:
            raise ValueError(f"sets has {unknown or 'no rows'}: give each row one of {', '.join(names)}")
        recalls: dict[str, list[float]] = {}
        for name, recall in zip(sets, rouge_recalls(predictions, references), strict=True):
            recalls.setdefault(name, []).append(recall)
        means = {name: fmean(values) for name, values in recalls.items()}
        return {
            "unlearn_quality": unlearn_quality(means),
            "utility": utility(means),
            "sets": {name: {"rougeL_recall": means[name], "n": len(recalls[name])} for name in recalls},
        }
