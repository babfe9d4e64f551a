"""How much of an answer a model predicts token by token when it is given all tokens before.

Of each of the L answer tokens, the end token left out, `ranks` tells the place in the model's order of the vocabulary,
1 for the most probable token, and `hits` whether it is that one, both of shape `(L,)`. Without a token there is no
value: None.
"""

import numpy as np


def exact_memorization(hits: np.ndarray) -> float | None:
    """
    Share of the tokens that are the most probable ones. Source: Tirumala et al., "Memorization Without Overfitting",
    2022.

    >>> exact_memorization(np.array([True, False, True, True]))
    0.75
    """
    return float(np.mean(hits)) if len(hits) else None


def extraction_strength(hits: np.ndarray) -> float | None:
    r"""
    Share of the answer, counted from its end, that follows by arg-max once the tokens before it are given.

    $$
    1 - \frac{k}{L}, \quad k = \min \{ i : \text{every position from } i \text{ on is right} \}
    $$

    and $k = L$ where the last position is wrong. Other code drops the last token and so cannot go below $1/L$.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", 2021, in the form of Wang et al.,
    "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods", 2025.

    >>> [extraction_strength(np.array(hits)) for hits in ([True, False, True, True], [True, True, True, False])]
    [0.5, 0.0]
    """
    wrong = np.flatnonzero(~hits)
    start = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - start / len(hits) if len(hits) else None


def within(ranks: np.ndarray, count: int) -> float | None:
    """
    Share of the tokens that are among the `count` most probable ones.

    >>> within(np.array([1, 9, 2, 40]), 5)
    0.5
    """
    return float(np.mean(ranks <= count)) if len(ranks) else None
