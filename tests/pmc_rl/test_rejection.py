"""RejectionSampler without a model: a generator and rewards that are told what to say."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmc_rl import rejection
from pmc_rl.config import PMCConfig
from pmc_rl.rejection import RejectionSampler
from pmc_rl.scoring import RewardFunction

END = 1
ROWS = [{"prompt": f"Q{i}", "pmc_id": i, "original_completion": "a"} for i in range(3)]


class NumbersAsTokens:
    """The tokenizer: of a prompt its number, of ids their numbers."""

    def __call__(self, prompt, add_special_tokens):
        return {"input_ids": [int(prompt[1:])]}

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Makes worlds in which samples are [question, number, END], and rewards functions of question and number."""

    class World:
        def __init__(self, *rewards, floors=(None, None), weights=(1.0, 1.0), max_reward=None, **settings):
            self.step, self.drawn, self.metrics = 0, [], defaultdict(list)
            stationary, dear = settings.pop("stationary", True), settings.pop("asks_original", None)
            settings = {"num_generations": 4, "seed": 0, "use_cpu": True} | settings
            self.functions = [
                RewardFunction(f"r{i}", scored(func), weights[i], max_reward, stationary, floors[i], i == dear)
                for i, func in enumerate(rewards)
            ]
            self.sampler = RejectionSampler(
                PMCConfig(output_dir=str(tmp_path), **settings),
                self.functions,
                NumbersAsTokens(),
                [END],
                self.metrics,
            )

        def generate(self, model, prompt_ids, args, end_ids, sampling):
            assert len(set(sampling.seeds)) == len(sampling.seeds) == len(prompt_ids)
            numbers, samples = defaultdict(int), []
            for [question] in prompt_ids:
                samples.append([question, 100 * self.step + numbers[question], END])
                numbers[question] += 1
            self.drawn.append(dict(numbers))
            return samples

        def answer(self, rows=ROWS):
            """Numbers of the answers to a window, then the next step."""
            monkeypatch.setattr(rejection, "generate_together", self.generate)
            answers = self.sampler.answer_window(None, rows, SimpleNamespace(global_step=self.step))
            self.step += 1
            return [[answer.completion_ids[1] for answer in best] for best in answers]

    def scored(func):
        return lambda completion_ids, **kwargs: [func(question, number) for question, number, _ in completion_ids]

    return World


def test_the_best_is_remembered_and_the_newer_of_equals_taken(world):
    values = {0: 0.2, 3: 0.5, 102: 0.5, 201: 0.4}
    here = world(lambda question, number: values.get(number, 0.0))
    assert [here.answer(ROWS[:1]) for _ in range(3)] == [[[3]], [[102]], [[102]]]
    assert here.metrics["reward_selected"] == [0.5, 0.5, 0.5] and here.sampler.num_samples == 12


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=4, max_size=12),
    st.integers(1, 3),
    st.sampled_from([None, 2]),
)
def test_a_gate_is_asked_no_more_than_it_must_and_picks_as_if_asked_about_all(world, table, count, floor):
    """`table`: reward, gate and a second gate of each sample; several visits, several answers a question; a `floor` of
    the reward itself."""
    asked = []

    def gate(question, number):
        asked.append((question, number))
        return float(table[number % 100 % len(table)][1])

    def at(i):
        return lambda question, number: float(table[number % 100 % len(table)][i])

    settings = {"num_generations": len(table), "num_selected": count, "floors": (floor, 0.5, 0.5)}
    lazy = world(at(0), gate, at(2), weights=(1.0, 0.0, 0.0), **settings)
    eager = world(at(0), gate, at(2), weights=(1.0, 0.0, 0.0), stationary=False, **settings)
    # not stationary, it is asked about all; that the others are compared again does not matter to what is picked
    eager.sampler.scores_stay_valid = True
    for _ in range(2):
        asked.clear()
        picks = lazy.answer()
        few = list(asked)
        asked.clear()
        assert picks == eager.answer() and set(few) <= set(asked) and len(set(few)) == len(few)
        assert len(asked) == 3 * len(table)
        best_first = sorted((row for row in table if row[0] >= (floor or 0)), key=lambda row: -row[0])
        assert len(few) <= 3 * len(best_first)
        if sum(a and b for _, a, b in best_first) >= count:
            needed = [i for i, (_, a, b) in enumerate(best_first, 1) if a and b][count - 1]
            in_handfuls = 2 ** needed.bit_length() - 1  # of 1, 2, 4 ...
            assert len(few) == 3 * min(in_handfuls, len(best_first))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=4, max_size=9), st.integers(1, 3))
def test_the_model_before_is_asked_about_nothing_that_a_floor_has_shut_out(world, table, count):
    """`table`: a reward with a floor, and what the model before says, of weight 2. Learned is as if all were asked."""
    asked = []

    def before(question, number):
        asked.append((question, number))
        return table[number % 100 % len(table)][1] / 4

    settings = {"num_generations": len(table), "num_selected": count, "floors": (1.0, 0.5), "weights": (1.0, 2.0)}
    late = world(lambda q, n: float(table[n % 100 % len(table)][0]), before, asks_original=1, **settings)
    plain = world(lambda q, n: float(table[n % 100 % len(table)][0]), before, **settings)
    for _ in range(2):
        asked.clear()
        late.answer()
        open_to = [(row["pmc_id"], n) for row in ROWS for n in range(len(table)) if table[n][0]]
        assert sorted((question, number % 100) for question, number in asked) == open_to
        plain.answer()
        assert late.sampler.pool == plain.sampler.pool
        assert any(late.sampler.pool.values()) == any(passes and value >= 2 for passes, value in table)


def test_names_are_suppressed_in_the_samples_of_their_question(world, monkeypatch):
    monkeypatch.setattr(rejection, "name_tokens", lambda tokenizer, row: [row["pmc_id"] + 7])
    for suppress_names in (True, False):
        here = world(lambda question, number: 0.0, suppress_names=suppress_names, num_generations=2)
        generate, seen = here.generate, []
        here.generate = lambda *args: seen.append((args[1], args[-1].suppressed)) or generate(*args)  # noqa: B023
        here.answer(ROWS[1:])
        assert seen == [([[1], [1], [2], [2]], [[8], [8], [9], [9]] if suppress_names else [[]] * 4)]


def test_solved_questions_are_not_sampled(world):
    here = world(lambda question, number: float(question == 1 or number == 101), max_reward=1.0)
    assert [here.answer() for _ in range(3)] == [[[0], [0], [0]], [[101], [0], [101]], [[101], [0], [101]]]
    assert here.drawn == [{0: 4, 1: 4, 2: 4}, {0: 4, 2: 4}]
    assert here.metrics["frac_sampled"] == [1.0, 2 / 3, 0.0]


def test_several_answers_a_question_are_different_and_solved_together(world):
    values = {2: 1.0, 101: 1.0}
    here = world(lambda question, n: values.get(n, 0.1 * (n % 100)), max_reward=1.0, num_selected=2)
    assert [here.answer(ROWS[:1]) for _ in range(3)] == [[[2, 3]], [[101, 2]], [[101, 2]]]
    assert len(here.drawn) == 2


def test_a_changing_reward_judges_stored_answers_afresh(world):
    here, asked = world(lambda question, number: None, stationary=False, max_reward=1.0), []

    def reward(completion_ids, **kwargs):
        asked.append([ids[1] for ids in completion_ids])
        return [number * (-1) ** here.step for _, number, _ in completion_ids]

    here.functions[0].func = reward
    assert [here.answer(ROWS[:1]) for _ in range(3)] == [[[3]], [[3]], [[203]]]
    assert asked == [[0, 1, 2, 3], [100, 101, 102, 103, 3], [200, 201, 202, 203, 3]]


def test_the_gate_shuts_out_the_dearest_sample(world):
    """The second reward is a gate only: weight 0, floor 0.5."""
    gate = {"floors": (None, 0.5), "weights": (1.0, 0.0)}
    fluent = {1: 0.6, 102: 0.9, 100: 0.4}
    here = world(lambda q, n: float(-n), lambda q, n: fluent.get(n, 0.0), **gate)
    # 0 has the larger reward; nothing of the second window is as good as the stored answer, which passed
    assert [here.answer(ROWS[:1]) for _ in range(2)] == [[[1]], [[1]]]
    closed = world(lambda q, n: float(-n), lambda q, n: 0.0 if n < 100 else 0.7, **gate)
    assert closed.answer(ROWS[:1]) == [[]] and closed.sampler.visits_without_gain == {0: 1}  # nothing to be learned
    assert closed.answer(ROWS[:1]) == [[100]] and closed.sampler.visits_without_gain == {0: 0}
    assert closed.metrics["frac_passed"] == [0.0, 1.0] and closed.metrics["reward_selected"] == [-100.0]
    never = world(lambda q, n: 1.0, lambda q, n: 0.0, max_reward=1.0, **gate)  # what does not pass is never solved
    assert never.answer() and never.answer() and len(never.drawn) == 2
    unsure = world(lambda q, n: float(n), lambda q, n: None, floors=(None, 0.5))  # shuts nobody out
    assert unsure.answer(ROWS[:1]) == [[3]]


def test_bradley_terry_remembers_nothing_and_samples_all(world):
    soft = {"selection": "bradley_terry", "max_reward": 1.0}
    here = world(lambda question, number: float(number % 100 == 2), selection_temperature=1e-3, **soft)
    assert [here.answer() for _ in range(3)] == [[[2]] * 3, [[102]] * 3, [[202]] * 3]
    assert here.drawn == [{0: 4, 1: 4, 2: 4}] * 3 and not here.sampler.pool
    hot = world(lambda question, number: float(number), selection_temperature=1e6, **soft)
    picks = [picked[0] % 100 for _ in range(40) for picked in hot.answer()]
    assert np.bincount(picks, minlength=4).min() > 15  # of 120, 30 each


def test_adaptive_generations_go_where_questions_are_stuck(world):
    """Question 0 gets better each time, 1 never, 2 is solved at once: its share is there for the others."""
    rewards = {0: lambda n: n / 10000, 1: lambda n: 0.0, 2: lambda n: 1.0}
    adaptive = {"adaptive_generations": True, "num_generations": 8, "max_reward": 1.0}
    here = world(lambda question, n: rewards[question](n), **adaptive)
    for _ in range(27):
        here.answer()
    assert [drawn.get(0) for drawn in here.drawn] == [1] * 27
    # 1 at first, as for every question; each window without a better answer adds one: up to what 3 x 8 leaves
    assert [drawn[1] for drawn in here.drawn] == [1, *range(1, 24), 23, 23, 23]
    assert [drawn.get(2) for drawn in here.drawn] == [1, *[None] * 26]
    assert max(sum(drawn.values()) for drawn in here.drawn) <= 24


def test_normalized_rewards_have_equal_say_and_no_memory_of_scores(world):
    """The second reward is 100 times as wide, yet weighs as much as the first."""
    first, second = {0: 1.0, 1: 0.4, 2: 0.0, 3: 0.0}, {0: 0.0, 1: 60.0, 2: 100.0, 3: 0.0}
    rewards = [lambda q, n: first[n % 100], lambda q, n: second[n % 100]]
    plain = world(*rewards)
    scaled = world(*rewards, weights=(2.0, 1.0), max_reward=1.0, normalize_rewards=True)
    assert plain.answer(ROWS[:1]) == [[2]]
    totals = np.array([[first[i], second[i]] for i in range(4)])
    totals = (totals - totals.mean(0)) / totals.std(0) @ [2.0, 1.0]
    assert scaled.answer(ROWS[:1]) == [[int(totals.argmax())]] != [[2]]
    assert scaled.metrics["reward_selected"] == [pytest.approx(totals.max())]
    scaled.answer(ROWS[:1])
    assert scaled.drawn == [{0: 4}] * 2  # the weighted sum of the maxima is no maximum of scaled rewards


def test_numbers_of_the_theory(world, monkeypatch):
    values = {0: 0.0, 1: 1.0, 2: 1.0, 3: math.nan}
    here = world(lambda question, number: values[number % 100])
    here.answer()
    exps = np.exp([0.0, 1.0, 1.0])
    assert here.metrics["exp_reward/mean"] == [pytest.approx(exps.mean())]
    assert here.metrics["exp_reward/var"] == [pytest.approx(exps.var())]
    assert here.metrics["reward"] == [pytest.approx(2 / 3)] and here.metrics["distinct_samples"] == [1.0]
    here.generate = lambda model, prompt_ids, *rest: [[ids[0], 0, END] for ids in prompt_ids]
    here.answer()
    assert here.metrics["distinct_samples"] == [1.0, 0.25]
