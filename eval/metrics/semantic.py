"""Semantic similarity of answer and truth, by a sentence encoder (the extra `semantic`). No verdict is made of it."""

import numpy as np

from eval.metrics.intervals import not_available, summary
from eval.metrics.tofu import FACT_SETS
from eval.sets import OptionSet, QuestionSet
from pmc_rl.errors import RecipeError
from rewards.semantic import load_encoder

PERCENTILE = 5  # of the paraphrases, at which the limit is: 95 of 100 are above it


def load_sentence_encoder(model_name_or_path: str, device: str):
    """The `SentenceTransformer` of the recipe's key `sentence_encoder`."""
    try:
        return load_encoder(model_name_or_path, "it", device)
    except (ImportError, ValueError) as error:
        raise RecipeError([f"sentence_encoder: {error}"]) from error


class Similarity:
    """
    Cosine of the embeddings of an answer and of the truth, each with the question before it, in [-1, 1].

    It knows a paraphrase, but not a fact: another name in the words of the truth is as near as the truth in other
    words. So it is reported beside recall and decides nothing. Source: embeddings of Reimers and Gurevych,
    "Sentence-BERT" (https://huggingface.co/papers/1908.10084).

    `encoder` is a `SentenceTransformer`. `limit` is what 95 % of the paraphrases of true answers are above, over all
    `options` that have any; None where none have.
    """

    def __init__(self, encoder, options: dict[str, OptionSet]):
        self.encoder, self.limit = encoder, None
        # of common knowledge the answer stands for its paraphrase
        sets = [rows for name, rows in options.items() if name not in FACT_SETS and rows.paraphrases]
        if sets:
            pairs = [zip(rows.questions, rows.paraphrases, rows.answers, strict=True) for rows in sets]
            self.limit = float(np.percentile(self.cosines([row for rows in pairs for row in rows]), PERCENTILE))

    def cosines(self, rows: list[tuple[str, str, str]]) -> list[float]:
        """Of each (question, text, truth)."""
        pairs = [(f"{question} {text}", f"{question} {truth}") for question, text, truth in rows]
        unique = list(dict.fromkeys(text for pair in pairs for text in pair))  # samples repeat themselves
        embeddings = self.encoder.encode(unique, normalize_embeddings=True, show_progress_bar=False)
        embedding_of = dict(zip(unique, embeddings, strict=True))
        return [float(embedding_of[text] @ embedding_of[truth]) for text, truth in pairs]

    def numbers(self, rows: QuestionSet, samples: list[list[str]]) -> dict:
        """Summary of the highest cosine of each question's answers, and of the share `above_limit`."""
        asked = zip(rows.questions, samples, rows.answers, strict=True)
        values = iter(self.cosines([(question, text, truth) for question, texts, truth in asked for text in texts]))
        highest = [max(next(values) for _ in texts) for texts in samples]
        above = not_available("the data has no paraphrases of true answers")
        if self.limit is not None:
            above = {**summary([float(value > self.limit) for value in highest]), "limit": self.limit}
        return {**summary(highest), "above_limit": above}


def semantic_numbers(similarity: Similarity | None, key: str, rows: QuestionSet, samples: list[list[str]]) -> dict:
    """
    `{key: numbers}` of one or several answers to each question; nothing where the recipe names no encoder.

    >>> semantic_numbers(None, "semantic", QuestionSet(["Who?"], ["Ann."], [0]), [["Bo.", "Ann."]])
    {}
    """
    return {} if similarity is None else {key: similarity.numbers(rows, samples)}
