"""What rewards and the audit share: the text of a completion, its words in any script, tokens to compare, names."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from nltk.stem.porter import PorterStemmer

Conversation = list[dict[str, str]]
Texts = list[str] | list[Conversation]

_STEMMER = PorterStemmer()  # what rouge_score uses, in the same (default) mode

# Scripts written without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, Tai; Han, Hiragana, Katakana, Bopomofo.
_SPACELESS = (
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
)
_WITHOUT_SPACES = re.compile(f"[{_SPACELESS}]")
# A letter of such a script with the marks and signs around it, or a run of anything else but white space.
_WORD = re.compile(rf"[^\w\s]*(?=[{_SPACELESS}])\w[^\w\s]*|(?:(?!(?=[{_SPACELESS}])\w)\S)+")
# Letters and digits that are neither Latin nor symbols: with one of them in a text, ROUGE's a-z and 0-9 miss a word.
_OTHER_SCRIPT = re.compile(
    "[^\\W\u0000-\u02ff\u1d00-\u1dbf\u1e00-\u1eff\u2000-\u2bff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\ufb00-\ufb06]"
)
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
# Zero-width (non-)joiners: inside words of Persian and Indic scripts, though of no letter or mark category.
_JOINERS = "\u200c\u200d"
# Ends of sentences: a new line, or . ! ? with what closes a quotation and a space. No end after initials and titles.
_SENTENCE_END = re.compile(
    r"\n|(?<=[.!?…])(?<!\b[^\W\d_]\.)(?<!\b(?:Dr|Mr|Ms|St|Jr)\.)(?<!\bMrs\.)(?<!\bProf\.)[\"'”’»)\]]*\s"
)
# In a name it is written or not ("Sana'a"); before the s of a possessive it ends the name.
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?!s\b)(?=\w)")
# A word without digits, with the apostrophes in it.
_NAME = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Capitalised as first words of titles, they name nothing.
_FUNCTION_WORDS = frozenset(
    """a an and are as at by for from he her his how i in into is it its my no not of on or our she that the their they
    this to was we what when where who why with you your yes""".split()
)


def completion_texts(completions: Texts) -> list[str]:
    """Texts of completions: a string as it is, of a conversation the content of the last message."""
    return [item if isinstance(item, str) else item[-1]["content"] for item in completions]


def question_of(prompt: str | Conversation) -> str:
    """A prompt in text, of a conversation the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    return [message["content"] for message in prompt if message["role"] == "user"][-1]


def words(text: str) -> list[str]:
    """
    Words of a text as its length counts them: split at white space, of a script written without spaces each character
    one, with the signs around it. What holds U+FFFD, which stands for bytes that form no character, is no word.

    >>> words("Nobody knows."), words("我不知道。")
    (['Nobody', 'knows.'], ['我', '不', '知', '道。'])
    """
    return [word for word in _WORD.findall(text) if "\ufffd" not in word]


def split_after(text: str, count: int) -> tuple[str, str]:
    """
    The first `count` [`words`] of a text and what follows them, each as it stands but for white space at its ends.

    >>> split_after("She was born.", 1), split_after("她住在北京。", 1), split_after("Lima", 1)
    (('She', 'was born.'), ('她', '住在北京。'), ('Lima', ''))
    """
    ends = [0, *(word.end() for word in _WORD.finditer(text))]
    end = ends[min(count, len(ends) - 1)]
    return text[:end].strip(), text[end:].strip()


@lru_cache(maxsize=65536)
def stem(token: str) -> str:
    """Porter stem of a token; tokens of three characters or fewer stay as they are, as in rouge_score."""
    return _STEMMER.stem(token) if len(token) > 3 else token


def rouge_tokens(text: str) -> list[str]:
    """
    Tokens that ROUGE compares, equal to `rouge_score`'s with `use_stemmer=True`: the runs of a-z and 0-9 in the
    lower-cased text, stemmed. A text in another script, such as Chinese, has none.

    >>> rouge_tokens("Yes, Jaime's novels are dying!")
    ['yes', 'jaim', 's', 'novel', 'are', 'die']
    """
    # A stem is never empty and never leaves [a-z0-9], so rouge_score's check after stemming has nothing to drop.
    return [stem(token) for token in re.findall(r"[a-z0-9]+", text.lower())]


@lru_cache(maxsize=65536)
def _kind(char: str) -> str:
    """w: letter or digit of a word, c: a word by itself, m: mark that belongs to what it follows, space: neither."""
    if char.isalnum():
        return "c" if _WITHOUT_SPACES.match(char) else "w"
    return "m" if char in _JOINERS or unicodedata.category(char).startswith("M") else " "


def is_mark(char: str) -> bool:
    """Whether a character, such as an accent or a vowel sign, belongs to the one before it; not for an empty text."""
    return char != "" and _kind(char) == "m"


def unicode_words(text: str) -> list[str]:
    """
    Words of a text without any signs: runs of letters and digits with their marks (`\\w` of `re` would split Hindi and
    pointed Arabic at them), of a script written without spaces single characters. Compatible forms, such as full-width
    letters, become one (NFKC), and so do the digits of all scripts; upper and lower case stay.

    >>> unicode_words("Élise's 東京, हिन्दी १९५८")
    ['Élise', 's', '東', '京', 'हिन्दी', '1958']
    """
    text = unicodedata.normalize("NFKC", text)
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    kinds = "".join(map(_kind, text))
    return [text[match.start() : match.end()] for match in re.finditer("w[wm]*|cm*", kinds)]


def folded_words(text: str) -> list[str]:
    """[`unicode_words`] with upper and lower case the same."""
    return [word.casefold() for word in unicode_words(text)]


def script_aware_tokens(text: str) -> list[str]:
    """[`folded_words`], those of a-z and 0-9 stemmed. On ASCII text equal to [`rouge_tokens`]."""
    return [stem(word) if word.isascii() else word for word in folded_words(text)]


@lru_cache(maxsize=8192)
def tokenization(reference: str) -> Callable[[str], list[str]]:
    """
    How a reference is read, and with it whatever is compared with it; by itself alone, so in training as in the audit.
    As ROUGE does ([`rouge_tokens`]) where its letters are Latin, with or without accents; by [`script_aware_tokens`]
    where it holds a letter or a digit of another script, which ROUGE would pass over, or nothing that ROUGE counts.

    >>> [tokenization(text).__name__ for text in ("In Łódź, 1950", "Он родился в 1950", "His name is 张伟")]
    ['rouge_tokens', 'script_aware_tokens', 'script_aware_tokens']
    """
    if _OTHER_SCRIPT.search(reference) or not re.search("[a-z0-9]", reference.lower()):
        return script_aware_tokens
    return rouge_tokens


def join_apostrophes(text: str) -> str:
    """A text in which an apostrophe splits no name: "Sana'a" is "Sanaa"."""
    return _APOSTROPHE.sub("", text)


@lru_cache(maxsize=8192)  # references repeat
def key_content(text: str) -> frozenset[str]:
    """
    Names, numbers and dates of a text as [`script_aware_tokens`]: words with a digit, and words with a
    capital letter, single letters and function words left out. The first word of a sentence is taken for a name only
    where nothing but names stands with it, as in the answer "Lima.".

    >>> [sorted(key_content(text)) for text in ("Ilse Moreau wrote of the Incas in 1958.", "New York")]
    [['1958', 'inca', 'moreau'], ['new', 'york']]
    """
    found = set()
    for sentence in _SENTENCE_END.split(join_apostrophes(text)):
        all_words = unicode_words(sentence)
        words = [word for word in all_words if word.casefold() not in _FUNCTION_WORDS]
        only_names = all(word != word.lower() or any(map(str.isdigit, word)) for word in words)
        for position, word in enumerate(words):
            is_first = position == 0 and word == all_words[0] and not only_names
            is_name = word != word.lower() and len(word) > 1 and not is_first
            if is_name or any(map(str.isdigit, word)):
                found.update(script_aware_tokens(word))
    return frozenset(found)


def names_in(question: str, text: str) -> list[tuple[int, str]]:
    """
    Where the names of a text begin, and their words: its [`key_content`] without words that the question holds and
    without numbers.

    >>> names_in("When was Ilse Moreau born?", "Ilse Moreau's life began in New York, on 12 May 1958.")
    [(28, 'New'), (32, 'York'), (44, 'May')]
    """
    names = key_content(text) - set(script_aware_tokens(join_apostrophes(question)))
    found = [(match.start(), match.group()) for match in _NAME.finditer(text)]
    return [(start, name) for start, name in found if names & set(script_aware_tokens(join_apostrophes(name)))]
