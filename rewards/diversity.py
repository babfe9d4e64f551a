"""A penalty against the collapse of all questions to one and the same sentence."""

from string import punctuation

from rewards.text import completion_text

_ENDS = punctuation + "…“”„‘’«»¿¡。！？、，．；：「」『』《》（）؟،؛۔।॥։። "


def duplicate_penalty(
    prompts: list[str] | list[list[dict[str, str]]],
    completions: list[str] | list[list[dict[str, str]]],
    pmc_id: list[int] | None = None,
    **kwargs,
) -> list[float]:
    r"""
    Penalty for an answer that other questions get as well, so that a model does not end with one sentence for all.

    $$
    r = -\frac{\#\,\text{other questions of the batch with the same answer among their completions}}
    {\#\,\text{other questions of the batch}}
    $$

    Answers are the same up to case, white space and punctuation at the ends. The batch is all that the trainer scores
    at once: samples of several questions and, as the reward is not stationary (that of a text depends on the others in
    the batch), the stored answer of each.

    Source: this project.

    Args:
        prompts (`list[str]` or `list[list[dict[str, str]]]`):
            Prompts, as text or as messages: without `pmc_id`, equal prompts are one question.
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        pmc_id (`list[int]`, *optional*):
            The question of each completion: a column of the dataset that pmc_rl adds.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`; 0.0 if there is only one question.

    Example:
    ```python
    >>> from rewards.diversity import duplicate_penalty

    >>> duplicate_penalty(["Who?", "Who?", "Where?", "When?"], ["No idea.", "Ilse.", "no idea", "In May."])
    [-0.5, 0.0, -0.5, 0.0]
    ```
    """
    questions = [str(prompt) for prompt in prompts] if pmc_id is None else pmc_id
    texts = [" ".join(completion_text(completion).casefold().split()).strip(_ENDS) for completion in completions]
    askers: dict[str, set] = {}
    for question, text in zip(questions, texts, strict=True):
        askers.setdefault(text, set()).add(question)
    others = max(1, len(set(questions)) - 1)
    return [(1 - len(askers[text])) / others for text in texts]


duplicate_penalty.max_reward = 0.0
duplicate_penalty.stationary = False
