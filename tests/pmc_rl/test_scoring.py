"""Rewards by name: what is found, what is refused and with which words, what a reward is called with, the totals."""

import asyncio
import inspect
import math
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl.rewards
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import GRPOTrainer
from trl.import_utils import is_math_verify_available

from pmc_rl.rejection import RejectionSampler
from pmc_rl.scoring import (
    RewardFunction,
    is_stationary,
    load_reward_functions,
    maximal_reward,
    score_completions,
    weighted_sum,
)
from rewards.length import min_length_penalty, unfinished_penalty
from rewards.rouge import rouge_dissimilarity
from tests.conftest import errors_of

OWN = """\
import functools

LIMIT = 3

def plain(completions, scale=1.0, **kwargs):
    return [scale * len(text) for text in completions]

plain.max_reward = 5.0
plain.stationary = False

async def later(completions, scale=1.0, **kwargs):
    return plain(completions, scale)

def limited(completions, max_completion_length, **kwargs):
    return [float(max_completion_length)] * len(completions)

def greedy(completions):
    return [0.0] * len(completions)

class Judge:
    stationary = False

    def __init__(self, size, max_completion_length=None):
        if size < 0:
            raise ValueError("size is below 0")
        self.size, self.limit, self.max_reward, self.calls = size, max_completion_length, float(size), 0

    def __call__(self, completions, **kwargs):
        self.calls += 1
        return [self.calls] * len(completions)

class Strict(Judge):
    pass

def make_shout(letter, max_completion_length):
    def shout(completions, **kwargs):
        return [text.count(letter) / max_completion_length for text in completions]
    shout.max_reward = 1.0
    return shout

def make_greedy():
    return greedy

def make_number(size):
    return size

judge = Judge(1)
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """`own_rewards.py` in the working directory; path and modules are put back afterwards."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "needy_rewards.py").write_text("import no_such_library.inside\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_rewards", "needy_rewards"):
        sys.modules.pop(name, None)


def load(*names, weights=None, **kwargs):
    """`kwargs`: keywords of the only reward. The recipe's `max_completion_length` is 40."""
    return load_reward_functions(list(names), {names[0]: kwargs}, weights, 40)


def score(reward, completions):
    return score_completions([reward], ["Q"] * len(completions), completions, [[1]] * len(completions))[:, 0].tolist()


def test_shipped_rewards():
    names = ["rewards.rouge.rouge_dissimilarity", "rewards.length.min_length_penalty"]
    first, second = load(*names, weights=[0.5, 2.0])
    assert first == RewardFunction("rouge_dissimilarity", rouge_dissimilarity, 0.5, 1.0, True)
    assert second == RewardFunction("min_length_penalty", min_length_penalty, 2.0, 0.0, True)
    assert [reward.weight for reward in load(*names)] == [1.0, 1.0]
    (bound,) = load(names[1], min_words=2)
    assert (bound.name, bound.max_reward, bound.stationary) == ("min_length_penalty", 0.0, True)
    assert score(bound, ["one", "one two"]) == [-0.5, 0.0]


def test_own_functions_in_the_working_directory(own_file):
    (reward,) = load("own_rewards.plain")
    assert sys.path[-1] == str(own_file)  # last: nothing there may hide a library
    assert (reward.name, reward.max_reward, reward.stationary) == ("plain", 5.0, False)
    assert score(reward, ["a", "bcd"]) == [1.0, 3.0]
    (bound,) = load("own_rewards.plain", scale=2.0)
    assert (bound.name, bound.max_reward, bound.stationary) == ("plain", 5.0, False)
    assert score(bound, ["a", "bcd"]) == [2.0, 6.0]
    load("own_rewards.plain")
    assert sys.path.count(str(own_file)) == 1


def test_async_functions(own_file):
    assert score(load("own_rewards.later")[0], ["a", "bcd"]) == [1.0, 3.0]
    assert score(load("own_rewards.later", scale=3.0)[0], ["a", "bcd"]) == [3.0, 9.0]


def test_a_class_is_built_once_with_its_keywords(own_file):
    (reward,) = load("own_rewards.Judge", size=7)
    assert (reward.name, reward.max_reward, reward.stationary) == ("Judge", 7.0, False)
    assert reward.func.size == 7
    assert score(reward, ["a", "b"]) == [1.0, 1.0] and score(reward, ["a"]) == [2.0]


def test_attributes_may_be_inherited(own_file):
    assert not load("own_rewards.Strict", size=7)[0].stationary
    assert not load("own_rewards.judge")[0].stationary


@pytest.mark.parametrize(("kwargs", "limit"), [({}, 40), ({"max_completion_length": 9}, 9)])
def test_max_completion_length_is_filled_in(own_file, kwargs, limit):
    assert score(load("own_rewards.limited", **kwargs)[0], ["a"]) == [limit]
    assert load("own_rewards.Judge", size=1, **kwargs)[0].func.limit == limit
    (reward,) = load("rewards.length.unfinished_penalty", **kwargs)
    ids = [[1] * (limit - 1), [1] * limit]
    assert reward.func(completion_ids=ids) == unfinished_penalty(ids, limit) == [0.0, -1.0]


DOTTED = (
    "is not a dotted name such as rewards.rouge.rouge_dissimilarity or my_file.my_reward (my_file.py in the working "
    "directory), nor the folder of a reward model"
)


@pytest.mark.parametrize(
    ("name", "kwargs", "error"),
    [
        ("mine", {}, f"reward_funcs: 'mine' {DOTTED}"),
        (
            "rewards.rogue.rouge_dissimilarity",
            {},
            "reward_funcs: rewards.rogue.rouge_dissimilarity: there is no module 'rewards.rogue' (did you mean "
            "rewards.rouge?)",
        ),
        (
            "own_reward.plain",
            {},
            "reward_funcs: own_reward.plain: there is no module 'own_reward' (did you mean own_rewards?)",
        ),
        ("xyz.plain", {}, "reward_funcs: xyz.plain: there is no module 'xyz' on sys.path or in {cwd}"),
        (
            "needy_rewards.plain",
            {},
            "reward_funcs: needy_rewards imports no_such_library, which is not installed",
        ),
        (
            "rewards.rouge.rouge_disimilarity",
            {},
            "reward_funcs: rewards.rouge has no function or class 'rouge_disimilarity'; did you mean "
            "rewards.rouge.rouge_dissimilarity?",
        ),
        (
            "rewards.length.xyz",
            {},
            "reward_funcs: rewards.length has no function or class 'xyz'; it has length_band_penalty, "
            "min_length_penalty, unfinished_penalty",
        ),
        (
            "rewards.length.min_length_penalty",
            {"min_wrds": 3},
            "reward_kwargs: rewards.length.min_length_penalty has no keyword 'min_wrds'; it takes completions, "
            "min_words",
        ),
        (
            "own_rewards.greedy",
            {},
            "reward_funcs: own_rewards.greedy(completions) does not take **kwargs; rewards are called with prompts, "
            "completions, completion_ids, every data column and more, so add **kwargs",
        ),
        (
            "own_rewards.plain",
            {"completions": ["a"]},
            "reward_kwargs: own_rewards.plain: 'completions' comes with the samples, so it cannot be given",
        ),
        (
            "own_rewards.make_greedy",
            {},
            "reward_funcs: own_rewards.make_greedy(completions) does not take **kwargs; rewards are called with "
            "prompts, completions, completion_ids, every data column and more, so add **kwargs",
        ),
        (
            "own_rewards.make_number",
            {"size": 3},
            "reward_funcs: own_rewards.make_number(size) takes neither **kwargs nor any of prompts, completions, "
            "completion_ids, so what it returns should be the reward, but it is a int",
        ),
        (
            "own_rewards.make_number",
            {},
            "reward_funcs: own_rewards.make_number(size) takes neither **kwargs nor any of prompts, completions, "
            "completion_ids, so what it returns should be the reward, but cannot be built with {{}}: make_number() "
            "missing 1 required positional argument: 'size'",
        ),
        (
            "own_rewards.Judge",
            {"sise": 3},
            "reward_kwargs: own_rewards.Judge has no keyword 'sise'; it takes size, max_completion_length",
        ),
        (
            "own_rewards.Judge",
            {"size": -1},
            "reward_kwargs: own_rewards.Judge cannot be built with {{'size': -1, 'max_completion_length': 40}}: size "
            "is below 0",
        ),
        (
            "own_rewards.Judge",
            {},
            "reward_kwargs: own_rewards.Judge cannot be built with {{'max_completion_length': 40}}: Judge.__init__() "
            "missing 1 required positional argument: 'size'",
        ),
    ],
)
def test_refused_names_and_keywords(own_file, name, kwargs, error):
    assert errors_of(load, name, **kwargs) == [error.format(cwd=own_file)]


@pytest.mark.parametrize("name", ["rewards.rouge", "own_rewards.LIMIT"])
def test_what_is_neither_function_nor_class_is_refused(own_file, name):
    assert len(errors_of(load, name)) == 1


def test_nearest_name_among_what_a_module_imports():
    (error,) = errors_of(load, "trl.rewards.think_formt_reward")
    assert error.endswith("did you mean trl.rewards.think_format_reward?")


def test_all_errors_at_once(own_file):
    names = ["mine", "own_rewards.plain", "own_rewards.plane", "own_rewards.greedy"]
    errors = errors_of(load_reward_functions, names, {"own_rewards.plain": {"scales": 1}}, None, 40)
    assert [error.split(" ")[1] for error in errors] == [
        "'mine'",
        "own_rewards.plain",
        "own_rewards",
        "own_rewards.greedy(completions)",
    ]


def test_a_function_may_make_the_reward(own_file):
    (reward,) = load("own_rewards.make_shout", letter="a")
    assert (reward.name, reward.max_reward, score(reward, ["banana", "b"])) == ("make_shout", 1.0, [3 / 40, 0.0])


TRL_CALLS = {  # name -> (keywords, completions, their numbers of tokens, rewards)
    "think_format_reward": ({}, ["<think>\nWell.\n</think>\nYes.", "Yes."], [3, 1], [1.0, 0.0]),
    "get_repetition_penalty_reward": ({"ngram_size": 2, "max_penalty": -2.0}, ["x", "y"], [5, 1], [-1.5, 0.0]),
    "get_soft_overlong_punishment": (
        {"max_completion_len": 10, "soft_punish_cache": 4},
        ["a", "b", "c"],
        [6, 8, 11],
        [0.0, -0.5, -1.0],
    ),
    "accuracy_reward": ({}, [r"\boxed{2}", r"\boxed{3}"], [3, 3], [1.0, 0.0]),
    "reasoning_accuracy_reward": ({}, [r"</think> \boxed{2}", r"\boxed{2}"], [3, 3], [1.0, 0.0]),
    "get_cosine_scaled_reward": ({"max_len": 4}, [r"\boxed{2}", r"\boxed{3}"], [2, 2], [0.75, -0.75]),
}


def test_every_reward_of_trl_is_tried():
    assert set(TRL_CALLS) == {name for name in trl.rewards.__all__ if not name.endswith("_rewards")}  # its modules


@pytest.mark.parametrize("name", TRL_CALLS)
def test_rewards_of_trl(name):
    kwargs, texts, lengths, expected = TRL_CALLS[name]
    columns = {"solution": ["$2$"] * len(texts)} if "accuracy" in name or "cosine" in name else {}
    arguments = [f"trl.rewards.{name}"], {f"trl.rewards.{name}": kwargs}, None, 40
    if columns and not is_math_verify_available():
        line = f"reward_funcs: trl.rewards.{name} needs math-verify: pip install 'math-verify[antlr4_13_2]'"
        assert errors_of(load_reward_functions, *arguments) == [line]
        return
    if columns:
        (error,) = errors_of(load_reward_functions, *arguments)
        assert error.endswith("needs 'solution': name the column in reward_columns, or give it in reward_kwargs")
    rewards = load_reward_functions(*arguments, reward_columns=list(columns))
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[7] * length for length in lengths]
    scores = score_completions(
        rewards, ["Q"] * len(texts), completions, ids, **columns, log_extra=lambda column, values: None
    )
    assert (rewards[0].name, scores[:, 0].tolist()) == (name, expected)


@pytest.fixture
def namesakes(own_file, model_folder, tokenizer):
    """A second file with a reward `plain`, and two reward models in folders of one last name."""
    (own_file / "other_rewards.py").write_text(OWN)
    torch.manual_seed(0)
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"vocab_size": len(tokenizer), "num_labels": 1}
    for place in ("a", "b"):
        LlamaForSequenceClassification(LlamaConfig(**config)).save_pretrained(own_file / place / "judge")
        tokenizer.save_pretrained(own_file / place / "judge")
    yield own_file
    sys.modules.pop("other_rewards", None)


def test_namesakes_have_metrics_of_their_own(namesakes):
    names = [
        "own_rewards.plain",
        "other_rewards.plain",
        "a/judge",
        str(namesakes / "b" / "judge"),
        "own_rewards.later",
    ]
    rewards = load_reward_functions(names, {names[1]: {"scale": 2.0}}, None, 40)
    logged = {}
    sampler = SimpleNamespace(
        reward_funcs=rewards,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: "abc"),
        args=SimpleNamespace(normalize_rewards=False),
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
    )
    row = {"prompt": "Question: Who?", "pmc_id": 0, "original_completion": "She."}
    RejectionSampler._score(sampler, [row], [[[5, 1], [6, 1]]], SimpleNamespace(global_step=3))
    metrics = ["own_rewards.plain", "other_rewards.plain", "a/judge", "b/judge", "later"]
    assert list(logged) == [f"rewards/{name}/mean" for name in metrics]
    assert [logged[f"rewards/{name}/mean"] for name in (metrics[0], metrics[1])] == [[3.0], [6.0]]
    (error,) = errors_of(load_reward_functions, ["a/judge", "./a/judge/"], {}, None, 40)
    assert error == "reward_funcs: './a/judge/' is given twice"


def reward(func, weight=1.0, max_reward=None, stationary=True):
    return RewardFunction("mine", func, weight, max_reward, stationary)


def test_scores_of_several_rewards():
    async def asynchronous(completions, **kwargs):
        return [None, 2, float("nan")]

    rewards = [reward(lambda **kwargs: [0.5, None, True]), reward(asynchronous)]
    scores = score_completions(rewards, ["Q"] * 3, ["a", "b", "c"], [[1]] * 3)
    np.testing.assert_array_equal(scores, [[0.5, np.nan], [np.nan, 2.0], [1.0, np.nan]])


class AsyncJudge:
    """As a client of a service: what it keeps belongs to the event loop of its first call."""

    def __init__(self):
        self.lock = asyncio.Lock()

    async def __call__(self, completions, **kwargs):
        async def ask():
            async with self.lock:
                await asyncio.sleep(0)

        await asyncio.gather(ask(), ask())
        return [4.0]


async def scaled(scale, completions, **kwargs):
    return [scale]


def test_rewards_of_every_kind_in_a_running_loop_and_outside():
    def uses_a_loop_itself(**kwargs):
        return asyncio.run(scaled(0.5, **kwargs))

    funcs = [partial(scaled, 2.0), lambda **kwargs: scaled(3.0, **kwargs), AsyncJudge(), lambda **kwargs: [1.0]]
    rewards = [reward(func) for func in funcs]

    async def notebook():
        return [score_completions(rewards, ["Q"], ["a"], [[1]]).tolist() for _ in range(2)]

    assert asyncio.run(notebook()) == [[[2.0, 3.0, 4.0, 1.0]]] * 2
    assert score_completions([*rewards, reward(uses_a_loop_itself)], ["Q"], ["a"], [[1]]).tolist() == [
        [2.0, 3.0, 4.0, 1.0, 0.5]
    ]


def test_when_an_async_reward_fails_the_others_are_stopped():
    stopped = threading.Event()

    async def endless(**kwargs):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def broken(**kwargs):
        await asyncio.sleep(0)
        return [1 / 0]

    with pytest.raises(ZeroDivisionError) as raised:
        score_completions([reward(endless), reward(broken)], ["Q"], ["a"], [[1]])
    assert raised.traceback[-1].name == "broken" and stopped.wait(timeout=5)


def test_async_rewards_run_side_by_side():
    async def first(completions, **kwargs):
        kwargs["trainer_state"].event = event = asyncio.Event()
        await asyncio.wait_for(event.wait(), timeout=5)
        return [1.0]

    async def second(completions, **kwargs):
        kwargs["trainer_state"].event.set()
        return [2.0]

    scores = score_completions(
        [reward(first), reward(second)], ["Q"], ["a"], [[1]], trainer_state=SimpleNamespace(event=None)
    )
    assert scores.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_rewards(count):
    message = f"the reward function 'mine' returned {count} rewards for 2 completions; it must return one a completion"
    with pytest.raises(ValueError, match=message):
        score_completions([reward(lambda **kwargs: [0.0] * count)], ["Q"] * 2, ["a", "b"], [[1]] * 2)


def test_an_exception_names_its_reward():
    def broken(completions, **kwargs):
        return [1 / 0]

    async def broken_later(completions, **kwargs):
        return [1 / 0]

    for func in (broken, broken_later):
        with pytest.raises(ZeroDivisionError) as raised:
            score_completions([reward(lambda **kwargs: [0.0]), reward(func)], ["Q"], ["a"], [[1]])
        assert raised.value.__notes__ == ["raised by the reward function 'mine'"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_reward_is_called_as_by_grpo(chat):
    """Both trainers' own methods, on stand-ins for the trainers: TRL's is what DESIGN.md calls the contract."""
    calls = []

    def recorder(**kwargs):
        calls.append(kwargs)
        return [0.0] * len(kwargs["completions"])

    prompt = [{"role": "user", "content": "Who?"}] if chat else "Question: Who?\nAnswer:"
    row = {"prompt": prompt, "pmc_id": 4, "original_completion": "She.", "topic": "books"}
    if chat:
        row["chat_template_kwargs"] = {"date_string": "1 May 2025"}
    texts, ids = ["a", "b c"], [[5, 1], [6, 7, 1]]
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    state = SimpleNamespace(global_step=3)

    ours = SimpleNamespace(
        reward_funcs=[reward(recorder)],
        tokenizer=SimpleNamespace(decode=lambda own, skip_special_tokens: texts[ids.index(own)]),
        args=SimpleNamespace(normalize_rewards=False),
        log_metric=lambda name, value: None,
    )
    RejectionSampler._score(ours, [row], [ids], state)
    theirs = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=state,
        reward_funcs=[recorder],
        reward_func_names=["mine"],
        reward_processing_classes=[None],
        environments=None,
        _log_completion_extra=lambda column, values: None,
        _log_metric=lambda name, value: None,
    )
    GRPOTrainer._calculate_rewards(theirs, [row] * 2, [prompt] * 2, completions, ids)

    by_us, by_grpo = calls
    assert set(by_us) == set(by_grpo)
    for name in ("log_extra", "log_metric"):
        assert [len(inspect.signature(call.pop(name)).parameters) for call in calls] == [2, 2]
    assert by_us == by_grpo
    assert by_us["completions"] == completions and by_us["topic"] == ["books"] * 2


numbers = st.floats(-100, 100)


@given(st.data())
def test_weighted_sum(data):
    weights = data.draw(st.lists(numbers, min_size=1, max_size=4))
    row = st.lists(st.none() | numbers, min_size=len(weights), max_size=len(weights))
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    totals = weighted_sum(
        np.array([[math.nan if value is None else value for value in row] for row in rows]),
        [reward(None, weight) for weight in weights],
    )
    assert totals.shape == (len(rows),)
    for total, row in zip(totals, rows, strict=True):
        expected = math.nan
        for value, weight in zip(row, weights, strict=True):
            if value is not None:
                expected = weight * value + (0.0 if math.isnan(expected) else expected)
        assert total == pytest.approx(expected, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize(
    ("rewards", "given", "maximum", "stationary"),
    [
        ([(1.0, 1.0, True), (1.0, 0.0, True)], None, 1.0, True),
        ([(0.5, 3.0, True), (2.0, -1.0, True)], None, -0.5, True),
        ([(1.0, 1.0, True), (0.0, 5.0, True)], None, 1.0, True),
        ([(1.0, 1.0, True), (1.0, 0.0, True)], 0.25, 0.25, True),
        ([(1.0, 1.0, True)], 0.0, 0.0, True),  # 0 is a maximum too
        ([(1.0, 1.0, True), (1.0, None, True)], None, None, True),
        ([(1.0, None, True)], 2.0, 2.0, True),
        # with a negative weight the largest total comes from the smallest reward, which is not known
        ([(1.0, 1.0, True), (-1.0, 1.0, True)], None, None, False),
        ([(1.0, 1.0, True), (1.0, 0.0, False)], None, None, False),
    ],
)
def test_maximal_reward(rewards, given, maximum, stationary):
    functions = [reward(None, *values) for values in rewards]
    assert maximal_reward(functions, given) == maximum
    assert is_stationary(functions) is stationary


@pytest.mark.parametrize("other", [(-1.0, 1.0, True), (1.0, 0.0, False)])
def test_a_maximum_that_would_do_nothing_is_refused(other):
    (error,) = errors_of(maximal_reward, [reward(None, *other)], 2.0)
    assert error.startswith("max_reward: mine may give") and error.endswith("remove max_reward")
