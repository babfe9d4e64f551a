"""The only helpers that rewards share: the text of a completion, its words in any script, its ROUGE tokens."""

import re
import unicodedata
from functools import lru_cache

from nltk.stem.porter import PorterStemmer

# The stemmer that rouge_score uses, in the same (default) mode.
_STEMMER = PorterStemmer()

# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, Han, Hiragana, Katakana.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f]"
)
# Zero-width (non-)joiners: inside words of Persian and Indic scripts, though of no letter or mark category.
_JOINERS = "\u200c\u200d"


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


@lru_cache(maxsize=65536)
def _kind(char: str) -> str:
    """w: letter or digit of a word, c: a word by itself, m: mark that belongs to what it follows, space: neither."""
    if char.isalnum():
        return "c" if _WITHOUT_SPACES.match(char) else "w"
    return "m" if char in _JOINERS or unicodedata.category(char).startswith("M") else " "


def unicode_words(text: str) -> list[str]:
    """
    Words of a text in any script: runs of letters and digits; of a script written without spaces single characters.

    Combining marks stay with the letter they follow (`\\w` of `re` would split Hindi and pointed Arabic at them), all
    other characters separate words. Compatible forms, such as full-width digits, are one (NFKC).

    Args:
        text (`str`):
            Any text.

    Returns:
        `list[str]`: the words in the order of the text, in upper and lower case as they are.

    Example:
    ```python
    >>> from rewards.text import unicode_words

    >>> unicode_words("Élise's 東京, हिन्दी 1958")
    ['Élise', 's', '東', '京', 'हिन्दी', '1958']
    ```
    """
    text = unicodedata.normalize("NFKC", text)
    kinds = "".join(map(_kind, text))
    return [text[match.start() : match.end()] for match in re.finditer("w[wm]*|cm*", kinds)]


def script_aware_tokens(text: str) -> list[str]:
    """Case-folded words of a text in any script, those of a-z and 0-9 stemmed. On ASCII text as `rouge_tokens`."""
    folded = [word.casefold() for word in unicode_words(text)]
    return [stem(word) if word.isascii() else word for word in folded]
