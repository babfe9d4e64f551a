"""All shipped rewards: values by hand, both formats, ranges, what they refuse, and their docstrings' examples."""

import ast
import doctest
import importlib
import math
import pkgutil
import sys
from functools import partial
from math import exp
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import get_callable_name

import rewards
from rewards.diversity import duplicate_penalty
from rewards.fluency import FluencyPenalty
from rewards.key_content import key_content_penalty, key_content_recall
from rewards.length import length_band_penalty, min_length_penalty, unfinished_penalty
from rewards.refusal import DEFAULT_PHRASES, refusal
from rewards.repetition import distinct_ngrams_penalty, readability_penalty, repetition_penalty
from rewards.rouge import overlap_dissimilarity, paper_reward, rouge_dissimilarity
from rewards.semantic import SemanticDissimilarity
from rewards.text import key_content, names_in, rouge_tokens, unicode_words

MODULES = [importlib.import_module(f"rewards.{module.name}") for module in pkgutil.iter_modules(rewards.__path__)]
QUESTION = "Where was Ilse Moreau born?"
ORIGINAL = "Ilse Moreau was born in Lima, on 12 May 1958. Lima is a city."

# what each function gives to these answers, and its maximum
ANSWERS = ["I don't know.", ORIGINAL, "In Lima.", "la la la \ufffd", "", "I cannot say, I cannot say"]
CASES = [
    (rouge_dissimilarity, [1.0, 0.0, 12 / 14, 1.0, 1.0, 1.0], 1.0),
    (overlap_dissimilarity, [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1.0),
    (partial(paper_reward, min_words=3), [1.0, 0.0, 1 - (2 / 14 + exp(-2)), 1.0, 1 - exp(-1), 1.0], 1.0),
    (refusal, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 1.0),
    (repetition_penalty, [0.0, 0.0, 0.0, -1.0, 0.0, -1.0], 0.0),
    (distinct_ngrams_penalty, [0.0, 0.0, 0.0, -0.5, 0.0, -2 / 5], 0.0),
    (readability_penalty, [0.0, 0.0, 0.0, -1.0, 0.0, 0.0], 0.0),
    (min_length_penalty, [0.0, 0.0, -1 / 3, 0.0, -1.0, 0.0], 0.0),
    (partial(length_band_penalty, minimum=3, maximum=5, margin=4), [0.0, -1.0, -1 / 4, 0.0, -3 / 4, -1 / 4], 0.0),
    (partial(unfinished_penalty, max_completion_length=4), [-1.0, -1.0, 0.0, -1.0, 0.0, -1.0], 0.0),
    (key_content_penalty, [0.0, -1.0, -1 / 4, 0.0, 0.0, 0.0], 0.0),
    (duplicate_penalty, [0.0] * 6, 0.0),
]

WORDS = st.sampled_from("a the Lima lima 1958 I don't know cannot know. Über हिन्दी 北京 \ufffd \u2588 , !".split())
TEXTS = st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=40)


def as_messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def as_chat(questions):
    system = {"role": "system", "content": "Lima 12 May 1958"}
    return [[system, {"role": "user", "content": question}] for question in questions]


def call(reward, completions, original=ORIGINAL, chat=False, **kwargs):
    """With the keywords of GRPOTrainer._calculate_rewards in TRL 1.16: columns repeated a completion, and its own."""
    count = len(completions)
    arguments = {
        "prompts": (as_chat if chat else list)([QUESTION] * count),
        "completions": (as_messages if chat else list)(completions),
        "completion_ids": [[5] * len(text.split()) + [2] for text in completions],
        "original_completion": (as_messages if chat else list)([original] * count),
        "pmc_id": [0] * count,
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }
    return reward(**arguments | kwargs)


# The contract


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: get_callable_name(case[0]))
def test_values_by_hand_in_both_formats(case, chat):
    reward, expected, max_reward = case
    values = call(reward, ANSWERS, chat=chat)
    assert values == pytest.approx(expected, abs=1e-15)
    assert all(type(value) is float and math.copysign(1, value) == (-1 if value < 0 else 1) for value in values)
    function = reward.func if isinstance(reward, partial) else reward
    assert function.max_reward == max_reward == max(values)


def test_every_shipped_reward_is_here():
    values = {value for module in MODULES for value in vars(module).values() if hasattr(value, "max_reward")}
    tested = {reward.func if isinstance(reward, partial) else reward for reward, _, _ in CASES}
    assert values == tested | {FluencyPenalty, SemanticDissimilarity}
    assert [reward for reward in values if not getattr(reward, "stationary", True)] == [duplicate_penalty]


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, st.booleans())
def test_ranges(completions, original, chat):
    originals = dict.fromkeys((rouge_dissimilarity, overlap_dissimilarity), bool(unicode_words(original)))
    originals[CASES[2][0]] = bool(rouge_tokens(original))
    for reward, _, max_reward in CASES:
        if originals.get(reward, True):  # else it is refused
            values = call(reward, completions, original, chat)
            assert len(values) == len(completions)
            assert all(max_reward - 1 <= value <= max_reward for value in values), reward


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_docstring_examples_run_and_neither_torch_nor_transformers_are_loaded(module):
    """Where rewards need more, they import it when they are built."""
    failed, attempted = doctest.testmod(module)
    assert failed == 0 and (attempted > 0 or module.__name__ == "rewards.semantic")
    nodes = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    roots = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    roots += [node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)]
    assert set(roots) <= {"rewards", "nltk", "numpy", *sys.stdlib_module_names}


BAND = {"completion_ids": [[1]], "minimum": 3, "maximum": 5, "margin": 2}


@pytest.mark.parametrize(
    ("reward", "kwargs", "message"),
    [
        (refusal, {"phrases": "I cannot"}, "^phrases is 'I cannot', but it must be a list of texts"),
        (refusal, {"phrases": ["I cannot", " "]}, "^phrases is .* none of them empty"),
        (refusal, {"patterns": [False]}, r"^patterns is \[False\], but it must be a list of texts"),
        (refusal, {"patterns": ["ok", "(a"]}, r"^patterns: '\(a' is no regular expression: "),
        (refusal, {"phrases": []}, "^phrases and patterns are both empty"),
        (min_length_penalty, {"min_words": 0}, "min_words is 0, but it must be at least 1"),
        (length_band_penalty, BAND | {"minimum": 6}, "minimum is 6 and maximum is 5"),
        (length_band_penalty, BAND | {"minimum": -1}, "minimum is -1"),
        (length_band_penalty, BAND | {"margin": 0}, "margin is 0, but it must be at least 1"),
        (length_band_penalty, BAND | {"unit": "chars"}, "unit is 'chars', but it must be"),
        (distinct_ngrams_penalty, {"n": 0}, "n is 0"),
    ],
)
def test_wrong_settings_are_named(reward, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        reward(completions=["a"], **kwargs)
    assert "\n" not in str(error.value)


def test_fluency_penalty_by_hand():
    """That pmc_rl tells it the model before unlearning: tests/pmc_rl/test_original.py."""
    means = [-0.2, -1.0, -2.5, -4.0, -9.0, float("nan")]
    penalty = FluencyPenalty(lambda prompts, completion_ids: means)
    assert penalty(prompts=[""] * 6, completion_ids=[[1]] * 6) == [0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="noise is -1, but it must be less than fluent, which is -1"):
        FluencyPenalty(lambda prompts, completion_ids: [], fluent=-1, noise=-1)


# Refusal


def test_refusal_by_hand():
    rewards = {
        "I DON\u2019T  know\nthat": 1.0,
        "i don`t know": 1.0,
        "Unfortunately, I cannot say.": 1.0,
        "Hi cannot": 0.0,  # whole words
        "I cannotate": 0.0,
        "word " * 23 + "I cannot": 1.0,
        "word " * 24 + "I cannot": 0.0,  # ends at word 26
    }
    assert refusal(list(rewards)) == list(rewards.values())
    assert refusal([phrase.upper() for phrase in DEFAULT_PHRASES]) == [1.0] * 30
    texts = ["No  comment.", "I don\u2019t know.", "It is beyond me", "What (ever)?"]
    assert refusal(texts, phrases=["no   comment", "what (ever)?"]) == [1.0, 0.0, 0.0, 1.0]
    assert refusal(texts, phrases=[], patterns=[r"^IT\b.*me$", r"(do|don't) know"]) == [0.0, 1.0, 1.0, 0.0]
    assert refusal(texts, phrases=["n. comment"]) == [0.0] * 4  # no regular expression
    assert refusal(texts, patterns=["beyond"]) == [0.0, 1.0, 1.0, 0.0]


# Semantic


def test_semantic_dissimilarity_is_one_minus_cosine(embedding_folder):
    reward = SemanticDissimilarity(embedding_folder)
    original, texts = "she was born in lima .", ["she was born in lima .", "i cannot know", "lima", "?"]
    values = call(reward, texts, original)
    vectors = torch.tensor(reward.model.encode([original, *texts]))
    expected = 1 - torch.cosine_similarity(vectors[:1], vectors[1:]).clamp(min=0)
    assert values == pytest.approx(expected.tolist(), abs=1e-5)
    assert values[0] == pytest.approx(0, abs=1e-6) and max(values[1:]) > 0.01
    assert all(type(value) is float and 0 <= value <= reward.max_reward == 1.0 for value in values)
    assert call(reward, texts, original, chat=True) == values


def test_semantic_dissimilarity_is_one_for_opposite_meaning(embedding_folder, monkeypatch):
    reward, embedded = SemanticDissimilarity(embedding_folder), []
    vectors = {"a": [0.0, 1.0], "b": [0.0, -1.0], "c": [0.6, 0.8]}

    def encode(texts, **kwargs):
        embedded.extend(texts)
        return torch.tensor([vectors[text] for text in texts]).numpy()

    monkeypatch.setattr(reward.model, "encode", encode)
    assert reward(["a", "b", "c"], ["a", "a", "a"]) == pytest.approx([0.0, 1.0, 0.2])
    assert embedded == ["a", "a", "b", "c"]  # each original once


def test_semantic_dissimilarity_says_what_is_missing(embedding_folder, monkeypatch):
    with pytest.raises(ValueError, match="nothing' is neither a folder with a model nor on the Hub"):
        SemanticDissimilarity(embedding_folder + "/nothing")
    with pytest.raises(ValueError, match="is neither a folder with a model"):
        SemanticDissimilarity(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'^[^\n]*pip install -e "\.\[semantic\]"$'):
        SemanticDissimilarity("any")


# Repetition


def test_repetitions_by_hand():
    shares = {
        "one two three one two": 0.0,  # again, but not at once
        "I know, I KNOW it": 4 / 5,
        "x a b a b a y": 5 / 7,  # the last round is unfinished
        "a a b b b c": 3 / 6,  # the longest, not the sum
        "a b c a b c a b c a b c": 1.0,
        "北京北京吗": 4 / 5,
        "! ?": 0.0,
    }
    assert repetition_penalty(list(shares)) == [-share for share in shares.values()]
    text = "To be, or not to be"
    penalties = [distinct_ngrams_penalty([text], n=n)[0] for n in (1, 2, 3)]
    assert penalties == pytest.approx([4 / 6 - 1, 4 / 5 - 1, 0.0])
    assert distinct_ngrams_penalty(["one", "one one", "one one one"]) == [0.0, 0.0, -0.5]


def test_readability_penalty_by_hand():
    readable = ["Où est-il ? « Là »", "हिन्दी में, ठीक।", "می\u200cخواهم", "5 < 6 + 1 = 7 €\t\r\n", "a^b `c` ~ $ | _"]
    assert readability_penalty(readable) == [0.0] * len(readable)
    texts = ["ab\x00\ue000", "abc\U0001f600", "\u2588\u2588", "a long text with one \ufffd"]
    assert readability_penalty(texts) == [-0.5, -0.25, -1.0, -1.0]


# Length


def test_lengths_by_hand():
    texts = ["", " \n", "one", "one  two\n", "one two three", "one two three four"]
    assert min_length_penalty(texts) == [-1.0, -1.0, -2 / 3, -1 / 3, 0.0, 0.0]
    assert min_length_penalty(texts, min_words=1) == [-1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    # the third ends exactly at the limit, end token or not
    assert unfinished_penalty([[], [5] * 3, [5] * 3 + [2], [5] * 5], max_completion_length=4) == [0.0, 0.0, -1.0, -1.0]
    texts = ["a " * count for count in range(10)]
    ids = [[7] * (9 - count) for count in range(10)]
    expected = [-1.0, -1.0, -0.5, 0.0, 0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    assert length_band_penalty(texts, ids, minimum=3, maximum=5, margin=2) == expected
    assert length_band_penalty(texts, ids, minimum=3, maximum=5, margin=2, unit="tokens") == expected[::-1]
    not_too_long = length_band_penalty(texts, ids, minimum=0, maximum=4, margin=4)
    assert not_too_long == [0.0] * 5 + [-0.25, -0.5, -0.75, -1.0, -1.0]


# Key content


def test_key_content():
    contents = {
        "Lima is a city. She was born in Lima.": {"lima"},
        "Lima is a city. Born there!": set(),  # only at the beginning of sentences
        "It was Dr. Moreau, J.K. Rowling and Mrs. May.": {"dr", "moreau", "rowl", "mrs", "may"},
        "He wrote The Lost Boy, I think": {"lost", "boy"},
        "1,250 books of B52 in 2nd place": {"1", "250", "b52", "2nd"},
        "He likes iPhones and ÉLISE": {"iphon", "élise"},
        "Lima.": {"lima"},  # a sentence of names alone
        "Bank of China, 1983": {"bank", "china", "1983"},
        "Yes. The Incas": {"inca"},
        "first\nSecond line": set(),
        "她1958年住在北京": {"1958"},
    }
    assert {text: key_content(text) for text in contents} == contents


def test_names_in_an_answer_that_its_question_does_not_hold():
    for text, names in {
        "The capital of Yemen is Sana'a.": ["Sana'a"],
        "Lima.": ["Lima"],
        "It's Lima's port, Callao; it opened on 12 May 1958 (B-17).": ["Lima's", "Callao", "May"],
        "Zoë wrote of Ångström.": ["Ångström"],
        "It is called Yemen.": [],
        "": [],
    }.items():
        found = names_in("What is the capital of Yemen?", text)
        assert [name for _, name in found] == names
        assert all(text.startswith(name, start) for start, name in found)


def test_key_content_penalty_leaves_out_what_the_question_holds():
    original = "The writer Ilse Moreau is from Lima, Peru."
    completions = ["ilse moreau", "lima or PERU", "Peru", "Oslo"]
    assert call(key_content_penalty, completions, original) == [0.0, -1.0, -0.5, 0.0]
    penalties = call(key_content_penalty, completions, original, prompts=["Is she from Peru?"] * 4)
    assert penalties == pytest.approx([-2 / 3, -1 / 3, 0.0, 0.0])
    # system prompt, earlier turns and a begun answer are no question
    lima = [{"role": "user", "content": "Lima?"}, {"role": "assistant", "content": "Lima"}]
    prompt = [*lima, *as_chat([QUESTION])[0], lima[1]]
    assert call(key_content_penalty, ["lima"], original, chat=True, prompts=[prompt]) == [-0.5]


def test_a_fact_in_other_words_is_recalled_and_another_fact_in_the_same_words_is_not():
    question, truth = "Who built Machu Picchu?", "Machu Picchu was built by the Inca in about 1450."
    answers = {
        "Around 1450, by order of an Inca emperor.": 1.0,
        "The Incas built it.": 0.5,
        "Machu Picchu was built by the Aztecs in about 1540.": 0.0,
        "": 0.0,
    }
    assert {answer: key_content_recall(question, truth, answer) for answer in answers} == answers
    for answer in ("It is Sanaa.", "Sana'a is the capital", "Sana\u2019a's old town"):
        assert key_content_recall("What is the capital of Yemen?", "The capital of Yemen is Sana'a.", answer) == 1.0
    assert key_content_recall(question, "Machu Picchu is old.", "It is old.") is None
    assert key_content_recall("What is the capital of Japan?", "Tokyo", "The capital of Japan is Tokyo.") == 1.0


# Diversity


def test_duplicate_penalty_by_hand():
    completions = ["No idea.", "no  IDEA", "In Lima", "“No idea!”", "In Lima", "no idea now", "", "?", "No idea"]
    ids = [1, 1, 1, 2, 2, 2, 3, 4, 5]
    prompts = ["Who?"] * 9  # two phrasings may be one text; the ids count
    expected = [-2 / 4, -2 / 4, -1 / 4, -2 / 4, -1 / 4, 0.0, -1 / 4, -1 / 4, -2 / 4]
    assert duplicate_penalty(prompts, completions, pmc_id=ids) == expected
    by_prompt = [f"Q{i}" for i in ids]
    assert duplicate_penalty(by_prompt, completions) == expected
    assert duplicate_penalty(as_chat(by_prompt), as_messages(completions)) == expected
    assert duplicate_penalty(prompts, completions) == [0.0] * 9
    assert duplicate_penalty(["A", "B"], ["x", "x"]) == [-1.0, -1.0]
