"""TOFU's own measures from losses of right and wrong answers: probability, truth ratio, utility, forget quality.

A loss is the mean negative log-likelihood a token of an answer, its end token included, in nats. Of right answers it
has any shape `(...)`, of the k wrong ones of each row `(..., k)`. Source: TOFU (arXiv:2401.06121) and its code.
"""

from collections.abc import Sequence
from math import log10, ulp

import numpy as np
from scipy import stats
from scipy.special import expit, logsumexp

# Sets of common knowledge: the answer stands for its paraphrase, its probability is that among the options.
FACT_SETS = ("real_authors", "world_facts")


def probability(loss: np.ndarray | float) -> np.ndarray | float:
    r"""
    Probability of an answer, brought to the length of one token: $P = e^{-\ell}$.

    >>> print(probability(np.array([0.0, 0.5])).round(4))
    [1.     0.6065]
    """
    return np.exp(-np.asarray(loss, dtype=float))


def option_probability(loss: np.ndarray | float, wrong_losses: np.ndarray) -> np.ndarray | float:
    r"""
    Probability of the right answer among all options, the wrong ones included.

    $$
    \frac{P(a)}{P(a) + \sum_j P(w_j)}, \quad P(a) = e^{-\ell(a)}
    $$

    >>> print(option_probability([2.0, 900.0], [[2.0, 2.0, 2.0], [900.0, 901.0, 902.0]]).round(4))
    [0.25   0.3995]
    """
    # Inverse of 1 + sum_j P(w_j) / P(a), so that it holds where every P is too small for a float.
    odds = np.expand_dims(loss, -1) - np.asarray(wrong_losses, dtype=float)
    return expit(-logsumexp(odds, axis=-1))


def truth_ratio(paraphrase_loss: np.ndarray | float, wrong_losses: np.ndarray) -> np.ndarray | float:
    r"""
    How probable wrong answers are beside the right one, put in other words than in training; above 1 they win.

    $$
    R = \frac{\exp\left(-\frac{1}{k} \sum_j \ell(w_j)\right)}{\exp(-\ell(\text{paraphrase}))}
    $$

    The wrong answers enter by their geometric mean. An arithmetic mean, as in a formula of the paper, gives other
    numbers than its code and its tables. Infinite above about 1e308. Of a set it is reported as the mean of
    min(R, 1/R) (forget: 1 is no preference for the truth at all, and none against it) or of max(0, 1 - R).

    >>> print(truth_ratio([1.0, 2.0], [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]).round(4))
    [0.3679 1.    ]
    """
    log_ratio = np.asarray(paraphrase_loss, dtype=float) - np.asarray(wrong_losses, dtype=float).mean(axis=-1)
    with np.errstate(over="ignore"):
        return np.exp(log_ratio)


def model_utility(values: Sequence[float]) -> float:
    """
    Harmonic mean of TOFU's nine utilities: probability, ROUGE-L recall and truth ratio of retain, real_authors and
    world_facts. One that is lost cannot be made up for; any 0 gives 0. It is not Partial Model Collapse's utility.

    >>> model_utility([0.5] * 6 + [1.0] * 3), model_utility([0.0] + [1.0] * 8)
    (0.6, 0.0)
    """
    return float(stats.hmean(values, nan_policy="raise"))


def forget_quality(ratios: Sequence[float], reference_ratios: Sequence[float]) -> dict:
    """
    Whether the truth ratios on the forget rows could be those of a model that never saw them (retain-only).

    The p-value of the two-sample Kolmogorov-Smirnov test, exact for up to 10,000 rows (`scipy.stats.ks_2samp`). It
    depends on the number of rows; the statistic, the largest distance between both distribution functions, does not.
    Where p is too small for a float, `p_value` is 0 and `log10_p_value` that of the smallest float: p is below it.

    >>> forget_quality([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    {'p_value': 1.0, 'log10_p_value': 0.0, 'statistic': 0.0, 'n': 4, 'n_reference': 4}
    """
    test = stats.ks_2samp(ratios, reference_ratios)
    return {
        "p_value": float(test.pvalue),
        "log10_p_value": log10(max(test.pvalue, ulp(0.0))),
        "statistic": float(test.statistic),
        "n": len(ratios),
        "n_reference": len(reference_ratios),
    }
