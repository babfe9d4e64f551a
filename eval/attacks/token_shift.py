"""Token-probability shift: do the forgotten words become unlikely in text that has nothing to do with them?"""

from collections.abc import Iterable

import numpy as np
from scipy.stats import skew

from eval.passes import TokenScores

CHUNK_TOKENS = 128


def chunked(ids: list[int]) -> list[list[int]]:
    """Running text in pieces of `CHUNK_TOKENS` tokens; a rest of fewer than two tokens predicts nothing."""
    chunks = [ids[i : i + CHUNK_TOKENS] for i in range(0, len(ids), CHUNK_TOKENS)]
    return [chunk for chunk in chunks if len(chunk) > 1]


def token_shift_attack(
    chunks: list[list[int]], forget_tokens: Iterable[int], before: list[TokenScores], after: list[TokenScores]
) -> dict:
    """
    Change of the probability, p_after - p_before, of each token of unrelated text: of `forget_tokens`, those in the
    answers to be forgotten, and of all others. Source: the paper of Partial Model Collapse.

    Scores are of all tokens of a chunk but the first, which is not predicted.
    """
    tokens = np.concatenate([chunk[1:] for chunk in chunks])
    shift = np.concatenate(
        [np.exp(b.log_probs) - np.exp(a.log_probs) for a, b in zip(before, after, strict=True)], dtype=np.float64
    )
    occurs = np.isin(tokens, list(set(forget_tokens)))
    return {"forget_tokens": _moments(shift[occurs]), "other_tokens": _moments(shift[~occurs])}


def _moments(shift: np.ndarray) -> dict:
    if len(shift) == 0:
        return {"mean": None, "std": None, "skew": None, "below_minus_half": None, "n": 0}
    # the skew of equal numbers, as of a model compared with itself, is 0 over 0
    return {
        "mean": float(shift.mean()),
        "std": float(shift.std()),
        "skew": float(skew(shift)) if np.ptp(shift) > 0 else 0.0,
        "below_minus_half": float((shift < -0.5).mean()),
        "n": len(shift),
    }
