"""The only helpers that rewards share: the text of a completion, its words, its ROUGE tokens."""

import re
from functools import lru_cache

from nltk.stem.porter import PorterStemmer

# The stemmer that rouge_score uses, in the same (default) mode.
_STEMMER = PorterStemmer()


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """Text of a completion: a string as it is, of a conversation the content of the last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def words(text: str) -> list[str]:
    """Words of a text, split at any whitespace; an empty text has none."""
    return text.split()


@lru_cache(maxsize=65536)
def stem(token: str) -> str:
    """Porter stem of a token; tokens of three characters or fewer stay as they are, as in rouge_score."""
    return _STEMMER.stem(token) if len(token) > 3 else token


def rouge_tokens(text: str) -> list[str]:
    """
    Tokens that ROUGE compares: the runs of a-z and 0-9 in the lower-cased text, stemmed.

    Equal to `rouge_score`'s tokenizer with `use_stemmer=True`, which is where the rules come from. All other
    characters separate tokens, so a text in another script, such as Chinese, has no token at all.

    Args:
        text (`str`):
            Any text.

    Returns:
        `list[str]`: the tokens in the order of the text.

    Example:
    ```python
    >>> from rewards.text import rouge_tokens

    >>> rouge_tokens("Yes, Jaime's novels are dying!")
    ['yes', 'jaim', 's', 'novel', 'are', 'die']
    ```
    """
    # A stem is never empty and never leaves [a-z0-9], so rouge_score's check after stemming has nothing to drop.
    return [stem(token) for token in re.findall(r"[a-z0-9]+", text.lower())]
