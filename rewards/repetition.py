"""Penalties for the ways in which a text breaks down: loops, few different phrases, unreadable characters."""

import unicodedata
from functools import lru_cache

from rewards.text import completion_text, folded_words


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


def repetition_penalty(completions: list[str] | list[list[dict[str, str]]], **kwargs) -> list[float]:
    r"""
    Penalty for answers that are caught in a loop.

    $$
    r = -\frac{\ell}{w}
    $$

    where $w$ is the number of words and $\ell$ that of the longest loop: a phrase of one or more words that is
    followed by itself at once, with all its rounds. A word said twice, as in "that that", is a loop of two. Words are
    those of [`rewards.text.unicode_words`], case ignored; in scripts written without spaces each character is one.

    Source: this project.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`; 0.0 for one without words.

    Example:
    ```python
    >>> from rewards.repetition import repetition_penalty

    >>> repetition_penalty(["She sings and he sings.", "It is the sea, the sea, the sea.", "no no no"])
    [0.0, -0.75, -1.0]
    ```
    """
    penalties = []
    for completion in completions:
        tokens = folded_words(completion_text(completion))
        penalties.append(-_longest_loop(tokens) / max(1, len(tokens)))
    return penalties


repetition_penalty.max_reward = 0.0


def distinct_ngrams_penalty(completions: list[str] | list[list[dict[str, str]]], n: int = 2, **kwargs) -> list[float]:
    r"""
    Penalty for answers that say the same again, wherever it stands.

    $$
    r = \frac{\#\,\text{different n-grams}}{\#\,\text{n-grams}} - 1
    $$

    over the words of [`rewards.text.unicode_words`], case ignored.

    Source: distinct-n of Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models"
    (https://huggingface.co/papers/1510.03055), of each completion alone.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        n (`int`, *optional*, defaults to `2`):
            Words in an n-gram. At least 1.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`; 0.0 for one of fewer than `n` words.

    Raises:
        ValueError: if `n` is below 1.

    Example:
    ```python
    >>> from rewards.repetition import distinct_ngrams_penalty

    >>> distinct_ngrams_penalty(["She sings and he sings.", "I am here. I am.", "la la la la la"])
    [0.0, -0.25, -0.75]
    ```
    """
    if n < 1:
        raise ValueError(f"n is {n}, but an n-gram has at least 1 word.")
    penalties = []
    for completion in completions:
        tokens = folded_words(completion_text(completion))
        ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        penalties.append(len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0)
    return penalties


distinct_ngrams_penalty.max_reward = 0.0


@lru_cache(maxsize=65536)
def _is_readable(char: str) -> bool:
    return char in "\t\n\r" or unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs", "So")


def readability_penalty(completions: list[str] | list[list[dict[str, str]]], **kwargs) -> list[float]:
    r"""
    Penalty for answers that are not made of characters one reads.

    $$
    r = \begin{cases} -1, & \text{the completion holds U+FFFD} \\ -\frac{\#\,\text{unreadable characters}}{\#\,
    \text{characters}}, & \text{otherwise} \end{cases}
    $$

    Readable are letters with their marks, numbers, punctuation, white space, mathematical and currency signs of any
    script. Unreadable are control characters, unassigned and private ones, and pictures: boxes, dingbats, emoji, also
    © and °. U+FFFD stands for bytes that form no character: written text never holds it, so a single one
    costs all, also where a completion is cut in the middle of a character.

    Source: this project; the classes are the general categories of Unicode.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`; 0.0 for an empty one.

    Example:
    ```python
    >>> from rewards.repetition import readability_penalty

    >>> readability_penalty(["Élise, 東京: 5 €?", "ab\u2588\u2588", "born in \ufffd"])
    [0.0, -0.5, -1.0]
    ```
    """
    penalties = []
    for completion in completions:
        text = completion_text(completion)
        unreadable = len(text) if "\ufffd" in text else sum(not _is_readable(char) for char in text)
        penalties.append(-unreadable / max(1, len(text)))
    return penalties


readability_penalty.max_reward = 0.0
