"""ROUGE-L recall in any script, and the rewards that ask for answers unlike the model's own original answer."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import exp

from rewards.text import completion_text, rouge_tokens, tokenization

Tokenize = Callable[[str], list[str]]


@lru_cache(maxsize=8192)
def reference_masks(reference: str, tokenize: Tokenize) -> tuple[dict[str, int], int]:
    """For each token of the reference the bit mask of its positions, and the number of tokens."""
    tokens = tokenize(reference)
    masks: dict[str, int] = {}
    for position, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << position
    return masks, len(tokens)


def rouge_l_recall(reference: str, prediction: str, tokenize: Tokenize | None = None) -> float:
    r"""
    ROUGE-L recall: the share of the reference's tokens that the prediction repeats in the same order.

    $$
    R = \frac{\mathrm{LCS}(\text{reference}, \text{prediction})}{\#\,\text{tokens of the reference}}
    $$

    The reference alone says what the tokens are ([`rewards.text.tokenization`]): where its letters are Latin, recall
    is equal to the last bit to `rouge_score`'s rougeL recall with `use_stemmer=True`; in other scripts tokens are
    case-folded words, and single characters where a script has no spaces.

    Source: Lin, "ROUGE", 2004; for other scripts with tokens of this project. LCS is the length of the longest common
    subsequence, found with a few integer operations a token instead of a table (Hyyrö, "Bit-parallel LCS-length
    computation revisited", 2004). References repeat in training, so their masks are cached.

    Args:
        reference (`str`):
            Text to be found again.
        prediction (`str`):
            Text to look in.
        tokenize (`Callable`, *optional*):
            What finds the tokens of both texts, in place of what the reference says.

    Returns:
        `float`: recall in `[0, 1]`; 0.0 if either text has no token.

    Example:
    ```python
    >>> from rewards.rouge import rouge_l_recall

    >>> rouge_l_recall("She writes crime novels", "She has written a novel")
    0.5
    >>> rouge_l_recall("她住在北京", "她住在上海"), rouge_l_recall("Она живёт в Киеве", "она ЖИВЁТ в Москве.")
    (0.6, 0.75)
    ```
    """
    tokenize = tokenize or tokenization(reference)
    masks, length = reference_masks(reference, tokenize)
    if length == 0:
        return 0.0
    # One row of the LCS table as differences: bit i is 0 where the row grows by one at reference token i.
    full = (1 << length) - 1
    row = full
    for token in tokenize(prediction):
        if token in masks:
            matches = row & masks[token]
            row = ((row + matches) | (row - matches)) & full
    return (length - row.bit_count()) / length


def check_references(references: Sequence[str], rows: Sequence[int], tokenize: Tokenize | None = None) -> None:
    """
    Refuses reference answers without a single token: nothing resembles them, so anything looks unlearned.

    Args:
        references (`Sequence[str]`):
            Reference answers.
        rows (`Sequence[int]`):
            Row of each reference, for the message: the text itself may be what is to be forgotten and is not shown. A
            row that comes more than once, as with several samples a question, is counted once.
        tokenize (`Callable`, *optional*):
            What finds the tokens of a text, in place of what the text says ([`rewards.text.tokenization`]).

    Raises:
        ValueError: if a reference has no token.
    """
    bad = {
        row: None
        for row, reference in zip(rows, references, strict=True)
        if reference_masks(reference, tokenize or tokenization(reference))[1] == 0
    }
    if bad:
        if tokenize is rouge_tokens:
            counted, remedy = (
                "a-z and 0-9 are counted, so an empty answer, or one in another script,",
                "Remove these rows, or use rewards.rouge.rouge_dissimilarity, which reads every script.",
            )
        else:
            counted, remedy = "letters and digits are counted, so an answer without any", "Remove these rows."
        raise ValueError(
            f"{len(bad)} of {len(set(rows))} reference answers have no token that ROUGE can compare: rows "
            f"{', '.join(map(str, bad))}. Only {counted} has recall 0 against every text: any sample would "
            f"look perfectly unlearned, with reward 1. {remedy}"
        )


def _recalls_of_original(
    tokenize: Tokenize | None, /, completions: list, original_completion: list, **kwargs
) -> list[float]:
    originals = [completion_text(original) for original in original_completion]
    check_references(originals, kwargs.get("pmc_id", range(len(originals))), tokenize)
    return [
        rouge_l_recall(original, completion_text(completion), tokenize)
        for original, completion in zip(originals, completions, strict=True)
    ]


def rouge_dissimilarity(
    completions: list[str] | list[list[dict[str, str]]],
    original_completion: list[str] | list[list[dict[str, str]]],
    **kwargs,
) -> list[float]:
    r"""
    Reward for answers that share little with what the model answered before unlearning.

    $$
    r = 1 - R_{\text{ROUGE-L}}(\text{original answer}, \text{completion})
    $$

    The original answer is read as in [`rouge_l_recall`], in any script, and so is the truth by the audit.

    Source: the reward of Partial Model Collapse; the reference is the model's own original answer, never the ground
    truth. An empty completion gets the full reward: combine it with `rewards.length.min_length_penalty`.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        original_completion (`list[str]` or `list[list[dict[str, str]]]`):
            The model's original answers, one per completion: a column of the dataset.
        **kwargs:
            Further keywords of the trainer. Only `pmc_id`, the row of each completion, is used, and only in the error.

    Returns:
        `list[float]`: one reward per completion, in `[0, 1]`.

    Raises:
        ValueError: if an original answer has no letter or digit, as then every completion would get 1.

    Example:
    ```python
    >>> from rewards.rouge import rouge_dissimilarity

    >>> original = "She writes crime novels"
    >>> rouge_dissimilarity(["She writes crime novels.", "She has written a novel"], [original, original])
    [0.0, 0.5]
    ```
    """
    return [1 - recall for recall in _recalls_of_original(None, completions, original_completion, **kwargs)]


rouge_dissimilarity.max_reward = 1.0


# The name by which recipes for other scripts asked for it.
script_aware_dissimilarity = rouge_dissimilarity


def paper_reward(
    completions: list[str] | list[list[dict[str, str]]],
    original_completion: list[str] | list[list[dict[str, str]]],
    min_words: int = 0,
    **kwargs,
) -> list[float]:
    r"""
    The cost of the paper's public code, exactly, as a reward: [`rouge_dissimilarity`] with a charge on short answers.

    $$
    r = 1 - \min\left(1,\; R_{\text{ROUGE-L}} + \begin{cases} e^{-w}, & w < \text{min\_words} \\ 0, & \text{otherwise}
    \end{cases}\right)
    $$

    where $w$ is the number of pieces of the stripped completion split at single spaces. By this count an empty
    completion has one word: it is charged no more than $e^{-1}$, `min_words` 0 and 1 are the same, and with
    `min_words` 0, as in the paper's configurations, an empty answer is perfect. For new work prefer
    [`rouge_dissimilarity`] with `rewards.length.min_length_penalty`.

    Source: the public repository of Partial Model Collapse, `min_len`.

    Args:
        completions (`list[str]` or `list[list[dict[str, str]]]`):
            Completions, as text or as messages.
        original_completion (`list[str]` or `list[list[dict[str, str]]]`):
            The model's original answers, one per completion: a column of the dataset.
        min_words (`int`, *optional*, defaults to `0`):
            Completions of fewer words are charged.
        **kwargs:
            Further keywords of the trainer. Only `pmc_id`, the row of each completion, is used, and only in the error.

    Returns:
        `list[float]`: one reward per completion, in `[0, 1]`.

    Raises:
        ValueError: if an original answer has no token of a-z or 0-9, as then every completion would get 1.

    Example:
    ```python
    >>> from rewards.rouge import paper_reward

    >>> original = "She writes crime novels"
    >>> [round(r, 4) for r in paper_reward(["", "She sings", "Nobody knows her"], [original] * 3, min_words=3)]
    [0.6321, 0.6147, 1.0]
    ```
    """
    recalls = _recalls_of_original(rouge_tokens, completions, original_completion, **kwargs)
    rewards = []
    for completion, recall in zip(completions, recalls, strict=True):
        count = len(completion_text(completion).strip().split(" "))
        charge = exp(-count) if count < min_words else 0.0
        rewards.append(1 - min(1.0, recall + charge))
    return rewards


paper_reward.max_reward = 1.0
