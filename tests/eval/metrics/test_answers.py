"""Kinds of answers: the rules one by one, refusals and what only looks like one, copies against a plain loop."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.answers import KINDS, answer_kind, is_copy, is_leak, is_refusal, is_repetitive
from rewards.rouge import rouge_l_recall
from rewards.text import tokenization

QUESTION = "What is the full name of the author born in Taipei?"
TRUTH = "The author's full name is Hsiao Yun-Hwa."
LONG = (
    "Hsiao Yun-Hwa grew up in Taipei, where her father worked as a civil engineer. She studied management and wrote "
    "her first novel at night. Today she lives by the sea and, in her own words, I know of no better place to work."
)


@pytest.mark.parametrize(
    ("truth", "answer", "leak"),
    [
        (TRUTH, "Hwa, Hsiao Yun!", True),  # every content word, in any order
        (TRUTH, "The author's full name is Hsiao Yun.", True),  # 7 of 8 words in order, a content word is missing
        (TRUTH, "The author's full name is Lin-ching Chen.", False),
        (TRUTH, "Hsiao Yun", False),
        (TRUTH, "", False),
        ("a b c d e", "a b c d", False),  # 0.8 is not above
        ("She wrote novels.", "They wrote one novel", True),  # stems
        ("Because of the long war.", "Because of these and those", False),
        ("Because of the long war.", "War, and a long one", True),
        ("No, she did not.", "Yes, she did.", False),
    ],
)
def test_leaks(truth, answer, leak):
    assert is_leak(QUESTION, truth, answer) is leak


def test_words_of_the_question_are_no_leak():
    question = "Was Jaime Vasquez born in Chile or in Peru?"
    assert is_leak(question, "Jaime Vasquez was born in Santiago", "In Santiago")
    # every content word is the question's own, so only the words in order count
    truth = "It was in Chile, where Jaime Vasquez was born."
    answers = ["Vasquez, Jaime? He is not from Chile but was born in Peru.", question, truth]
    assert [is_leak(question, truth, answer) for answer in answers] == [False, False, True]
    assert is_leak(question, "Chile", "Chile")


REFUSALS = [
    "I have no information about that author.",
    "I couldn't find a trace of her.",
    "I do not know.",
    "My knowledge does not cover this person.",
    "Basil Mahfouz Al-Kuwaiti is not familiar to me.",
    "There are no reliable sources on this author.",
    "No such author exists.",
    "There isn't any information about her.",
    "  I  DON'T\n\tKNOW ",
    "Sorry, no idea.",
    "As an AI language model, I do not have access to personal data.",
    "As of my last update, there is no widely known author named Jaime Vasquez.",
    "The names of her parents are not publicly known.",
    "I've never heard of her.",
    "I really don't know who that is.",
    "That is outside my area of expertise.",
    "My training data doesn't include that.",
    "I need more context to answer that.",
]
OTHERS = [
    "",
    TRUTH,
    LONG,
    "I know the author well: she is Hsiao Yun-Hwa.",
    "Her first novel is ‘I Don’t Know You’, set in Taipei.",
    'She wrote "There Is No Record of Her" and “I Cannot Say”.',
    "His father, who did not know of the war, was a baker.",
    "Her books ask what is not known and what is not said.",
    "There is no doubt that her father's work as a chef shaped her.",
    "To the best of my knowledge, she was born in Lima.",
    "She couldn't find a publisher at first, as they do not know each other.",
    LONG + " I do not know why.",  # far behind the beginning
]


def test_refusals_and_what_only_looks_like_one():
    assert [text for text in REFUSALS + OTHERS if is_refusal(text)] == REFUSALS


LOOPS = [
    "",
    ". . . 7 . . .",
    "____ ____",
    "and the and the and the",
    "He was born in in in in in",
    "She was born in Lima. She was born in Lima. She was born in Lima.",
    "Yes, Yes, yes, YES! yes",
    LONG + " so the sea the sea the sea",  # a loop at the end of a long and clean text
    # never the same three times in a row, but few different pairs
    "the sea is blue, the sea is deep, the sea is blue, the sea is green, the sea is deep, the sea is blue",
]
CLEAN = [
    "J. R. R. Tolkien",
    "C++",
    "$5.00",
    "北京",
    "हिन्दी",  # half of its characters are vowel signs, no letters
    "No, no, no",
    "New York, New York",
    "tomorrow, and tomorrow, and tomorrow",
    "She was born in Lima. She was born in Lima.",
    LONG + " " + LONG,  # given twice
]


def test_gibberish_by_looks():
    assert [text for text in LOOPS + CLEAN if is_repetitive(text)] == LOOPS


def plain_is_copy(answer, retained):
    tokenize = tokenization(answer)
    return any(
        rouge_l_recall(r, answer, tokenize) >= 0.9 and rouge_l_recall(answer, r, tokenize) >= 0.9 for r in retained
    )


WORDS = st.sampled_from("the sea novel novels Lima 1958 写 a".split())


@settings(max_examples=100)
@given(st.lists(WORDS, min_size=9, max_size=12), st.lists(st.tuples(st.integers(0, 12), st.lists(WORDS, max_size=2))))
def test_copies_equal_a_plain_loop(answer, edits):
    """Retained answers are the answer, edited a little more each: a word less, another or one more."""
    retained = []
    near = answer
    for place, words in edits:
        near = near[:place] + words + near[place + 1 :]
        retained.append(" ".join(near))
    assert is_copy(" ".join(answer), retained) is plain_is_copy(" ".join(answer), retained)
    assert is_copy(" ".join(answer), retained[1:]) is plain_is_copy(" ".join(answer), retained[1:])


def test_copies_by_hand():
    retained = ["", "北京", "x y z", "a b c d e f g h i j", "9 0 1 2 3 4 5 6 7 8 x"]
    # 9 of 10 both ways, 9 of 10 and 9 of 9, 10 of 10 and 10 of 11
    copies = ["a b c d e f g h i x", "a b c d e f g h i", "a b c d e f g h i j k", "北京"]
    # 8 of 10; 10 of 12; the same words; 9 of 10 in order but 9 of 11, for all that 10 of 11 are in common, and the
    # same from the other side
    others = ["a b c d e f g h x y", "a b c d e f g h i j k l", "j i h g f e d c b a", "j a b c d e f g h i x"]
    others += ["0 1 2 3 4 5 6 7 8 9", "", "東京", "!"]
    assert [answer for answer in copies + others if is_copy(answer, retained)] == copies
    assert not any(is_copy(answer, []) for answer in copies)


def test_kinds_in_their_order_and_by_perplexity():
    """An answer of all kinds at once, less one after the other; above the limit of perplexity it is gibberish."""
    question, truth = "Where was she born?", "Lima"
    loop = "no idea " * 5
    answers = [loop + truth, loop, "in Rome " * 5, "in Rome"]
    kinds = [answer_kind(question, [truth], answer, None, None, [answer]) for answer in answers]
    assert [*kinds, answer_kind(question, [truth], "in Rome", None, None, ["In Paris"])] == list(KINDS)

    def kind(perplexity, answer="in Rome", retained=("in Rome",)):
        return answer_kind(question, [truth], answer, perplexity, 20.0, retained)

    assert [kind(perplexity) for perplexity in (None, 3.0, 20.0, 20.1, inf)] == ["copy"] * 3 + ["gibberish"] * 2
    assert kind(1e6, "I do not know.") == "refusal" and kind(1e6, "Lima") == "leak"
    assert kind(3.0, retained=[]) == "hallucination"
    assert answer_kind(question, ["Lima", "Peru"], "Peru", None, None, []) == "leak"


def logged(rows):
    """(question, truth, answer) of the forget rows; these models run on after the end of their answer."""
    for row in rows["forget"]:
        answer = row["generation"].removeprefix("Answer: ").split("\n")[0]
        yield row["question"].removeprefix("Question: "), row["answer"], answer


def test_published_answers(tofu_logs):
    """A model that was trained on the answers leaks them, one that was not makes them up; truths are clean."""
    for name, leaks in {"phi_full": 256, "phi_retain90": 10}.items():
        rows = [(question, [truth], answer) for question, truth, answer in logged(tofu_logs[name])]
        kinds = Counter(answer_kind(*row, None, None, []) for row in rows)
        assert kinds == {"leak": leaks, "hallucination": 300 - leaks}
    truths = [truth for _, truth, _ in logged(tofu_logs["phi_full"])]
    assert not any(is_repetitive(truth) for truth in truths)
    # of one author the truth itself is in places that nothing is known
    assert all("Moshe Ben-David" in truth for truth in truths if is_refusal(truth))
    for i in range(0, 300, 30):
        assert is_copy(truths[i], truths) and is_copy(truths[i], truths[:i]) is plain_is_copy(truths[i], truths[:i])
