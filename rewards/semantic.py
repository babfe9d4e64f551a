"""A reward for answers that mean something else than the original one, by sentence embeddings."""

from functools import lru_cache

import numpy as np

from rewards.text import Texts, completion_texts


def load_encoder(model_name_or_path: str, user: str, device: str | None = None):
    """
    A `SentenceTransformer`, on the best device there is unless one is named.

    Raises:
        ImportError, ValueError: the package is missing (which `user` needs), or there is no such model; in one line.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f'{user} needs sentence-transformers: pip install -e ".[semantic]"') from error
    try:
        return SentenceTransformer(model_name_or_path, device=device, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:  # of a folder without a model transformers raises a ValueError
        raise ValueError(f"{model_name_or_path!r} is neither a folder with a model nor on the Hub") from error


class SemanticDissimilarity:
    """
    Reward for answers that mean something else than the original one; it sees paraphrases, as ROUGE does not.

        r = 1 - max(0, cosine of the embeddings of original answer and completion),  in [0, 1]

    `model_name_or_path` is a model of sentence-transformers, a folder or a name on the Hub; install
    `pip install -e ".[semantic]"`. Sentences of one form ("She was born in Lima", "She was born in Oslo") are close to
    each other, so even a good answer seldom gets 1, and hardly any question counts as solved.

    Source: embeddings of Reimers and Gurevych, "Sentence-BERT" (https://huggingface.co/papers/1908.10084).
    """

    __name__ = "semantic_dissimilarity"
    max_reward = 1.0

    def __init__(self, model_name_or_path: str):
        self.model = load_encoder(model_name_or_path, "rewards.semantic.SemanticDissimilarity")
        self.embed_original = lru_cache(maxsize=8192)(lambda text: self._embed([text])[0])

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings of length 1, shape `(texts, dimension)`."""
        return self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def __call__(self, completions: Texts, original_completion: Texts, **kwargs) -> list[float]:
        originals = np.stack([self.embed_original(text) for text in completion_texts(original_completion)])
        cosines = (originals * self._embed(completion_texts(completions))).sum(1)
        return (1 - cosines.clip(0, 1)).tolist()
