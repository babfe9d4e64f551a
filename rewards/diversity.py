"""A penalty against the collapse of all questions to one and the same sentence."""

from string import punctuation

from rewards.text import Texts, completion_texts

_ENDS = punctuation + "…“”„‘’«»¿¡。！？、，．；：「」『』《》（）؟،؛۔।॥።። "


def duplicate_penalty(prompts: Texts, completions: Texts, pmc_id: list[int] | None = None, **kwargs) -> list[float]:
    """
    Penalty for an answer that other questions get as well, so that a model does not end with one sentence for all.

        r = -(other questions of the batch with this answer) / (other questions of the batch),  in [-1, 0]

    0 if there is only one question. Answers are the same up to case, white space and punctuation at the ends; without
    `pmc_id`, equal prompts are one question. The batch is all that the trainer scores at once: samples of several
    questions, and the stored answer of each, as the value of a text depends on the others (not stationary).

    >>> duplicate_penalty(["Who?", "Who?", "Where?", "When?"], ["No idea.", "Ilse.", "no idea", "In May."])
    [-0.5, 0.0, -0.5, 0.0]
    """
    questions = [str(prompt) for prompt in prompts] if pmc_id is None else pmc_id
    texts = [" ".join(text.casefold().split()).strip(_ENDS) for text in completion_texts(completions)]
    askers: dict[str, set] = {}
    for question, text in zip(questions, texts, strict=True):
        askers.setdefault(text, set()).add(question)
    others = max(1, len(set(questions)) - 1)
    return [(1 - len(askers[text])) / others for text in texts]


duplicate_penalty.max_reward = 0.0
duplicate_penalty.stationary = False
