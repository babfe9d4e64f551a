"""ROUGE-L and its tokens: equal to rouge_score in Latin letters, by hand elsewhere, and the rewards made of them."""

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from rewards.rouge import paper_reward, rouge_dissimilarity, rouge_l_recall
from rewards.text import rouge_tokens, script_aware_tokens, split_after, tokenization, words

SCORER = RougeScorer(["rougeL"], use_stemmer=True)
TOKENIZER = DefaultTokenizer(use_stemmer=True)

# Few words, so that they repeat and match; some change under the stemmer, others (the Kelvin sign, a dotted capital I)
# under lower-casing, into or near a letter that counts.
WORDS = st.sampled_from(
    "a the The dying dies skies novels novel authored author's 1958 \u212a \u0130 é 北京 naïve _x_ agreed".split()
)
SENTENCES = st.lists(WORDS, max_size=80).map(" ".join)
SUFFIXED = st.lists(st.sampled_from("a b y s ies ing ed ational ness ful li e 7 -".split()), max_size=9).map("".join)
TEXTS = SENTENCES | SUFFIXED | st.text()

ORIGINAL = "He was born in Lima, Peru"


@settings(max_examples=300)
@given(TEXTS, TEXTS)
def test_tokens_and_recall_equal_rouge_score(reference, prediction):
    assert rouge_tokens(reference) == TOKENIZER.tokenize(reference)
    if reference.isascii():
        assert script_aware_tokens(reference) == rouge_tokens(reference)
    expected = SCORER.score(reference, prediction)["rougeL"].recall
    assert rouge_l_recall(reference, prediction, rouge_tokens) == expected
    if tokenization(reference) is rouge_tokens:
        assert rouge_l_recall(reference, prediction) == expected


def test_recall_equals_published_values_and_rouge_score(tofu_logs):
    logged = [row for sets in tofu_logs.values() for rows in sets.values() for row in rows]
    rows = [(row["generation"].removeprefix("Answer: "), row["answer"], row["rougeL_recall"]) for row in logged]
    assert len(rows) == 1634
    assert [rouge_l_recall(answer, generation) for generation, answer, _ in rows] == [stored for *_, stored in rows]
    for generation, answer, _ in rows[::12]:  # the other way, so that long references with short predictions are seen
        assert rouge_l_recall(generation, answer) == SCORER.score(generation, answer)["rougeL"].recall


def test_recall_by_hand():
    for reference, prediction, recall in (
        ("a b c d", "a b c d and more", 1.0),  # recall, not precision
        ("a b c d", "d c b a", 0.25),  # order counts
        ("a b a b", "a a", 0.5),  # a token matches once a position
        ("", "a b c", 0.0),
        ("北京", "北京", 1.0),
        ("!?", "!?", 0.0),
        ("a " * 200, "a " * 130, 0.65),  # more tokens than a machine word has bits
    ):
        assert rouge_l_recall(reference, prediction) == recall, reference


def test_rouge_dissimilarity_by_hand():
    completions = ["He was born in Lima, Peru.", "born in Peru", "I do not know", ""]
    assert rouge_dissimilarity(completions, [ORIGINAL] * 4) == [0.0, 0.5, 1.0, 1.0]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a b"}]  # the last one counts
    assert rouge_dissimilarity(["a b", "a b", messages], ["a b", "c d", "a b"]) == [0.0, 1.0, 0.0]


def test_paper_reward_by_hand():
    completions = ["", "No", "Not known", "I cannot say", "born Peru", "x  y", " born\n in ", ORIGINAL]
    originals = [ORIGINAL] * len(completions)
    assert paper_reward(completions, originals) == rouge_dissimilarity(completions, originals)
    assert paper_reward(completions, originals, min_words=3) == [
        1 - exp(-1),  # empty counts as one word
        1 - exp(-1),
        1 - exp(-2),
        1.0,  # three words are enough
        1 - (2 / 6 + exp(-2)),
        1.0,  # single spaces split: "x", "", "y"
        1 - (2 / 6 + exp(-2)),  # stripped at both ends; "born\n in" is split once, at the space
        0.0,
    ]
    assert paper_reward(["Lima"], ["Lima"], min_words=3) == [0.0]  # clipped


@pytest.mark.parametrize("reward", [rouge_dissimilarity, paper_reward])
def test_originals_without_tokens_are_refused_without_showing_them(reward):
    # two samples for each of three questions
    originals = [ORIGINAL, ORIGINAL, "«¿?»", "«¿?»", "", ""]
    with pytest.raises(ValueError, match=r"^2 of 3 .* rows 17, 2\. .* Remove these rows") as error:
        reward(["Lima"] * 6, originals, pmc_id=[4, 4, 17, 17, 2, 2])
    assert "¿" not in str(error.value) and "Lima" not in str(error.value)
    with pytest.raises(ValueError, match=r"^1 of 3 .* rows 1\."):
        reward(["Lima"] * 3, [ORIGINAL, "...", ORIGINAL])
    assert reward(["她住在北京"], [ORIGINAL]) == [1.0]
    with pytest.raises(ValueError):
        reward(["a", "b"], [ORIGINAL])


# Words


@given(st.text(st.characters(max_codepoint=0x24F), max_size=60))
def test_words_of_latin_text_are_split_at_white_space(text):
    assert words(text) == text.split()
    for count in range(4):
        given, rest = split_after(text, count)
        assert given.split() == text.split()[:count] and rest.split() == text.split()[count:]


@given(st.lists(WORDS, max_size=8).map("".join) | st.text(max_size=40), st.integers(0, 9))
def test_a_text_is_its_beginning_and_its_rest(text, count):
    given, rest = split_after(text, count)
    assert text.startswith(given, len(text) - len(text.lstrip())) and text.rstrip().endswith(rest)
    assert "".join((given + rest).split()) == "".join(text.split())
    assert len(words(given)) <= count and (rest == "" or len(words(rest)) > 0 or "\ufffd" in text)


def test_script_aware_tokens():
    tokens = {
        "Она ЖИВЁТ": ["она", "живёт"],
        "हिन्दी में": ["हिन्दी", "में"],
        "مُحَمَّدٌ هنا": ["مُحَمَّدٌ", "هنا"],
        "می\u200cخواهم": ["می\u200cخواهم"],
        "北京のラーメン": list("北京のラーメン"),
        "한국어 좋아요": ["한국어", "좋아요"],
        "１９５８ ｃａｆé ١٩٥٨": ["1958", "café", "1958"],
        "cafe\u0301": ["café"],
        "Straße novels": ["strass", "novel"],
        "東京1958年born": ["東", "京", "1958", "年", "born"],
        "\u0301 !?": [],
    }
    assert {text: script_aware_tokens(text) for text in tokens} == tokens
    for text in ("กำแพง", "ຄົນ ខ្មែរ မြန်"):  # one letter each, with its marks
        found = script_aware_tokens(text)
        assert len(found) > 3 and all(sum(char.isalnum() for char in token) == 1 for token in found)
