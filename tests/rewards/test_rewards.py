"""Rewards: equality with rouge_score, values worked out by hand, both completion formats, TRL's calling convention."""

import doctest
import functools
import json
import pkgutil
import subprocess
import sys
from math import exp
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from trl.trainer.utils import get_callable_name

import rewards.length
import rewards.rouge
import rewards.text
from rewards.length import min_length_penalty, unfinished_penalty
from rewards.rouge import paper_reward, rouge_dissimilarity, rouge_l_recall
from rewards.text import completion_text, rouge_tokens, split_after, tokenization, words

REPO = Path(__file__).resolve().parents[2]
LOGS = REPO.parent / "shared/data/tofu_eval_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"published TOFU generations not found at {LOGS}")

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


def as_messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def logged_rows():
    """(generation, answer, stored recall) of every set of every published log."""
    for path in sorted(LOGS.glob("*.json")):
        for rows in json.loads(path.read_text()).values():
            for row in rows:
                yield row["generation"].removeprefix("Answer: "), row["answer"], row["rougeL_recall"]


# ROUGE


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_tokens_equal_rouge_score(text):
    assert rouge_tokens(text) == TOKENIZER.tokenize(text)


@settings(max_examples=500, deadline=None)
@given(TEXTS, TEXTS)
def test_recall_equals_rouge_score(reference, prediction):
    expected = SCORER.score(reference, prediction)["rougeL"].recall
    assert rouge_l_recall(reference, prediction, rouge_tokens) == expected
    if tokenization(reference) is rouge_tokens:
        assert rouge_l_recall(reference, prediction) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=0x24F), max_size=60))
def test_words_of_latin_text_are_split_at_white_space(text):
    assert words(text) == text.split()
    for count in range(4):
        given, rest = split_after(text, count)
        assert given.split() == text.split()[:count] and rest.split() == text.split()[count:]


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=8).map("".join) | st.text(max_size=40), st.integers(0, 9))
def test_a_text_is_its_beginning_and_its_rest(text, count):
    given, rest = split_after(text, count)
    assert text.startswith(given, len(text) - len(text.lstrip())) and text.rstrip().endswith(rest)
    assert "".join((given + rest).split()) == "".join(text.split())
    assert len(words(given)) <= count and (rest == "" or len(words(rest)) > 0 or "\ufffd" in text)


@needs_logs
def test_recall_equals_published_values():
    rows = list(logged_rows())
    assert len(rows) == 1634
    assert [rouge_l_recall(answer, generation) for generation, answer, _ in rows] == [stored for *_, stored in rows]


@needs_logs
def test_recall_equals_rouge_score_on_published_generations():
    for generation, answer, _ in list(logged_rows())[::6]:
        # both ways, so that long references with short predictions are seen as well
        assert rouge_l_recall(answer, generation) == SCORER.score(answer, generation)["rougeL"].recall
        assert rouge_l_recall(generation, answer) == SCORER.score(generation, answer)["rougeL"].recall


@pytest.mark.parametrize(
    ("reference", "prediction", "recall"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b c d", "a b c d and more", 1.0),  # recall, not precision
        ("a b c d", "d c b a", 0.25),  # order counts
        ("a b a b", "a a", 0.5),  # a token matches once a position
        ("a b c", "", 0.0),
        ("", "a b c", 0.0),
        ("北京", "北京", 1.0),
        ("!?", "!?", 0.0),
        ("a " * 200, "a " * 130, 0.65),  # more tokens than a machine word has bits
    ],
)
def test_recall_by_hand(reference, prediction, recall):
    assert rouge_l_recall(reference, prediction) == recall


def test_rouge_dissimilarity_by_hand():
    completions = ["He was born in Lima, Peru.", "born in Peru", "I do not know", ""]
    assert rouge_dissimilarity(completions, [ORIGINAL] * 4) == [0.0, 0.5, 1.0, 1.0]


def test_rouge_dissimilarity_compares_with_the_original_of_the_same_row():
    assert rouge_dissimilarity(["a b", "a b"], ["a b", "c d"]) == [0.0, 1.0]


def test_paper_reward_without_min_words():
    completions = ["", "born in Peru", "a", ORIGINAL]
    assert paper_reward(completions, [ORIGINAL] * 4) == [1.0, 0.5, 1.0, 0.0]
    assert paper_reward(completions, [ORIGINAL] * 4) == rouge_dissimilarity(completions, [ORIGINAL] * 4)


def test_paper_reward_with_min_words_3():
    completions = ["", "No", "Not known", "I cannot say", "born Peru", "x  y", " born\n in ", ORIGINAL]
    assert paper_reward(completions, [ORIGINAL] * 8, min_words=3) == [
        1 - exp(-1),  # empty counts as one word
        1 - exp(-1),
        1 - exp(-2),
        1.0,  # three words are enough
        1 - (2 / 6 + exp(-2)),
        1.0,  # single spaces split: "x", "", "y"
        1 - (2 / 6 + exp(-2)),  # stripped at both ends; "born\n in" is split once, at the space
        0.0,
    ]


def test_paper_reward_is_clipped_at_zero():
    assert paper_reward(["Lima"], ["Lima"], min_words=3) == [0.0]


REWARDS_OF_ORIGINAL = pytest.mark.parametrize("reward", [rouge_dissimilarity, paper_reward])


@REWARDS_OF_ORIGINAL
def test_original_without_tokens_is_refused_without_showing_it(reward):
    # two samples for each of three questions
    originals = [ORIGINAL, ORIGINAL, "«¿?»", "«¿?»", "", ""]
    with pytest.raises(ValueError, match=r"^2 of 3 .* rows 17, 2\. .* Remove these rows") as error:
        reward(["Lima"] * 6, originals, pmc_id=[4, 4, 17, 17, 2, 2])
    assert "¿" not in str(error.value) and "Lima" not in str(error.value)


@REWARDS_OF_ORIGINAL
def test_original_without_tokens_is_named_by_position_if_rows_are_not_given(reward):
    with pytest.raises(ValueError, match=r"^1 of 3 .* rows 1\."):
        reward(["Lima"] * 3, [ORIGINAL, "...", ORIGINAL])


@REWARDS_OF_ORIGINAL
def test_completion_without_tokens_is_no_error(reward):
    assert reward(["她住在北京"], [ORIGINAL]) == [1.0]


@REWARDS_OF_ORIGINAL
def test_as_many_originals_as_completions(reward):
    with pytest.raises(ValueError):
        reward(["a", "b"], [ORIGINAL])


# Length


def test_min_length_penalty_by_hand():
    completions = ["", " \n", "one", "one  two\n", "one two three", "one two three four"]
    assert min_length_penalty(completions) == [-1.0, -1.0, -2 / 3, -1 / 3, 0.0, 0.0]
    assert min_length_penalty(completions, min_words=1) == [-1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("min_words", [0, -2])
def test_min_length_penalty_refuses_fewer_than_one_word(min_words):
    with pytest.raises(ValueError, match=f"min_words is {min_words}, but it must be at least 1"):
        min_length_penalty(["a"], min_words=min_words)


def test_unfinished_penalty_by_hand():
    # the third ends exactly at the limit, end token or not
    assert unfinished_penalty([[], [5] * 3, [5] * 3 + [2], [5] * 5], max_completion_length=4) == [0.0, 0.0, -1.0, -1.0]


# The contract


def test_text_of_both_formats():
    assert completion_text("a b") == "a b"
    assert completion_text([{"role": "assistant", "content": "a b"}]) == "a b"
    assert completion_text([{"role": "user", "content": "x"}, {"role": "assistant", "content": "last"}]) == "last"
    assert words(" one  two\n") == ["one", "two"] and words("") == []


@pytest.mark.parametrize("original_format", [list, as_messages])
@pytest.mark.parametrize("completion_format", [list, as_messages])
@pytest.mark.parametrize(
    ("reward", "expected", "max_reward"),
    [
        (rouge_dissimilarity, [0.0, 5 / 6, 1.0], 1.0),
        (functools.partial(paper_reward, min_words=3), [0.0, 1 - (1 / 6 + exp(-1)), 1 - exp(-1)], 1.0),
        (min_length_penalty, [0.0, -2 / 3, -1.0], 0.0),
        (functools.partial(unfinished_penalty, max_completion_length=3), [-1.0, 0.0, 0.0], 0.0),
    ],
    ids=lambda value: get_callable_name(value) if callable(value) else "",
)
def test_as_called_by_grpo(reward, expected, max_reward, completion_format, original_format):
    # The keywords of GRPOTrainer._calculate_rewards in TRL 1.16: columns repeated a completion, and what it adds.
    values = reward(
        prompts=["Where?"] * 3,
        completions=completion_format([ORIGINAL, "Lima", ""]),
        completion_ids=[[5, 6, 7], [5, 2], [2]],
        original_completion=original_format([ORIGINAL] * 3),
        pmc_id=[0, 0, 0],
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    assert values == expected
    assert all(type(value) is float for value in values)
    function = reward.func if isinstance(reward, functools.partial) else reward
    assert function.max_reward == max_reward >= max(values)


def test_rewards_import_neither_torch_nor_transformers():
    names = [f"rewards.{module.name}" for module in pkgutil.iter_modules(rewards.__path__)]
    assert "rewards.refusal" in names
    code = f"import sys, {', '.join(names)}\nprint(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("module", [rewards.text, rewards.rouge, rewards.length], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    examples = 0
    for name in dir(module):
        value = getattr(module, name)
        if callable(value) and ">>>" in (value.__doc__ or "") and value.__module__ == module.__name__:
            source = value.__doc__.replace("```", "")
            test = doctest.DocTestParser().get_doctest(source, {}, name, None, None)
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, name
            examples += 1
    assert examples > 0
