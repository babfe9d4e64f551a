"""A penalty for the names, numbers and dates of the original answer, which leak where all other words differ."""

import re

from rewards.text import Texts, completion_texts, folded_words, unicode_words

# Ends of sentences: a new line, or . ! ? with what closes a quotation and a space. No end after initials and titles.
_SENTENCE_END = re.compile(
    r"\n|(?<=[.!?…])(?<!\b[^\W\d_]\.)(?<!\b(?:Dr|Mr|Ms|St|Jr)\.)(?<!\bMrs\.)(?<!\bProf\.)[\"'”’»)\]]*\s"
)
# Capitalised as first words of titles, they name nothing.
_FUNCTION_WORDS = frozenset(
    """a an and are as at by for from he her his how i in into is it its my no not of on or our she that the their they
    this to was we what when where who why with you your""".split()
)


def key_content(text: str) -> set[str]:
    """
    Names, numbers and dates of a text, case-folded: words with a digit, and words with a capital letter that are not
    the first of a sentence, single letters and function words left out.
    """
    found = set()
    for sentence in _SENTENCE_END.split(text):
        for position, word in enumerate(unicode_words(sentence)):
            folded = word.casefold()
            is_name = position > 0 and word != word.lower() and len(word) > 1 and folded not in _FUNCTION_WORDS
            if is_name or any(char.isdigit() for char in word):
                found.add(folded)
    return found


def key_content_penalty(prompts: Texts, completions: Texts, original_completion: Texts, **kwargs) -> list[float]:
    """
    Penalty for repeating names, numbers and dates of the original answer.

        r = -(those in the completion / those of the original answer),  in [-1, 0]; 0 if it has none

    They are the [`key_content`] of the original answer less the words of the question, the last message of the user;
    case is ignored. A name that stands nowhere but at the beginning of a sentence, as in the answer "Lima.", is not
    seen; in German every noun counts; scripts without capital letters have only their numbers.

    >>> question, original = "Where was Ilse Moreau born?", "Ilse Moreau was born in Lima, on 12 May 1958."
    >>> key_content_penalty([question] * 2, ["In Lima, I think.", "Ilse Moreau was born in Oslo."], [original] * 2)
    [-0.25, 0.0]
    """
    penalties = []
    texts, originals = completion_texts(completions), completion_texts(original_completion)
    for prompt, text, original in zip(prompts, texts, originals, strict=True):
        question = prompt
        if not isinstance(prompt, str):
            question = [message["content"] for message in prompt if message["role"] == "user"][-1]
        keys = key_content(original) - set(folded_words(question))
        repeated = keys.intersection(folded_words(text))
        penalties.append(-len(repeated) / max(1, len(keys)))
    return penalties


key_content_penalty.max_reward = 0.0
