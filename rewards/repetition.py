"""Penalties for the ways in which a text breaks down: loops, few different phrases, unreadable characters."""

import unicodedata
from functools import lru_cache

from rewards.text import Texts, completion_texts, folded_words


def _longest_loop(tokens: list[str]) -> int:
    """Length of the longest stretch that is one phrase, at least twice in a row; the last round may be unfinished."""
    longest = 0
    for period in range(1, len(tokens) // 2 + 1):
        repeated = 0
        for i in range(period, len(tokens)):
            repeated = repeated + 1 if tokens[i] == tokens[i - period] else 0
            if repeated >= period:
                longest = max(longest, period + repeated)
    return longest


def repetition_penalty(completions: Texts, **kwargs) -> list[float]:
    """
    Penalty for answers that are caught in a loop: a phrase that is followed by itself at once.

        r = -(words of the longest loop, all its rounds) / words,  in [-1, 0]; 0 without words

    A word said twice, as in "that that", is a loop of two. Words are [`rewards.text.folded_words`].

    >>> repetition_penalty(["She sings and he sings.", "It is the sea, the sea, the sea.", "no no no"])
    [0.0, -0.75, -1.0]
    """
    return [
        -_longest_loop(tokens) / max(1, len(tokens)) for tokens in map(folded_words, completion_texts(completions))
    ]


repetition_penalty.max_reward = 0.0


def distinct_ngrams_penalty(completions: Texts, n: int = 2, **kwargs) -> list[float]:
    """
    Penalty for answers that say the same again, wherever it stands.

        r = different n-grams / n-grams - 1,  in [-1, 0]; 0 with fewer than n words

    over [`rewards.text.folded_words`], of each completion alone.

    Source: distinct-n of Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models"
    (https://huggingface.co/papers/1510.03055).

    >>> distinct_ngrams_penalty(["She sings and he sings.", "I am here. I am.", "la la la la la"])
    [0.0, -0.25, -0.75]
    """
    if n < 1:
        raise ValueError(f"n is {n}, but an n-gram has at least 1 word.")
    penalties = []
    for tokens in map(folded_words, completion_texts(completions)):
        ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        penalties.append(len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0)
    return penalties


distinct_ngrams_penalty.max_reward = 0.0


@lru_cache(maxsize=65536)
def _is_readable(char: str) -> bool:
    return char in "\t\n\r" or unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs", "So")


def readability_penalty(completions: Texts, **kwargs) -> list[float]:
    """
    Penalty for answers that are not made of characters one reads.

        r = -(unreadable characters / characters),  in [-1, 0]; -1 if it holds U+FFFD, 0 if it is empty

    Readable are letters with their marks, numbers, punctuation, white space, mathematical and currency signs of any
    script; unreadable are control characters, unassigned and private ones, and pictures: boxes, dingbats, emoji, also
    © and ° (Unicode's general categories). U+FFFD stands for bytes that form no character: written text never holds
    it, so a single one costs all, also where a completion is cut in the middle of a character.

    >>> readability_penalty(["Élise, 東京: 5 €?", "ab\u2588\u2588", "born in \ufffd"])
    [0.0, -0.5, -1.0]
    """
    penalties = []
    for text in completion_texts(completions):
        unreadable = len(text) if "\ufffd" in text else sum(not _is_readable(char) for char in text)
        penalties.append(-unreadable / max(1, len(text)))
    return penalties


readability_penalty.max_reward = 0.0
