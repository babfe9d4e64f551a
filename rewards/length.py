"""Penalties on the length of an answer: too short to say anything, too long, or cut off at the limit."""

from rewards.text import completion_text, words


def min_length_penalty(
    completions: list[str] | list[list[dict[str, str]]], min_words: int = 3, **kwargs
) -> list[float]:
    r"""
    Penalty for answers of fewer than `min_words` words, so that saying nothing is not the best way to forget.

    $$
    r = \min\left(0,\; \frac{w - \text{min\_words}}{\text{min\_words}}\right)
    $$

    where $w$ is the number of words of the completion, split at whitespace; in scripts written without spaces each
    character is one ([`rewards.text.words`]). The shortfall is linear: each missing word costs the same and an empty
    completion costs as much as a full match of [`rewards.rouge.rouge_dissimilarity`].

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

    >>> min_length_penalty(["", "Nobody knows.", "I do not know.", "我不知道。"], min_words=4)
    [-1.0, -0.5, 0.0, 0.0]
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


def max_length_penalty(completions: list[str] | list[list[dict[str, str]]], max_words: int, **kwargs) -> list[float]:
    r"""
    Penalty for answers of more than `max_words` words, so that talking on is not the way to differ.

    $$
    r = \max\left(-1,\; \min\left(0,\; \frac{\text{max\_words} - w}{\text{max\_words}}\right)\right)
    $$

    where $w$ is the number of words of the completion, counted as in [`min_length_penalty`]. The excess is linear:
    each word too many costs the same, and an answer twice as long as allowed, or longer, costs 1.

    Source: this project; the counterpart of [`min_length_penalty`].

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        max_words (`int`):
            Number of words up to which a completion is not penalized. At least 1.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`.

    Raises:
        ValueError: if `max_words` is below 1.

    Example:
    ```python
    >>> from rewards.length import max_length_penalty

    >>> max_length_penalty(["Nobody knows.", "I do not know."], max_words=2)
    [0.0, -1.0]
    ```
    """
    if max_words < 1:
        raise ValueError(
            f"max_words is {max_words}, but it must be at least 1. To allow answers of any length, remove "
            "rewards.length.max_length_penalty from reward_funcs."
        )
    counts = [len(words(completion_text(completion))) for completion in completions]
    return [max(-1.0, min(0, max_words - count) / max_words) for count in counts]


max_length_penalty.max_reward = 0.0


def length_band_penalty(
    completions: list[str] | list[list[dict[str, str]]],
    completion_ids: list[list[int]],
    minimum: int,
    maximum: int,
    margin: int,
    unit: str = "words",
    **kwargs,
) -> list[float]:
    r"""
    Penalty for answers outside of a band of lengths, such as that of the retained answers.

    $$
    r = \max\left(-1,\; \frac{\min(0,\; n - \text{minimum},\; \text{maximum} - n)}{\text{margin}}\right)
    $$

    where $n$ is the number of words of the completion, counted as in [`min_length_penalty`], or of its tokens, the end
    token included.

    Source: this project; above the band linear as the overlong punishment of DAPO
    (https://huggingface.co/papers/2503.14476).

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        completion_ids (`list[list[int]]`):
            Token ids of the completions, without padding.
        minimum (`int`):
            Shortest length that is not penalized. At least 0.
        maximum (`int`):
            Longest length that is not penalized. At least `minimum`.
        margin (`int`):
            How far outside of the band the penalty reaches -1. At least 1.
        unit (`str`, *optional*, defaults to `"words"`):
            What is counted: `"words"` or `"tokens"`.
        **kwargs:
            Further keywords of the trainer, not used.

    Returns:
        `list[float]`: one penalty per completion, in `[-1, 0]`.

    Raises:
        ValueError: if a keyword is not as said above.

    Example:
    ```python
    >>> from rewards.length import length_band_penalty

    >>> texts, ids = ["No.", "I do not know.", "I do not know who that is."], [[5, 2], [5, 6, 7, 8, 2], [9] * 8]
    >>> length_band_penalty(texts, ids, minimum=2, maximum=4, margin=4)
    [-0.25, 0.0, -0.75]
    >>> length_band_penalty(texts, ids, minimum=2, maximum=4, margin=4, unit="tokens")
    [0.0, -0.25, -1.0]
    ```
    """
    if not 0 <= minimum <= maximum:
        raise ValueError(f"minimum is {minimum} and maximum is {maximum}, but 0 <= minimum <= maximum must hold.")
    if margin < 1:
        raise ValueError(f"margin is {margin}, but it must be at least 1.")
    if unit not in ("words", "tokens"):
        raise ValueError(f"unit is {unit!r}, but it must be 'words' or 'tokens'.")
    if unit == "words":
        sizes = [len(words(completion_text(completion))) for completion in completions]
    else:
        sizes = [len(ids) for ids in completion_ids]
    return [max(-1.0, min(0, size - minimum, maximum - size) / margin) for size in sizes]


length_band_penalty.max_reward = 0.0
