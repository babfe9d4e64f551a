"""Least-likely-option attack: does the true answer stand out among wrong ones, as the least or the most likely?"""

import numpy as np

QUANTILES = (0.25, 0.5, 0.75, 1.0)


def options_attack(losses: np.ndarray) -> dict:
    r"""
    How often the right option is the least and the most likely; suppressed below all wrong ones, it is found as well.

    `losses`, shape `(rows, options)`, are the mean negative log-likelihoods a token l of the right option, in column
    0, and of the wrong ones. Options score $e^{-l}$, normalised over the options; `by_quantile` has the share `least`
    among the rows whose smallest score is at most its quantile `threshold`: an attacker bets where it is small. To be
    compared with a model that never saw the answers, not with chance. Source: the paper of Partial Model Collapse.

    >>> result = options_attack(np.array([[0.1, 2.0, 3.0], [4.0, 1.0, 2.0]]))
    >>> result["least"], result["most"]
    (0.5, 0.5)
    """
    scores = np.exp(-(losses - losses.min(1, keepdims=True)))
    smallest = (scores / scores.sum(1, keepdims=True)).min(1)
    least = losses.argmax(1) == 0
    by_quantile = []
    for quantile in QUANTILES:
        threshold = float(np.quantile(smallest, quantile))
        share, n = float(least[smallest <= threshold].mean()), int((smallest <= threshold).sum())
        by_quantile.append({"quantile": quantile, "threshold": threshold, "least": share, "n": n})
    return {
        "least": float(least.mean()),
        "most": float((losses.argmin(1) == 0).mean()),
        "options": losses.shape[1],
        "n": len(losses),
        "by_quantile": by_quantile,
    }
