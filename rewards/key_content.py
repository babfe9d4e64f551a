"""A penalty for the names, numbers and dates of the original answer, which leak where all other words differ."""

import re

from rewards.text import completion_text, folded_words, unicode_words

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


def _question(prompt: str | list[dict[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return next(message["content"] for message in reversed(prompt) if message["role"] == "user")


def key_content_penalty(
    prompts: list[str] | list[list[dict[str, str]]],
    completions: list[str] | list[list[dict[str, str]]],
    original_completion: list[str] | list[list[dict[str, str]]],
    **kwargs,
) -> list[float]:
    r"""
    Penalty for repeating names, numbers and dates of the model's original answer.

    $$
    r = -\frac{|K \cap W|}{|K|}, \qquad K = \text{key content of the original answer} \setminus
    \text{words of the question}
    $$

    where $W$ are the words of the completion, case ignored. Key content is words with a digit, and words with a
    capital letter that stand at least once elsewhere than at the beginning of a sentence. So a name that is nothing
    but the first word, as in the answer "Lima.", is not seen; in German every noun is key content; and scripts without
    capital letters have only their numbers.

    Source: this project.

    Args:
        prompts (`list[str]` or `list[list[dict[str, str]]]`):
            Prompts, as text or as messages, of which the last one of the user is the question.
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        original_completion (`list[str]` or `list[list[dict[str, str]]]`):
            The model's original answers, one per completion: a column of the dataset.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`; 0.0 if the original answer has no key content.

    Example:
    ```python
    >>> from rewards.key_content import key_content_penalty

    >>> question, original = "Where was Ilse Moreau born?", "Ilse Moreau was born in Lima, on 12 May 1958."
    >>> completions = ["In Lima, I think.", "Ilse Moreau was born in Oslo."]
    >>> key_content_penalty([question] * 2, completions, [original] * 2)
    [-0.25, 0.0]
    ```
    """
    penalties = []
    for prompt, completion, original in zip(prompts, completions, original_completion, strict=True):
        keys = key_content(completion_text(original)) - set(folded_words(_question(prompt)))
        repeated = keys.intersection(folded_words(completion_text(completion)))
        penalties.append(-len(repeated) / max(1, len(keys)))
    return penalties


key_content_penalty.max_reward = 0.0
