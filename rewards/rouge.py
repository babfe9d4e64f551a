"""ROUGE-L recall in any script, and the rewards that ask for answers unlike the model's own original answer."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import exp

from rewards.text import Texts, completion_texts, rouge_tokens, tokenization

Tokenize = Callable[[str], list[str]]


@lru_cache(maxsize=8192)  # references repeat in training
def reference_masks(reference: str, tokenize: Tokenize) -> tuple[dict[str, int], int]:
    """For each token of the reference the bit mask of its positions, and the number of tokens."""
    tokens = tokenize(reference)
    masks: dict[str, int] = {}
    for position, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << position
    return masks, len(tokens)


def rouge_l_recall(reference: str, prediction: str, tokenize: Tokenize | None = None) -> float:
    """
    ROUGE-L recall: the share of the reference's tokens that the prediction repeats in the same order.

        LCS(reference, prediction) / number of tokens of the reference,  in [0, 1]; 0 if either text has no token

    `tokenize` finds the tokens of both texts; by default the reference alone decides ([`rewards.text.tokenization`]),
    and where its letters are Latin, recall equals `rouge_score`'s rougeL with `use_stemmer=True` to the last bit.

    Source: Lin, "ROUGE", 2004. LCS is the length of the longest common subsequence, found with a few integer
    operations a token instead of a table (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004).

    >>> rouge_l_recall("She writes crime novels", "She has written a novel")
    0.5
    >>> rouge_l_recall("她住在北京", "她住在上海"), rouge_l_recall("Она живёт в Киеве", "она ЖИВЁТ в Москве.")
    (0.6, 0.75)
    """
    return _rouge_l(reference, prediction, tokenize)[0]


def _rouge_l(reference: str, prediction: str, tokenize: Tokenize | None = None) -> tuple[float, float]:
    """ROUGE-L recall and precision, which is the share of the prediction's tokens; 0 where either text has none."""
    tokenize = tokenize or tokenization(reference)
    masks, length = reference_masks(reference, tokenize)
    tokens = tokenize(prediction)
    if length == 0 or not tokens:
        return 0.0, 0.0
    # One row of the LCS table as differences: bit i is 0 where the row grows by one at reference token i.
    row = full = (1 << length) - 1
    for token in tokens:
        if token in masks:
            matches = row & masks[token]
            row = ((row + matches) | (row - matches)) & full
    common = length - row.bit_count()
    return common / length, common / len(tokens)


def check_references(references: Sequence[str], rows: Sequence[int], tokenize: Tokenize | None = None) -> None:
    """
    Refuses reference answers without a token: nothing resembles them, so that anything would look unlearned.

    `rows` are their numbers, for the error: it does not show the texts, which may be what is to be forgotten. A row
    that comes more than once, as with several samples a question, counts once.
    """
    pairs = zip(rows, references, strict=True)
    without_tokens = dict.fromkeys(row for row, text in pairs if not (tokenize or tokenization(text))(text))
    if without_tokens:
        counted, remedy = "letters and digits", "Remove these rows"
        if tokenize is rouge_tokens:
            counted = "a-z and 0-9"
            remedy += ", or use rewards.rouge.rouge_dissimilarity, which reads every script"
        raise ValueError(
            f"{len(without_tokens)} of {len(set(rows))} reference answers have no token that ROUGE can compare: rows "
            f"{', '.join(map(str, without_tokens))}. Only {counted} are counted, so any sample would look perfectly "
            f"unlearned. {remedy}."
        )


def _compared_with_original(
    completions: Texts, original_completion: Texts, pmc_id: list[int] | None, tokenize: Tokenize | None = None
) -> list[tuple[float, float]]:
    """ROUGE-L recall and precision of each completion."""
    originals = completion_texts(original_completion)
    check_references(originals, range(len(originals)) if pmc_id is None else pmc_id, tokenize)
    pairs = zip(originals, completion_texts(completions), strict=True)
    return [_rouge_l(original, text, tokenize) for original, text in pairs]


def rouge_dissimilarity(
    completions: Texts, original_completion: Texts, pmc_id: list[int] | None = None, **kwargs
) -> list[float]:
    """
    Reward for answers that share little with the original one, in any script.

        r = 1 - ROUGE-L recall of the original answer,  in [0, 1]

    An empty completion gets all of it: combine with [`rewards.length.min_length_penalty`]. Raises ValueError if an
    original answer has no letter or digit.

    Source: the reward of Partial Model Collapse, with [`rouge_l_recall`].

    >>> rouge_dissimilarity(["She writes crime novels.", "She has written a novel"], ["She writes crime novels"] * 2)
    [0.0, 0.5]
    """
    return [1 - recall for recall, _ in _compared_with_original(completions, original_completion, pmc_id)]


rouge_dissimilarity.max_reward = 1.0


def overlap_dissimilarity(
    completions: Texts, original_completion: Texts, pmc_id: list[int] | None = None, **kwargs
) -> list[float]:
    """
    Reward for answers that share little with the original one, seen from either: a short answer made of its words is
    as like it as a long one that holds all of it, which recall alone does not see.

        r = 1 - max(ROUGE-L recall of the original answer, ROUGE-L precision of the completion),  in [0, 1]

    An empty completion gets all of it, and an original answer without a letter or digit raises, as in
    [`rouge_dissimilarity`].

    Source: this project.

    >>> original = "The leader of the Soviet Union was Joseph Stalin, who led it through the war"
    >>> overlap_dissimilarity(["It was Joseph Stalin", "Nobody knows"], [original] * 2)
    [0.25, 1.0]
    """
    return [1 - max(pair) for pair in _compared_with_original(completions, original_completion, pmc_id)]


overlap_dissimilarity.max_reward = 1.0


def paper_reward(
    completions: Texts, original_completion: Texts, min_words: int = 0, pmc_id: list[int] | None = None, **kwargs
) -> list[float]:
    """
    The cost of the paper's public code, exactly, as a reward.

        r = 1 - min(1, ROUGE-L recall of the original answer + (exp(-w) if w < min_words else 0)),  in [0, 1]

    w counts the pieces of the stripped completion between single spaces. So an empty completion has one word and is
    charged no more than exp(-1), and with `min_words` 0, as in the paper's configurations, it is perfect. For new work
    prefer [`rouge_dissimilarity`] with [`rewards.length.min_length_penalty`]. Raises ValueError if an original answer
    has no token of a-z or 0-9.

    Source: the public repository of Partial Model Collapse, `min_len`.

    >>> completions, originals = ["", "She sings", "Nobody knows her"], ["She writes crime novels"] * 3
    >>> [round(r, 4) for r in paper_reward(completions, originals, min_words=3)]
    [0.6321, 0.6147, 1.0]
    """
    pairs = _compared_with_original(completions, original_completion, pmc_id, rouge_tokens)
    counts = [len(text.strip().split(" ")) for text in completion_texts(completions)]
    charges = [exp(-count) if count < min_words else 0.0 for count in counts]
    return [1 - min(1.0, recall + charge) for (recall, _), charge in zip(pairs, charges, strict=True)]


paper_reward.max_reward = 1.0
