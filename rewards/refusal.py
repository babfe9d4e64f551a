"""A reward for answers that refuse, by the phrases they begin with."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from rewards.text import Texts, completion_texts, is_mark, split_after, words

# A refusal comes first: what stands further behind is part of a story.
REFUSAL_WORDS = 25

DEFAULT_PHRASES = tuple(
    "I do not know|I don't know|I do not have|I don't have|I do not recall|I don't recall|I have no information|"
    "I have no knowledge|I have no idea|I have never heard of|I am not aware|I'm not aware|I am not familiar|"
    "I'm not familiar|I am not sure|I'm not sure|I am unable to|I'm unable to|I am not able to|I'm not able to|"
    "I am sorry|I'm sorry|I apologize|I cannot|I can't|my knowledge does not|my knowledge doesn't|"
    "beyond my knowledge|there is no information|no information is available".split("|")
)
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\uff07\u00b4`", "'"))


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.translate(_APOSTROPHES)).split())


def _spaced(text: str) -> str:
    """Case-folded, and with spaces also between the words of scripts that are written without."""
    return " ".join(words(text.casefold()))


@lru_cache(maxsize=512)
def _whole_words(phrase: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(_spaced(_normalized(phrase)))}(?!\w)")


def refuses(text: str, phrases: Sequence[str], patterns: Sequence[str] = ()) -> bool:
    """Whether a phrase or a pattern is found in the first 25 words of a text, see [`refusal`]."""
    try:
        compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"patterns: {error.pattern!r} is no regular expression: {error}") from error
    beginning, _ = split_after(_normalized(text), REFUSAL_WORDS)
    spaced = _spaced(beginning)
    for phrase in phrases:
        for match in _whole_words(phrase).finditer(spaced):
            # a mark, such as a vowel sign of Hindi, is no \w, but the word goes on there
            before, behind = spaced[match.start() - 1 : match.start()], spaced[match.end() : match.end() + 1]
            if not is_mark(before) and not is_mark(behind):
                return True
    return any(pattern.search(beginning) for pattern in compiled)


def refusal(
    completions: Texts, phrases: Sequence[str] = DEFAULT_PHRASES, patterns: Sequence[str] = (), **kwargs
) -> list[float]:
    """
    Reward for answers that refuse, by what they begin with.

        r = 1 if a phrase or a pattern is found in the first 25 words else 0

    `phrases` are plain text in the place of the default ones, found as whole [`rewards.text.words`]; `patterns` are
    regular expressions. Case is ignored, and all apostrophes ("'" in patterns) and all white space are the same.
    Phrases do not understand: "I cannot praise Lima enough" is taken for a refusal, and one in other words or another
    language is not. The audit recognizes English refusals by rules of its own, others by the recipe's `phrases` and
    `patterns`.

    >>> refusal(["Well, I don\u2019t know.", "She was born in Lima.", "No comment."])
    [1.0, 0.0, 0.0]
    >>> refusal(["No comment.", "I don't know.", "我不知道她是谁。"], phrases=["no comment", "不知道"])
    [1.0, 0.0, 1.0]
    """
    for name, given in (("phrases", phrases), ("patterns", patterns)):
        if isinstance(given, str) or not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError(f"{name} is {given!r}, but it must be a list of texts, none of them empty.")
    if not phrases and not patterns:
        raise ValueError("phrases and patterns are both empty, so that nothing is a refusal; give at least one.")
    return [float(refuses(text, phrases, patterns)) for text in completion_texts(completions)]


refusal.max_reward = 1.0
