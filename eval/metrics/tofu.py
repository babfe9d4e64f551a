"""TOFU's own measures from losses of right and wrong answers: probability, truth ratio, utility, forget quality."""

from collections.abc import Sequence
from math import log10, ulp

import datasets
import evaluate
import numpy as np
from scipy import stats
from scipy.special import expit, logsumexp

FACT_SETS = ("real_authors", "world_facts")
TOFU_SETS = ("forget", "retain", *FACT_SETS)

_DESCRIPTION = """\
TOFU's probability and truth ratio by question set, from the mean negative log-likelihood a token of the answer, of its
paraphrase and of wrong answers. For real_authors and world_facts the answer stands for its paraphrase, and the
probability is that of the answer among the options.
"""

_CITATION = """\
@inproceedings{maini2024tofu,
  title = {{TOFU}: A Task of Fictitious Unlearning for {LLMs}},
  author = {Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  booktitle = {Conference on Language Modeling},
  year = {2024},
}
"""

_INPUTS_DESCRIPTION = """
Args:
    answer_loss (`list[float]`):
        Mean negative log-likelihood a token of the true answer, its end token included, in nats.
    paraphrase_loss (`list[float]`):
        The same of the paraphrased answer. Not read for real_authors and world_facts, where it may be None.
    wrong_losses (`list[list[float]]`):
        The same of each wrong answer: 5 a row in TOFU, 3 for real_authors and world_facts.
    sets (`list[str]`):
        Set of each row: forget, retain, real_authors or world_facts, in any order.

Returns:
    `dict`: for each set in the order of first appearance its mean `probability`, its `truth_ratio` (for forget the
    mean of min(R, 1/R), else of max(0, 1 - R)), both in [0, 1], and its number of rows `n`.

Raises:
    ValueError: if there are no rows, a set has another name, a row has no wrong answer, or a loss is missing, infinite
        or negative.

Example:

    >>> from eval.metrics.tofu import TofuMetric

    >>> metric = TofuMetric(keep_in_memory=True)  # or evaluate.load("eval/metrics/tofu.py", keep_in_memory=True)
    >>> metric.compute(
    ...     answer_loss=[0.0, 1.0], paraphrase_loss=[2.0, None], wrong_losses=[[1.0, 3.0], [1.0]],
    ...     sets=["forget", "real_authors"],
    ... )
    {'forget': {'probability': 1.0, 'truth_ratio': 1.0, 'n': 1}, \
'real_authors': {'probability': 0.5, 'truth_ratio': 0.0, 'n': 1}}
"""


def _checked_losses(losses) -> np.ndarray:
    losses = np.asarray(losses, dtype=float)
    bad = losses[~(np.isfinite(losses) & (losses >= 0))]
    if bad.size:
        raise ValueError(
            f"{bad.size} of {losses.size} losses cannot be mean negative log-likelihoods, the first is {bad[0]}: they "
            "are finite and at least 0. Leave out rows with an empty answer, and change the sign of log-probabilities."
        )
    return losses


def _checked_wrong_losses(wrong_losses) -> np.ndarray:
    wrong_losses = _checked_losses(wrong_losses)
    if wrong_losses.shape[-1:] in ((), (0,)):
        raise ValueError("There are no wrong answers to compare with: give the loss of at least one for every row.")
    return wrong_losses


def _checked_ratios(ratios) -> np.ndarray:
    ratios = np.asarray(ratios, dtype=float)
    if not (ratios.size and (ratios >= 0).all()):  # false for NaN, too
        raise ValueError("Truth ratios must be at least one number, none of them negative or NaN.")
    return ratios


def probability(loss: np.ndarray | float) -> np.ndarray | float:
    r"""
    Probability of an answer, brought to the length of one token: $P = e^{-\ell}$.

    Source: TOFU.

    Args:
        loss (`np.ndarray` or `float`):
            Mean negative log-likelihood a token, end token included, in nats; any shape.

    Returns:
        `np.ndarray` or `float`: probability in `[0, 1]`, of the same shape.

    Raises:
        ValueError: if a loss is missing, infinite or negative.

    Example:
    ```python
    >>> from eval.metrics.tofu import probability

    >>> print(probability([0.0, 0.5]).round(4))
    [1.     0.6065]
    ```
    """
    return np.exp(-_checked_losses(loss))


def option_probability(loss: np.ndarray | float, wrong_losses: np.ndarray) -> np.ndarray | float:
    r"""
    Probability of the right answer among all options, the wrong ones included.

    $$
    \frac{P(a)}{P(a) + \sum_j P(w_j)}, \quad P(a) = e^{-\ell(a)}
    $$

    Source: TOFU, for real_authors and world_facts.

    Args:
        loss (`np.ndarray` or `float`):
            Mean negative log-likelihood a token of the right answer, in nats, shape `(...)`.
        wrong_losses (`np.ndarray`):
            The same of the `k` wrong answers, shape `(..., k)`.

    Returns:
        `np.ndarray` or `float`: share in `[0, 1]`, shape `(...)`.

    Raises:
        ValueError: if a loss is missing, infinite or negative, or there is no wrong answer.

    Example:
    ```python
    >>> from eval.metrics.tofu import option_probability

    >>> print(option_probability([2.0, 900.0], [[2.0, 2.0, 2.0], [900.0, 901.0, 902.0]]).round(4))
    [0.25   0.3995]
    ```
    """
    # Inverse of 1 + sum_j P(w_j) / P(a), so that it holds where every P is too small for a float.
    odds = np.expand_dims(_checked_losses(loss), -1) - _checked_wrong_losses(wrong_losses)
    return expit(-logsumexp(odds, axis=-1))


def truth_ratio(paraphrase_loss: np.ndarray | float, wrong_losses: np.ndarray) -> np.ndarray | float:
    r"""
    How probable wrong answers are beside the right one, put in other words than in training; above 1 they win.

    $$
    R = \frac{\exp\left(-\frac{1}{k} \sum_j \ell(w_j)\right)}{\exp(-\ell(\text{paraphrase}))}
    $$

    The wrong answers enter by their geometric mean. An arithmetic mean, as in a formula of the paper, gives other
    numbers than its code and its tables.

    Source: TOFU's code.

    Args:
        paraphrase_loss (`np.ndarray` or `float`):
            Mean negative log-likelihood a token of the paraphrased answer, in nats, shape `(...)`; for real_authors
            and world_facts that of the answer itself.
        wrong_losses (`np.ndarray`):
            The same of the `k` wrong answers, shape `(..., k)`.

    Returns:
        `np.ndarray` or `float`: ratio in `[0, inf]`, shape `(...)`; infinite above about 1e308, which the aggregates
        take as it is meant.

    Raises:
        ValueError: if a loss is missing, infinite or negative, or there is no wrong answer.

    Example:
    ```python
    >>> from eval.metrics.tofu import truth_ratio

    >>> print(truth_ratio([1.0, 2.0], [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]).round(4))
    [0.3679 1.    ]
    ```
    """
    log_ratio = _checked_losses(paraphrase_loss) - _checked_wrong_losses(wrong_losses).mean(axis=-1)
    with np.errstate(over="ignore"):
        return np.exp(log_ratio)


def forget_truth_ratio(ratios: Sequence[float]) -> float:
    r"""
    How well a model cannot tell right from wrong on what is to be forgotten: the mean of $\min(R, 1/R)$.

    1 is no preference at all; both a model that remembers and one that avoids the truth are near 0.

    Source: TOFU.

    Args:
        ratios (`Sequence[float]`):
            Truth ratio of each forget row, shape `(n,)`.

    Returns:
        `float` in `[0, 1]`.

    Raises:
        ValueError: if there is no ratio, or one is negative or NaN.

    Example:
    ```python
    >>> from eval.metrics.tofu import forget_truth_ratio

    >>> forget_truth_ratio([0.5, 2.0, 1.0, float("inf")])
    0.5
    ```
    """
    ratios = _checked_ratios(ratios)
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.minimum(ratios, 1 / ratios).mean())


def utility_truth_ratio(ratios: Sequence[float]) -> float:
    r"""
    How clearly a model prefers right to wrong on what it is to keep: the mean of $\max(0, 1 - R)$.

    Source: TOFU.

    Args:
        ratios (`Sequence[float]`):
            Truth ratio of each row of one set, shape `(n,)`.

    Returns:
        `float` in `[0, 1]`.

    Raises:
        ValueError: if there is no ratio, or one is negative or NaN.

    Example:
    ```python
    >>> from eval.metrics.tofu import utility_truth_ratio

    >>> utility_truth_ratio([0.5, 2.0, 0.0, float("inf")])
    0.375
    ```
    """
    return float(np.maximum(0, 1 - _checked_ratios(ratios)).mean())


def model_utility(values: Sequence[float]) -> float:
    """
    Harmonic mean of TOFU's nine utilities, so one that is lost cannot be made up for; any 0 gives 0.

    It is not the utility of Partial Model Collapse.

    Source: TOFU.

    Args:
        values (`Sequence[float]`):
            Probability, ROUGE-L recall and truth ratio of retain, real_authors and world_facts, in any order, each in
            `[0, 1]`.

    Returns:
        `float` in `[0, 1]`.

    Raises:
        ValueError: if there are not nine values, or one is NaN or out of `[0, 1]`.

    Example:
    ```python
    >>> from eval.metrics.tofu import model_utility

    >>> model_utility([0.5] * 6 + [1.0] * 3)
    0.6
    >>> model_utility([0.0] + [1.0] * 8)
    0.0
    ```
    """
    values = np.asarray(values, dtype=float)
    if not (values.shape == (9,) and ((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"Model utility is of nine values in [0, 1], none of them missing, not {values.tolist()}.")
    with np.errstate(divide="ignore", over="ignore"):
        return float(9 / (1 / values).sum())


def forget_quality(ratios: Sequence[float], reference_ratios: Sequence[float]) -> dict:
    """
    Whether the truth ratios on the forget rows could be those of a model that never saw them.

    The p-value of the two-sample Kolmogorov-Smirnov test: exact for up to 10,000 rows, else its limit. It depends on
    the number of rows; the statistic, the largest distance between both distribution functions, does not.

    Source: TOFU; `scipy.stats.ks_2samp`.

    Args:
        ratios (`Sequence[float]`):
            Truth ratio of the unlearned model for each forget row, shape `(n,)`.
        reference_ratios (`Sequence[float]`):
            The same of a retain-only model, shape `(n_reference,)`.

    Returns:
        `dict`: `p_value`, `log10_p_value`, `statistic` in `[0, 1]`, `n` and `n_reference`. Where p is too small for a
        float, `p_value` is 0 and `log10_p_value` about -323.3, that of the smallest float: p is below it.

    Raises:
        ValueError: if a side has no ratio, or one is negative or NaN.

    Example:
    ```python
    >>> from eval.metrics.tofu import forget_quality

    >>> forget_quality([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    {'p_value': 1.0, 'log10_p_value': 0.0, 'statistic': 0.0, 'n': 4, 'n_reference': 4}
    ```
    """
    ratios, reference_ratios = _checked_ratios(ratios), _checked_ratios(reference_ratios)
    test = stats.ks_2samp(ratios, reference_ratios)
    return {
        "p_value": float(test.pvalue),
        "log10_p_value": log10(max(test.pvalue, ulp(0.0))),
        "statistic": float(test.statistic),
        "n": len(ratios),
        "n_reference": len(reference_ratios),
    }


# evaluate.load takes the first Metric class of a file and copies the file elsewhere, so: one class, absolute imports.
class TofuMetric(evaluate.Metric):
    """[`probability`] and [`truth_ratio`] of rows from several sets; see `inputs_description` for an example."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "answer_loss": datasets.Value("float64"),
                    "paraphrase_loss": datasets.Value("float64"),
                    "wrong_losses": datasets.List(datasets.Value("float64")),
                    "sets": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2401.06121"],
        )

    def _compute(self, answer_loss, paraphrase_loss, wrong_losses, sets):
        if not len(sets):
            raise ValueError("There are no rows to score: all inputs are empty.")
        unknown = sorted(set(sets) - set(TOFU_SETS))
        if unknown:
            raise ValueError(
                f"Unknown sets {unknown}. Valid names are {', '.join(TOFU_SETS)}: rename the set of these rows or "
                "leave them out."
            )
        rows: dict[str, list[tuple[float, float]]] = {}
        for name, loss, paraphrase, wrong in zip(sets, answer_loss, paraphrase_loss, wrong_losses, strict=True):
            if name in FACT_SETS:
                row = option_probability(loss, wrong), truth_ratio(loss, wrong)
            else:
                row = probability(loss), truth_ratio(paraphrase, wrong)
            rows.setdefault(name, []).append(row)
        result = {}
        for name, values in rows.items():
            probabilities, ratios = zip(*values, strict=True)
            aggregate = forget_truth_ratio if name == "forget" else utility_truth_ratio
            result[name] = {
                "probability": float(np.mean(probabilities)),
                "truth_ratio": aggregate(ratios),
                "n": len(values),
            }
        return result
