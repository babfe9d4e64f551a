"""Least-likely-option attack: does the true answer stand out among wrong ones, as the least or the most likely?"""

import numpy as np

QUANTILES = (0.25, 0.5, 0.75, 1.0)


def options_attack(losses: np.ndarray) -> dict:
    r"""
    How often the right option is the least and the most likely; suppressed below all wrong ones, it is found as well.

    Options score $e^{-l}$, normalised over the options, with l the mean loss a token. Source: the paper of Partial
    Model Collapse. To be compared with a model that never saw the answers, not with chance.

    Args:
        losses (`np.ndarray` of shape `(rows, options)`):
            Mean negative log-likelihood a token of the right option, in column 0, and of the wrong ones.

    Returns:
        `dict`: shares `least` and `most`, the number of rows `n`, and `by_quantile`: the share `least` among the rows
        whose smallest normalised probability is at most its quantile `threshold`: an attacker bets where it is small.

    Example:
    ```python
    >>> import numpy as np
    >>> from eval.attacks.options import options_attack

    >>> result = options_attack(np.array([[0.1, 2.0, 3.0], [4.0, 1.0, 2.0]]))
    >>> result["least"], result["most"]
    (0.5, 0.5)
    ```
    """
    scores = np.exp(-(losses - losses.min(1, keepdims=True)))
    probabilities = scores / scores.sum(1, keepdims=True)
    smallest = probabilities.min(1)
    least = losses.argmax(1) == 0
    by_quantile = []
    for quantile in QUANTILES:
        threshold = float(np.quantile(smallest, quantile))
        chosen = smallest <= threshold
        by_quantile.append(
            {
                "quantile": quantile,
                "threshold": threshold,
                "least": float(least[chosen].mean()),
                "n": int(chosen.sum()),
            }
        )
    return {
        "least": float(least.mean()),
        "most": float((losses.argmin(1) == 0).mean()),
        "options": losses.shape[1],
        "n": len(losses),
        "by_quantile": by_quantile,
    }
