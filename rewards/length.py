"""Penalties on the length of an answer: too short to say anything, or cut off at the limit."""

from rewards.text import completion_text, words


def min_length_penalty(
    completions: list[str] | list[list[dict[str, str]]], min_words: int = 3, **kwargs
) -> list[float]:
    r"""
    Penalty for answers of fewer than `min_words` words, so that saying nothing is not the best way to forget.

    $$
    r = \min\left(0,\; \frac{w - \text{min\_words}}{\text{min\_words}}\right)
    $$

    where $w$ is the number of words of the completion, split at whitespace. The shortfall is linear: each missing word
    costs the same and an empty completion costs as much as a full match of [`rewards.rouge.rouge_dissimilarity`].

    Source: this project; it takes the place of `min_len` of the paper's code, which charges an empty answer less than
    a match (see [`rewards.rouge.paper_reward`]).

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        min_words (`int`, *optional*, defaults to `3`):
            Number of words from which a completion is not penalized. At least 1.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`.

    Raises:
        ValueError: if `min_words` is below 1.

    Example:
    ```python
    >>> from rewards.length import min_length_penalty

    >>> min_length_penalty(["", "Nobody knows.", "I do not know."], min_words=4)
    [-1.0, -0.5, 0.0]
    ```
    """
    if min_words < 1:
        raise ValueError(
            f"min_words is {min_words}, but it must be at least 1. To allow answers of any length, remove "
            "rewards.length.min_length_penalty from reward_funcs."
        )
    return [min(0, len(words(completion_text(completion))) - min_words) / min_words for completion in completions]


min_length_penalty.max_reward = 0.0


def unfinished_penalty(completion_ids: list[list[int]], max_completion_length: int, **kwargs) -> list[float]:
    r"""
    Penalty for answers that were cut at the length limit: a model trained on them learns not to end.

    $$
    r = \begin{cases} -1, & |y| \ge L_{\max} \\ 0, & \text{otherwise} \end{cases}
    $$

    where $|y|$ is the number of tokens of the completion, its end token included, and $L_{\max}$ is
    `max_completion_length`. An end token exactly at the limit counts as unfinished: the length alone cannot tell.

    Source: this project; a hard form of the overlong punishment of DAPO (https://huggingface.co/papers/2503.14476).

    Args:
        completion_ids (`list[list[int]]`):
            Token ids of the completions, without padding.
        max_completion_length (`int`):
            The limit of generation in new tokens. pmc_rl passes the recipe's value; for TRL's [`GRPOTrainer`] bind it
            with `functools.partial(unfinished_penalty, max_completion_length=...)`.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, -1.0 or 0.0.

    Example:
    ```python
    >>> from rewards.length import unfinished_penalty

    >>> unfinished_penalty([[7, 8, 2], [7, 8, 9, 4]], max_completion_length=4)
    [0.0, -1.0]
    ```
    """
    return [-1.0 if len(ids) >= max_completion_length else 0.0 for ids in completion_ids]


unfinished_penalty.max_reward = 0.0
