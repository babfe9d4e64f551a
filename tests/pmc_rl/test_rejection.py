"""RejectionSampler without a model: a generator and rewards that are told what to say."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from pmc_rl.rejection import RejectionSampler
from pmc_rl.scoring import RewardFunction

END = 1
ROWS = [{"prompt": f"Q{i}", "pmc_id": i, "original_completion": "a"} for i in range(3)]


class World:
    """Samples are [question, number, END]; a reward is a function of question, number and visit."""

    def __init__(self, reward, floors=(None,), weights=(1.0,), stationary=True, max_reward=None, **settings):
        self.step, self.drawn, self.metrics = 0, [], defaultdict(list)
        given = {
            "seed": 0,
            "num_generations": 4,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "selection": "best",
            "selection_temperature": 0.1,
            "num_selected": 1,
            "adaptive_generations": False,
            "normalize_rewards": False,
            "max_reward": None,
        }
        rewards = reward if isinstance(reward, list) else [reward]
        self.functions = [
            RewardFunction(f"r{i}", self.scored(func), weights[i], max_reward, stationary, floors[i])
            for i, func in enumerate(rewards)
        ]
        self.sampler = RejectionSampler(
            SimpleNamespace(**given | settings),
            self.functions,
            SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
            self.generate,
            {row["pmc_id"]: [row["pmc_id"]] for row in ROWS},
            [END],
            lambda name, value: self.metrics[name].append(value),
        )

    def generate(self, prompt_ids, sampling):
        assert len(set(sampling.seeds)) == len(sampling.seeds) == len(prompt_ids)
        numbers = defaultdict(int)
        samples = []
        for [question] in prompt_ids:
            samples.append([question, 100 * self.step + numbers[question], END])
            numbers[question] += 1
        self.drawn.append(dict(numbers))
        return samples

    def scored(self, func):
        return lambda completion_ids, **kwargs: [func(question, number) for question, number, _ in completion_ids]

    def visit(self, rows=ROWS):
        answers = self.sampler.visit(rows, SimpleNamespace(global_step=self.step))
        self.step += 1
        return [[answer.completion_ids[1] for answer in own] for own in answers]


def test_the_best_is_remembered_and_the_newer_of_equals_taken():
    values = {0: 0.2, 3: 0.5, 102: 0.5, 201: 0.4}
    world = World(lambda question, number: values.get(number, 0.0))
    assert [world.visit(ROWS[:1]) for _ in range(3)] == [[[3]], [[102]], [[102]]]
    assert world.metrics["reward_selected"] == [0.5, 0.5, 0.5] and world.sampler.num_samples == 12


def test_solved_questions_are_not_sampled():
    world = World(lambda question, number: float(question == 1 or number == 101), max_reward=1.0)
    assert world.visit() == [[0], [0], [0]]
    assert world.visit() == [[101], [0], [101]]
    assert world.visit() == [[101], [0], [101]]
    assert world.drawn == [{0: 4, 1: 4, 2: 4}, {0: 4, 2: 4}]
    assert world.metrics["frac_sampled"] == [1.0, 2 / 3, 0.0]


def test_several_answers_a_question_are_different_and_solved_together():
    world = World(
        lambda question, number: 1.0 if number in (2, 101) else 0.1 * (number % 100), max_reward=1.0, num_selected=2
    )
    assert world.visit(ROWS[:1]) == [[2, 3]]
    assert world.visit(ROWS[:1]) == [[101, 2]]
    assert world.visit(ROWS[:1]) == [[101, 2]] and len(world.drawn) == 2


def test_a_changing_reward_judges_stored_answers_afresh():
    world = World(lambda question, number: None, stationary=False, max_reward=1.0)
    asked = []

    def reward(completion_ids, **kwargs):
        asked.append([ids[1] for ids in completion_ids])
        return [number * (-1) ** world.step for _, number, _ in completion_ids]

    world.functions[0].func = reward
    assert [world.visit(ROWS[:1]) for _ in range(3)] == [[[3]], [[3]], [[203]]]
    assert asked == [[0, 1, 2, 3], [100, 101, 102, 103, 3], [200, 201, 202, 203, 3]]


def test_the_gate_shuts_out_the_dearest_sample_until_nothing_passes():
    """The second reward is a gate only: weight 0, floor 0.5."""
    fluent = {1: 0.6, 102: 0.9, 100: 0.4}
    world = World([lambda q, n: float(-n), lambda q, n: fluent.get(n, 0.0)], floors=(None, 0.5), weights=(1.0, 0.0))
    assert world.visit(ROWS[:1]) == [[1]]  # 0 has the larger reward
    # nothing of the second visit is as good as the stored answer, which passed
    assert world.visit(ROWS[:1]) == [[1]]
    closed = World(
        [lambda q, n: float(n), lambda q, n: 0.0 if n < 100 else 0.7], floors=(None, 0.5), weights=(1.0, 0.0)
    )
    assert closed.visit(ROWS[:1]) == [[3]]  # no alternative
    # later ones pass: they win although their reward is less
    closed.functions[0].func = lambda completion_ids, **kwargs: [-float(ids[1]) for ids in completion_ids]
    assert closed.visit(ROWS[:1]) == [[100]]


def test_what_does_not_pass_is_never_solved():
    world = World([lambda q, n: 1.0, lambda q, n: 0.0], floors=(None, 0.5), weights=(1.0, 0.0), max_reward=1.0)
    world.visit()
    assert not any(world.sampler.is_solved(row["pmc_id"]) for row in ROWS)
    assert len(world.drawn) == 1 and world.visit() and len(world.drawn) == 2


def test_a_reward_that_cannot_say_shuts_nobody_out():
    world = World([lambda q, n: float(n), lambda q, n: None], floors=(None, 0.5), weights=(1.0, 1.0))
    assert world.visit(ROWS[:1]) == [[3]]


def test_bradley_terry_remembers_nothing_and_samples_all():
    world = World(
        lambda question, number: float(number % 100 == 2),
        max_reward=1.0,
        selection="bradley_terry",
        selection_temperature=1e-3,
    )
    assert [world.visit() for _ in range(3)] == [[[2]] * 3, [[102]] * 3, [[202]] * 3]
    assert world.drawn == [{0: 4, 1: 4, 2: 4}] * 3 and not world.sampler.pool
    hot = World(lambda question, number: float(number), selection="bradley_terry", selection_temperature=1e6)
    picks = [own[0] % 100 for _ in range(40) for own in hot.visit()]
    assert np.bincount(picks, minlength=4).min() > 15  # of 120, 30 each


def test_adaptive_generations_go_where_questions_are_stuck():
    """Question 0 gets better each time, 1 never, 2 is solved at once: its share is there for the others."""
    rewards = {0: lambda n: n / 10000, 1: lambda n: 0.0, 2: lambda n: 1.0}
    world = World(
        lambda question, n: rewards[question](n), max_reward=1.0, adaptive_generations=True, num_generations=8
    )
    for _ in range(27):
        world.visit()
    assert [visit.get(0) for visit in world.drawn] == [1] * 27
    # 1 at first, as for every question; each visit without a better answer adds one: up to what 3 x 8 leaves
    assert [visit[1] for visit in world.drawn] == [1, *range(1, 24), 23, 23, 23]
    assert [visit.get(2) for visit in world.drawn] == [1, *[None] * 26]
    assert max(sum(visit.values()) for visit in world.drawn) <= 24


def test_normalized_rewards_have_equal_say_and_no_memory_of_scores():
    """The second reward is 100 times as wide, yet weighs as much as the first."""
    first, second = {0: 1.0, 1: 0.4, 2: 0.0, 3: 0.0}, {0: 0.0, 1: 60.0, 2: 100.0, 3: 0.0}
    funcs = [lambda q, n: first[n % 100], lambda q, n: second[n % 100]]
    plain = World(funcs, floors=(None, None), weights=(1.0, 1.0))
    scaled = World(funcs, floors=(None, None), weights=(2.0, 1.0), max_reward=1.0, normalize_rewards=True)
    assert plain.visit(ROWS[:1]) == [[2]]
    totals = np.array([[first[i], second[i]] for i in range(4)])
    totals = (totals - totals.mean(0)) / totals.std(0) @ [2.0, 1.0]
    assert scaled.visit(ROWS[:1]) == [[int(totals.argmax())]] != [[2]]
    assert scaled.metrics["reward_selected"] == [pytest.approx(totals.max())]
    scaled.visit(ROWS[:1])
    assert scaled.drawn == [{0: 4}] * 2  # the weighted sum of the maxima is no maximum of scaled rewards


def test_numbers_of_the_theory():
    values = {0: 0.0, 1: 1.0, 2: 1.0, 3: math.nan}
    world = World(lambda question, number: values[number % 100])
    world.visit()
    exps = np.exp([0.0, 1.0, 1.0])
    assert world.metrics["exp_reward/mean"] == [pytest.approx(exps.mean())]
    assert world.metrics["exp_reward/var"] == [pytest.approx(exps.var())]
    assert world.metrics["reward"] == [pytest.approx(2 / 3)] and world.metrics["distinct_samples"] == [1.0]
    world.sampler.generate = lambda prompt_ids, sampling: [[ids[0], 0, END] for ids in prompt_ids]
    world.visit()
    assert world.metrics["distinct_samples"] == [1.0, 0.25]
