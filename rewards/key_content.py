"""A penalty for the names, numbers and dates of the original answer, which leak where all other words differ."""

import re
from functools import lru_cache

from rewards.text import Conversation, Texts, completion_texts, script_aware_tokens, unicode_words

# Ends of sentences: a new line, or . ! ? with what closes a quotation and a space. No end after initials and titles.
_SENTENCE_END = re.compile(
    r"\n|(?<=[.!?…])(?<!\b[^\W\d_]\.)(?<!\b(?:Dr|Mr|Ms|St|Jr)\.)(?<!\bMrs\.)(?<!\bProf\.)[\"'”’»)\]]*\s"
)
# In a name it is written or not ("Sana'a"); before the s of a possessive it ends the name.
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?!s\b)(?=\w)")
# A word without digits, with the apostrophes in it.
_NAME = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Capitalised as first words of titles, they name nothing.
_FUNCTION_WORDS = frozenset(
    """a an and are as at by for from he her his how i in into is it its my no not of on or our she that the their they
    this to was we what when where who why with you your yes""".split()
)


@lru_cache(maxsize=8192)  # references repeat
def key_content(text: str) -> frozenset[str]:
    """
    Names, numbers and dates of a text as [`rewards.text.script_aware_tokens`]: words with a digit, and words with a
    capital letter, single letters and function words left out. The first word of a sentence is taken for a name only
    where nothing but names stands with it, as in the answer "Lima.".

    >>> [sorted(key_content(text)) for text in ("Ilse Moreau wrote of the Incas in 1958.", "New York")]
    [['1958', 'inca', 'moreau'], ['new', 'york']]
    """
    found = set()
    for sentence in _SENTENCE_END.split(_APOSTROPHE.sub("", text)):
        all_words = unicode_words(sentence)
        words = [word for word in all_words if word.casefold() not in _FUNCTION_WORDS]
        only_names = all(word != word.lower() or any(map(str.isdigit, word)) for word in words)
        for position, word in enumerate(words):
            is_first = position == 0 and word == all_words[0] and not only_names
            is_name = word != word.lower() and len(word) > 1 and not is_first
            if is_name or any(map(str.isdigit, word)):
                found.update(script_aware_tokens(word))
    return frozenset(found)


def key_content_recall(question: str, reference: str, answer: str) -> float | None:
    """
    Share of the [`key_content`] of a reference, less the words of the question, that an answer holds, in [0, 1]; None
    where the reference has none. Words are compared by their stems, so "the Incas" holds "Inca".

    >>> truth = "The capital of Japan is Tokyo."
    >>> [key_content_recall("What is the capital of Japan?", truth, text) for text in ("It's Tokyo!", "It is Kyoto.")]
    [1.0, 0.0]
    """
    asked, said = (set(script_aware_tokens(_APOSTROPHE.sub("", text))) for text in (question, answer))
    keys = key_content(reference) - asked
    return len(keys & said) / len(keys) if keys else None


def names_in(question: str, text: str) -> list[tuple[int, str]]:
    """
    Where the names of a text begin, and their words: its [`key_content`] without words that the question holds and
    without numbers.

    >>> names_in("When was Ilse Moreau born?", "Ilse Moreau's life began in New York, on 12 May 1958.")
    [(28, 'New'), (32, 'York'), (44, 'May')]
    """
    names = key_content(text) - set(script_aware_tokens(_APOSTROPHE.sub("", question)))
    found = [(match.start(), match.group()) for match in _NAME.finditer(text)]
    return [(start, name) for start, name in found if names & set(script_aware_tokens(_APOSTROPHE.sub("", name)))]


def question_of(prompt: str | Conversation) -> str:
    """A prompt in text, of a conversation the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    return [message["content"] for message in prompt if message["role"] == "user"][-1]


def key_content_penalty(prompts: Texts, completions: Texts, original_completion: Texts, **kwargs) -> list[float]:
    """
    Penalty for repeating names, numbers and dates of the original answer.

        r = -[`key_content_recall`] of the original answer,  in [-1, 0]; 0 if it has no key content

    The question is the last message of the user. In German every noun counts; scripts without capital letters have
    only their numbers.

    >>> question, original = "Where was Ilse Moreau born?", "Ilse Moreau was born in Lima, on 12 May 1958."
    >>> key_content_penalty([question] * 2, ["In Lima, I think.", "Ilse Moreau was born in Oslo."], [original] * 2)
    [-0.25, 0.0]
    """
    penalties = []
    texts, originals = completion_texts(completions), completion_texts(original_completion)
    for prompt, text, original in zip(prompts, texts, originals, strict=True):
        recall = key_content_recall(question_of(prompt), original, text)
        penalties.append(-recall if recall else 0.0)
    return penalties


key_content_penalty.max_reward = 0.0
