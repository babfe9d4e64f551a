"""A penalty for the names, numbers and dates of the original answer, which leak where all other words differ."""

from rewards.text import Texts, completion_texts, join_apostrophes, key_content, question_of, script_aware_tokens


def key_content_recall(question: str, reference: str, answer: str) -> float | None:
    """
    Share of the [`key_content`] of a reference, less the words of the question, that an answer holds, in [0, 1]; None
    where the reference has none. Words are compared by their stems, so "the Incas" holds "Inca".

    >>> truth = "The capital of Japan is Tokyo."
    >>> [key_content_recall("What is the capital of Japan?", truth, text) for text in ("It's Tokyo!", "It is Kyoto.")]
    [1.0, 0.0]
    """
    asked, said = (set(script_aware_tokens(join_apostrophes(text))) for text in (question, answer))
    keys = key_content(reference) - asked
    return len(keys & said) / len(keys) if keys else None


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
