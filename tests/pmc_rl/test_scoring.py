"""Rewards by name: what is found, what is refused and with which words, what a reward is called with, the totals."""

import asyncio
import inspect
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import trl.rewards
from trl import GRPOTrainer
from trl.import_utils import is_math_verify_available

from pmc_rl import reward_loading
from pmc_rl.config import PMCConfig
from pmc_rl.rejection import RejectionSampler
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.scoring import (
    RewardFunction,
    is_stationary,
    maximal_reward,
    passes_floors,
    score_completions,
    weighted_sum,
)
from rewards.length import min_length_penalty, unfinished_penalty
from rewards.rouge import rouge_dissimilarity
from tests.conftest import errors_of

MINE = """\
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
def my_file(tmp_path, monkeypatch):
    """`my_rewards.py` in the working directory; path and modules are put back afterwards."""
    for name in ("my_rewards", "other_rewards"):
        (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "needy_rewards.py").write_text("import no_such_library.inside\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_rewards", "other_rewards", "needy_rewards"):
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


def test_functions_classes_and_makers_of_ones_own(my_file):
    for kwargs, scale in (({}, 1), ({"scale": 2.0}, 2)):
        for name in ("plain", "later"):
            (reward,) = load(f"my_rewards.{name}", **kwargs)
            assert reward.name == name and score(reward, ["a", "bcd"]) == [scale, 3 * scale]
        (reward,) = load("my_rewards.plain", **kwargs)
        assert (reward.max_reward, reward.stationary) == (5.0, False)
    assert sys.path[-1] == str(my_file) and sys.path.count(str(my_file)) == 1  # last: it may not hide a library
    (reward,) = load("my_rewards.Judge", size=7)
    assert (reward.name, reward.max_reward, reward.stationary, reward.func.size) == ("Judge", 7.0, False, 7)
    assert score(reward, ["a", "b"]) == [1.0, 1.0] and score(reward, ["a"]) == [2.0]  # built once
    assert not load("my_rewards.judge")[0].stationary
    (reward,) = load("my_rewards.make_shout", letter="a")
    assert (reward.name, reward.max_reward, score(reward, ["banana", "b"])) == ("make_shout", 1.0, [3 / 40, 0.0])


@pytest.mark.parametrize(("kwargs", "limit"), [({}, 40), ({"max_completion_length": 9}, 9)])
def test_max_completion_length_is_filled_in(my_file, kwargs, limit):
    assert score(load("my_rewards.limited", **kwargs)[0], ["a"]) == [limit]
    assert load("my_rewards.Judge", size=1, **kwargs)[0].func.limit == limit
    (reward,) = load("rewards.length.unfinished_penalty", **kwargs)
    ids = [[1] * (limit - 1), [1] * limit]
    assert reward.func(completion_ids=ids) == unfinished_penalty(ids, limit) == [0.0, -1.0]


REFUSED = [
    ("mine", {}, "reward_funcs: 'mine' is not a dotted name"),
    ("rewards.rogue.rouge", {}, "there is no module 'rewards.rogue' on sys.path", "Did you mean 'rewards.rouge'?"),
    ("my_reward.plain", {}, "there is no module 'my_reward' on sys.path", "Did you mean 'my_rewards'?"),
    ("needy_rewards.plain", {}, "reward_funcs: needy_rewards imports no_such_library, which is not installed"),
    ("rewards.rouge.rouge_disimilarity", {}, "Did you mean 'rewards.rouge.rouge_dissimilarity'?"),
    ("trl.rewards.think_formt_reward", {}, "Did you mean 'trl.rewards.think_format_reward'?"),
    ("rewards.length.xyz", {}, "rewards.length has no function or class 'xyz'. It has", "length_band_penalty"),
    ("rewards.length.min_length_penalty", {"x": 3}, "has no keyword 'x'; it takes completions, min_words"),
    ("rewards.rouge", {}, "is a module, not a function or class"),
    ("my_rewards.LIMIT", {}, "is a int, not a function or class"),
    ("my_rewards.greedy", {}, "reward_funcs: my_rewards.greedy(completions) does not take **kwargs"),
    ("my_rewards.plain", {"completions": ["a"]}, "'completions' comes with the samples, so it cannot be given"),
    ("my_rewards.make_greedy", {}, "my_rewards.make_greedy(completions) does not take **kwargs"),
    ("my_rewards.make_number", {"size": 3}, "my_rewards.make_number makes a int, no reward"),
    ("my_rewards.make_number", {}, "cannot be built with {}: make_number() missing 1", "makes one"),
    ("my_rewards.Judge", {"sise": 3}, "has no keyword 'sise'; it takes size, max_completion_length"),
    ("my_rewards.Judge", {"size": -1}, "cannot be built with {", "'size': -1", "size is below 0"),
]


@pytest.mark.parametrize(("name", "kwargs", "fragments"), [(name, kwargs, rest) for name, kwargs, *rest in REFUSED])
def test_refused_names_and_keywords(my_file, name, kwargs, fragments):
    (error,) = errors_of(load, name, **kwargs)
    assert error.startswith(("reward_funcs: ", "reward_kwargs: ")) and all(part in error for part in fragments)


def test_all_errors_at_once(my_file):
    names = ["mine", "my_rewards.plain", "my_rewards.plane", "my_rewards.greedy"]
    errors = errors_of(load_reward_functions, names, {"my_rewards.plain": {"scales": 1}}, None, 40)
    parts = ["'mine'", "my_rewards.plain", "my_rewards", "my_rewards.greedy(completions)"]
    assert [error.split()[1] for error in errors] == parts


TRL_CALLS = {  # name -> (keywords, completions, their numbers of tokens, rewards)
    "think_format_reward": ({}, ["<think>\nWell.\n</think>\nYes.", "Yes."], [3, 1], [1.0, 0.0]),
    "get_repetition_penalty_reward": ({"ngram_size": 2, "max_penalty": -2.0}, ["x", "y"], [5, 1], [-1.5, 0.0]),
    "get_soft_overlong_punishment": (
        {"max_completion_len": 10, "soft_punish_cache": 4},
        *(["a", "b", "c"], [6, 8, 11], [0.0, -0.5, -1.0]),
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


def sampler(tmp_path, rewards, texts=None):
    """Samples nothing; `texts` by the first id of a completion."""
    decoder = SimpleNamespace(decode=lambda ids, skip_special_tokens: (texts or {}).get(ids[0], "abc"))
    args = PMCConfig(output_dir=str(tmp_path), use_cpu=True)
    return RejectionSampler(args, rewards, decoder, [1], defaultdict(list))


def test_namesakes_have_metrics_of_their_own(my_file, monkeypatch, tmp_path):
    judge = lambda name: lambda completions, **kwargs: [0.0] * len(completions)  # noqa: E731
    monkeypatch.setattr(reward_loading, "RewardModel", judge)
    names = ["my_rewards.plain", "other_rewards.plain", "a/judge", str(my_file / "b" / "judge"), "my_rewards.later"]
    rewards = load_reward_functions(names, {names[1]: {"scale": 2.0}}, None, 40)
    row = {"prompt": "Question: Who?", "pmc_id": 0, "original_completion": "She."}
    asked = sampler(tmp_path, rewards)
    asked.score([row], [[[5, 1], [6, 1]]], SimpleNamespace(global_step=3))
    metrics = ["my_rewards.plain", "other_rewards.plain", "a/judge", "b/judge", "later"]
    assert asked.metrics == {
        f"rewards/{name}/mean": [mean] for name, mean in zip(metrics, [3, 6, 0, 0, 3], strict=True)
    }
    (error,) = errors_of(load_reward_functions, ["a/judge", "./a/judge/"], {}, None, 40)
    assert error == "reward_funcs: './a/judge/' is given twice"


def reward(func, weight=1.0, max_reward=None, stationary=True):
    return RewardFunction("mine", func, weight, max_reward, stationary)


def test_scores_of_several_rewards():
    async def asynchronous(completions, **kwargs):
        return [None, 2, float("nan")]

    rewards = [reward(lambda **kwargs: [0.5, None, True], 2.0), reward(asynchronous, -0.5)]
    scores = score_completions(rewards, ["Q"] * 3, ["a", "b", "c"], [[1]] * 3)
    np.testing.assert_array_equal(scores, [[0.5, np.nan], [np.nan, 2.0], [1.0, np.nan]])
    rewards[0].floor, rewards[1].floor = 0.75, None
    assert passes_floors(scores, rewards).tolist() == [False, True, True]  # who cannot say shuts nobody out
    np.testing.assert_array_equal(weighted_sum(scores, rewards), [1.0, -1.0, 2.0])
    table = np.array([[1.0, 3.0], [0.0, -4.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(weighted_sum(table, rewards), [0.5, 2.0, np.nan])


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
    outside = score_completions([*rewards, reward(uses_a_loop_itself)], ["Q"], ["a"], [[1]])
    assert outside.tolist() == [[2.0, 3.0, 4.0, 1.0, 0.5]]


def test_async_rewards_run_side_by_side():
    async def first(trainer_state, **kwargs):
        trainer_state.event = asyncio.Event()
        await asyncio.wait_for(trainer_state.event.wait(), timeout=5)
        return [1.0]

    async def second(trainer_state, **kwargs):
        trainer_state.event.set()
        return [2.0]

    rewards = [reward(first), reward(second)]
    assert score_completions(rewards, ["Q"], ["a"], [[1]], trainer_state=SimpleNamespace()).tolist() == [[1.0, 2.0]]


def test_an_exception_names_its_reward():
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"the reward function 'mine' returned {count} rewards for 2 completions"):
            score_completions([reward(lambda **kwargs: [0.0] * count)], ["Q"] * 2, ["a", "b"], [[1]] * 2)  # noqa: B023

    async def broken_later(completions, **kwargs):
        return [1 / 0]

    for func in (lambda **kwargs: [1 / 0], broken_later):
        with pytest.raises(ZeroDivisionError) as raised:
            score_completions([reward(lambda **kwargs: [0.0]), reward(func)], ["Q"], ["a"], [[1]])
        assert raised.value.__notes__ == ["raised by the reward function 'mine'"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_reward_is_called_as_by_grpo(chat, tmp_path):
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

    sampler(tmp_path, [reward(recorder)], {5: "a", 6: "b c"}).score([row], [ids], state)
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
    for name in ("log_extra", "log_metric"):
        assert [len(inspect.signature(call.pop(name)).parameters) for call in calls] == [2, 2]
    assert by_us == by_grpo
    assert by_us["completions"] == completions and by_us["topic"] == ["books"] * 2


@pytest.mark.parametrize(
    ("rewards", "given", "maximum", "stationary"),
    [
        ([(1.0, 1.0, True), (1.0, 0.0, True)], None, 1.0, True),
        ([(0.5, 3.0, True), (2.0, -1.0, True)], None, -0.5, True),
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
    if not stationary:  # a maximum would do nothing
        (error,) = errors_of(maximal_reward, functions, 2.0)
        assert error.startswith("max_reward: mine may give") and error.endswith("remove max_reward")
