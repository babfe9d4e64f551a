"""Rejection sampling: one visit to a window of questions: samples, rewards, picks, and the pool of best answers."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, TrainerState

from pmc_rl.config import PMCConfig
from pmc_rl.generation import Sampling, decode_completion, sample_seeds
from pmc_rl.scoring import (
    RewardFunction,
    is_stationary,
    maximal_reward,
    passes_floors,
    score_completions,
    weighted_sum,
)
from pmc_rl.selection import (
    BestAnswer,
    best_answers,
    close_gate,
    is_solved,
    normalize_within_questions,
    select_best,
    select_bradley_terry,
    selection_uniforms,
    share_samples,
)


class RejectionSampler:
    """
    Finds answers to train on: samples the questions of a window, scores the samples, selects.

    With `selection: best` the best `num_selected` answers of each question are remembered in `pool`, and a question
    whose answers have the maximal reward is solved: it is not sampled again. Where scores cannot be compared over time
    (a reward is not stationary, or `normalize_rewards`), the remembered answers are scored again with the new ones.

    Several processes visit the same window together: they share the sampling, the main one scores, and all select, so
    that the pool is the same everywhere and rewards are asked as by one process.

    Args:
        args ([`~pmc_rl.config.PMCConfig`]): the settings.
        reward_funcs (`list[RewardFunction]`): as [`~pmc_rl.scoring.load_reward_functions`] makes them.
        tokenizer: turns samples into text for the rewards.
        generate (`Callable`): prompt ids and [`~pmc_rl.generation.Sampling`] to completion ids, in all processes.
        prompt_ids (`dict[int, list[int]]`): the token ids of each question's prompt, by `pmc_id`.
        end_ids (`list[int]`): ids that end an answer.
        log_metric (`Callable[[str, float], None]`): takes each number of a visit.
    """

    def __init__(
        self,
        args: PMCConfig,
        reward_funcs: list[RewardFunction],
        tokenizer: PreTrainedTokenizerBase,
        generate: Callable[[list[list[int]], Sampling], list[list[int]]],
        prompt_ids: dict[int, list[int]],
        end_ids: list[int],
        log_metric: Callable[[str, float], None],
    ):
        self.args = args
        self.reward_funcs = reward_funcs
        self.tokenizer = tokenizer
        self.generate = generate
        self.prompt_ids = prompt_ids
        self.end_ids = end_ids
        self.log_metric = log_metric
        self.comparable = is_stationary(reward_funcs) and not args.normalize_rewards
        self.max_reward = None if args.normalize_rewards else maximal_reward(reward_funcs, args.max_reward)
        self.pool: dict[int, list[BestAnswer]] = {}
        self.stuck: dict[int, int] = {}  # visits since a question's best answer last became better
        self.num_samples = 0

    def state(self) -> dict:
        """All that is remembered from visit to visit, for JSON."""
        pool = {row_id: [asdict(answer) for answer in answers] for row_id, answers in self.pool.items()}
        return {"pool": pool, "stuck": self.stuck, "num_samples": self.num_samples}

    def load_state(self, state: dict) -> None:
        """Takes up what [`state`] gave, read from JSON, whose keys are text."""
        self.pool = {int(key): [BestAnswer(**answer) for answer in own] for key, own in state["pool"].items()}
        self.stuck = {int(key): visits for key, visits in state["stuck"].items()}
        self.num_samples = state["num_samples"]

    def is_solved(self, row_id: int) -> bool:
        """Whether nothing better can be sampled for a question."""
        return is_solved(self.pool.get(row_id, []), self.args.num_selected, self.max_reward)

    def visit(self, rows: list[dict[str, Any]], state: TrainerState) -> list[list[BestAnswer]]:
        """For each row of a window 1 to `num_selected` answers to train on, best first."""
        unsolved = [row for row in rows if not self.is_solved(row["pmc_id"])]
        picked = self._sample(unsolved, len(rows), state) if unsolved else {}
        answers = [picked.get(row["pmc_id"]) or self.pool[row["pmc_id"]] for row in rows]
        self.log_metric("reward_selected", float(np.mean([own[0].reward for own in answers])))
        self.log_metric("frac_sampled", len(unsolved) / len(rows))
        return answers

    def _sample(self, rows: list[dict], window: int, state: TrainerState) -> dict[int, list[BestAnswer]]:
        args, started = self.args, time.perf_counter()
        counts = [args.num_generations] * len(rows)
        if args.adaptive_generations:
            stuck = [self.stuck.get(row["pmc_id"], 0) for row in rows]
            counts = share_samples(stuck, args.num_generations, budget=args.num_generations * window)
        seeds = [
            seed
            for row, count in zip(rows, counts, strict=True)
            for seed in sample_seeds(args.seed, state.global_step, [row["pmc_id"]], count)
        ]
        prompts = [
            self.prompt_ids[row["pmc_id"]] for row, count in zip(rows, counts, strict=True) for _ in range(count)
        ]
        flat = self.generate(prompts, Sampling(args.temperature, args.top_k, args.top_p, seeds))
        ends = np.cumsum(counts)
        samples = [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
        generated = time.perf_counter()
        self.num_samples += len(flat)
        self.log_metric("time/generation", generated - started)

        stored = [[] if self.comparable else self.pool.get(row["pmc_id"], []) for row in rows]
        candidates = [new + [old.completion_ids for old in olds] for new, olds in zip(samples, stored, strict=True)]
        rewards, passed = self.score(rows, candidates, state)
        self.log_metric("time/rewards", time.perf_counter() - generated)
        self._log_samples(samples, rewards)
        picked = self._pick(rows, candidates, rewards, passed, state.global_step)
        if args.selection == "best":
            for row_id, answers in picked.items():
                before = self.pool.get(row_id, [])
                now = best_answers(answers, before if self.comparable else [], args.num_selected)
                better = not before or now[0].rank > before[0].rank
                self.stuck[row_id] = 0 if better else self.stuck[row_id] + 1
                self.pool[row_id] = picked[row_id] = now
        return picked

    def _pick(
        self, rows: list[dict], candidates: list[list[list[int]]], rewards: np.ndarray, passed: np.ndarray, step: int
    ) -> dict[int, list[BestAnswer]]:
        args, row_ids = self.args, [row["pmc_id"] for row in rows]
        gated = close_gate(rewards, passed)
        if args.selection == "best":
            picks = select_best(gated, gated.shape[1])  # all in order: which are equal texts is seen later
        else:
            uniforms = selection_uniforms(args.seed, step, row_ids, gated.shape[1])
            picks = select_bradley_terry(gated, args.selection_temperature, uniforms, args.num_selected)
        return {
            row_id: [BestAnswer(own[pick], float(rewards[i, pick]), bool(passed[i, pick])) for pick in picks[i]]
            for i, (row_id, own) in enumerate(zip(row_ids, candidates, strict=True))
        }

    def score(
        self, rows: list[dict], candidates: list[list[list[int]]], state: TrainerState
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Total rewards of each row's candidates, and whether they pass the gate, both of shape `(rows, candidates)`.

        Rows may have different numbers of candidates: the rest is NaN. The main process asks the rewards.
        """
        scores = [self._score(rows, candidates, state) if PartialState().is_main_process else None]
        return broadcast_object_list(scores)[0]

    def _score(
        self, rows: list[dict], candidates: list[list[list[int]]], state: TrainerState
    ) -> tuple[np.ndarray, np.ndarray]:
        width = max(len(own) for own in candidates)
        real = np.array([[i < len(own) for i in range(width)] for own in candidates])
        repeated = [row for row, own in zip(rows, candidates, strict=True) for _ in own]
        ids = [completion for own in candidates for completion in own]
        texts = [decode_completion(self.tokenizer, completion) for completion in ids]
        chat = not isinstance(rows[0]["prompt"], str)
        rewards_per_func = score_completions(
            self.reward_funcs,
            prompts=[row["prompt"] for row in repeated],
            completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            completion_ids=ids,
            **{name: [row[name] for row in repeated] for name in rows[0] if name != "prompt"},
            trainer_state=state,
            log_extra=lambda column, values: None,  # the table has no room for further columns
            log_metric=self.log_metric,
        )
        for i, reward in enumerate(self.reward_funcs):
            if not np.isnan(rewards_per_func[:, i]).all():
                self.log_metric(f"rewards/{reward.name}/mean", float(np.nanmean(rewards_per_func[:, i])))
        passed = np.zeros(real.shape, dtype=bool)
        passed[real] = passes_floors(rewards_per_func, self.reward_funcs)
        if self.args.normalize_rewards:
            table = np.full((*real.shape, len(self.reward_funcs)), np.nan)
            table[real] = rewards_per_func
            rewards_per_func = normalize_within_questions(table)[real]
        rewards = np.full(real.shape, np.nan)
        rewards[real] = weighted_sum(rewards_per_func, self.reward_funcs)
        return rewards, passed

    def _log_samples(self, samples: list[list[list[int]]], rewards: np.ndarray) -> None:
        """Numbers of the new samples; what was stored before counts in none of them."""
        flat = [ids for own in samples for ids in own]
        self.log_metric("completions/mean_length", float(np.mean([len(ids) for ids in flat])))
        self.log_metric("completions/clipped_ratio", float(np.mean([ids[-1] not in self.end_ids for ids in flat])))
        self.log_metric("distinct_samples", float(np.mean([len(set(map(tuple, own))) / len(own) for own in samples])))
        scored = [own[: len(new)][~np.isnan(own[: len(new)])] for own, new in zip(rewards, samples, strict=True)]
        scored = [own for own in scored if len(own)]
        if scored:
            self.log_metric("reward", float(np.concatenate(scored).mean()))
            self.log_metric("reward_std", float(np.mean([own.std() for own in scored])))
            # Theorem 1 of the paper: the first goes to its maximum, the second to 0
            self.log_metric("exp_reward/mean", float(np.mean([np.exp(own).mean() for own in scored])))
            self.log_metric("exp_reward/var", float(np.mean([np.exp(own).var() for own in scored])))
