"""Penalties on the length of an answer: too short to say anything, outside of a band, or cut off at the limit."""

from rewards.text import Texts, completion_texts, words


def min_length_penalty(completions: Texts, min_words: int = 3, **kwargs) -> list[float]:
    """
    Penalty for answers of fewer than `min_words` words, so that saying nothing is not the best way to forget.

        r = min(0, w - min_words) / min_words,  in [-1, 0]

    w counts [`rewards.text.words`]. Each missing word costs the same, and an empty completion as much as a full match
    of [`rewards.rouge.rouge_dissimilarity`]; `min_len` of the paper's code charges it less
    ([`rewards.rouge.paper_reward`]).

    >>> min_length_penalty(["", "Nobody knows.", "I do not know.", "我不知道。"], min_words=4)
    [-1.0, -0.5, 0.0, 0.0]
    """
    if min_words < 1:
        raise ValueError(f"min_words is {min_words}, but it must be at least 1; for any length leave this reward out.")
    return [min(0, len(words(text)) - min_words) / min_words for text in completion_texts(completions)]


min_length_penalty.max_reward = 0.0


def unfinished_penalty(completion_ids: list[list[int]], max_completion_length: int, **kwargs) -> list[float]:
    """
    Penalty for answers that were cut at the limit: a model trained on them learns not to end.

        r = -1 if number of tokens >= max_completion_length else 0

    An end token exactly at the limit counts as cut: the length alone cannot tell. pmc_rl gives the recipe's limit.

    Source: a hard form of the overlong punishment of DAPO (https://huggingface.co/papers/2503.14476).

    >>> unfinished_penalty([[7, 8, 2], [7, 8, 9, 4]], max_completion_length=4)
    [0.0, -1.0]
    """
    return [-1.0 if len(ids) >= max_completion_length else 0.0 for ids in completion_ids]


unfinished_penalty.max_reward = 0.0


def length_band_penalty(
    completions: Texts,
    completion_ids: list[list[int]],
    minimum: int,
    maximum: int,
    margin: int,
    unit: str = "words",
    **kwargs,
) -> list[float]:
    """
    Penalty for answers outside of a band of lengths, such as that of the retained answers.

        r = max(-1, min(0, n - minimum, maximum - n) / margin),  in [-1, 0]

    n counts [`rewards.text.words`] or, with `unit="tokens"`, tokens, the end token included. `minimum` 0 asks only for
    answers that are not too long.

    Source: above the band linear as the overlong punishment of DAPO (https://huggingface.co/papers/2503.14476).

    >>> texts, ids = ["No.", "I do not know.", "I do not know who that is."], [[5, 2], [5, 6, 7, 8, 2], [9] * 8]
    >>> length_band_penalty(texts, ids, minimum=2, maximum=4, margin=4)
    [-0.25, 0.0, -0.75]
    >>> length_band_penalty(texts, ids, minimum=2, maximum=4, margin=4, unit="tokens")
    [0.0, -0.25, -1.0]
    """
    if not 0 <= minimum <= maximum:
        raise ValueError(f"minimum is {minimum} and maximum is {maximum}, but 0 <= minimum <= maximum must hold.")
    if margin < 1:
        raise ValueError(f"margin is {margin}, but it must be at least 1.")
    if unit not in ("words", "tokens"):
        raise ValueError(f"unit is {unit!r}, but it must be 'words' or 'tokens'.")
    sizes = map(len, completion_ids if unit == "tokens" else map(words, completion_texts(completions)))
    return [max(-1.0, min(0, size - minimum, maximum - size) / margin) for size in sizes]


length_band_penalty.max_reward = 0.0
