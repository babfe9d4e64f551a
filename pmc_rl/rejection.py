"""Rejection sampling: samples for a window of questions, their rewards, the picks, and the pool of best answers.

On the reading path behind trainer.py, before generation.py: [`RejectionSampler.answer_window`] is the method in short.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

from pmc_rl import scoring, selection
from pmc_rl.config import PMCConfig
from pmc_rl.generation import Sampling, generate_together, sample_seeds
from pmc_rl.progress import sample_metrics
from pmc_rl.prompts import decode_completion, encode_prompt, name_tokens
from pmc_rl.scoring import RewardFunction
from pmc_rl.selection import BestAnswer

Samples = list[list[list[int]]]  # of each question its completions, as token ids


class RejectionSampler:
    """
    With `selection: best` the best `num_selected` answers of each question are remembered in `pool`, and a question
    whose answers have the maximal reward is solved: it is not sampled again. Where scores cannot be compared over time
    (a reward is not stationary, or `normalize_rewards`), the remembered answers are scored again with the new ones.

    Several processes answer the same window together: they share the sampling, the main one scores, and all select, so
    that the pool is the same everywhere and rewards are asked as by one process. `metrics` takes the window's numbers.
    """

    def __init__(
        self,
        args: PMCConfig,
        reward_funcs: list[RewardFunction],
        tokenizer: PreTrainedTokenizerBase,
        end_ids: list[int],
        metrics: dict[str, list[float]],
    ):
        self.args = args
        self.reward_funcs = reward_funcs
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.metrics = metrics
        self.scores_stay_valid = scoring.is_stationary(reward_funcs) and not args.normalize_rewards
        numbered = enumerate(reward_funcs) if args.selection == "best" and not args.normalize_rewards else ()
        is_late = [f.asks_original or (f.weight == 0 and f.floor is not None) for f in reward_funcs]  # dear, or a gate
        self.late = [i for i, f in numbered if f.stationary and is_late[i]]
        self.max_reward = None if args.normalize_rewards else scoring.maximal_reward(reward_funcs, args.max_reward)
        self.pool: dict[int, list[BestAnswer]] = {}
        self.visits_without_gain: dict[int, int] = {}  # since a question's best answer last became better
        self.num_samples = 0

    def state(self) -> dict:
        """All that is remembered from window to window, for JSON."""
        pool = {row_id: [asdict(answer) for answer in answers] for row_id, answers in self.pool.items()}
        return {"pool": pool, "visits_without_gain": self.visits_without_gain, "num_samples": self.num_samples}

    def load_state(self, state: dict) -> None:
        """Takes up what [`state`] gave, read from JSON, whose keys are text."""
        self.pool = {int(key): [BestAnswer(**answer) for answer in pool] for key, pool in state["pool"].items()}
        self.visits_without_gain = {int(key): visits for key, visits in state["visits_without_gain"].items()}
        self.num_samples = state["num_samples"]

    def is_solved(self, row_id: int) -> bool:
        """Whether nothing better can be sampled for a question."""
        return selection.is_solved(self.pool.get(row_id, []), self.args.num_selected, self.max_reward)

    def answer_window(
        self, model: PreTrainedModel, rows: list[dict[str, Any]], state: TrainerState
    ) -> list[list[BestAnswer]]:
        """For each row of a window up to `num_selected` answers, best first; none where no sample passed the gate."""
        unsolved = [row for row in rows if not self.is_solved(row["pmc_id"])]
        picked = self._answer_unsolved(model, unsolved, len(rows), state) if unsolved else {}
        answers = [picked[i] if i in picked else self.pool[i] for i in (row["pmc_id"] for row in rows)]
        if any(answers):
            self._log("reward_selected", float(np.mean([best[0].reward for best in answers if best])))
        self._log("frac_passed", float(np.mean([len(best) > 0 for best in answers])))
        self._log("frac_sampled", len(unsolved) / len(rows))
        return answers

    def _answer_unsolved(
        self, model: PreTrainedModel, rows: list[dict], window: int, state: TrainerState
    ) -> dict[int, list[BestAnswer]]:
        args, started = self.args, time.perf_counter()
        counts = [args.num_generations] * len(rows)
        if args.adaptive_generations:
            visits = [self.visits_without_gain.get(row["pmc_id"], 0) for row in rows]
            counts = selection.share_samples(visits, args.num_generations, budget=args.num_generations * window)
        samples = self.sample(model, rows, counts, state.global_step)
        generated = time.perf_counter()
        stored = [[] if self.scores_stay_valid else self.pool.get(row["pmc_id"], []) for row in rows]
        candidates = [new + [old.completion_ids for old in olds] for new, olds in zip(samples, stored, strict=True)]
        rewards, passed = self.score(rows, candidates, state)
        self.num_samples += sum(counts)
        self._log("time/generation", generated - started)
        self._log("time/rewards", time.perf_counter() - generated)
        for name, value in sample_metrics(samples, rewards, self.end_ids).items():
            self._log(name, value)
        picked = self._pick(rows, candidates, rewards, passed, state.global_step)
        return self._remember(picked) if args.selection == "best" else picked

    def sample(self, model: PreTrainedModel, rows: list[dict], counts: list[int], step: int) -> Samples:
        """As many samples of each row's prompt as `counts` says."""
        prompts, seeds, suppressed = [], [], []
        for row, count in zip(rows, counts, strict=True):
            prompts += [encode_prompt(self.tokenizer, row)] * count
            seeds += sample_seeds(self.args.seed, step, [row["pmc_id"]], count)
            suppressed += [name_tokens(self.tokenizer, row) if self.args.suppress_names else []] * count
        sampling = Sampling(self.args.temperature, self.args.top_k, self.args.top_p, seeds, suppressed)
        completions = iter(generate_together(model, prompts, self.args, self.end_ids, sampling))
        return [list(islice(completions, count)) for count in counts]

    def score(self, rows: list[dict], candidates: Samples, state: TrainerState) -> tuple[np.ndarray, np.ndarray]:
        """Total rewards of each row's candidates, and whether they pass the gate, `(rows, candidates)`; where a row
        has fewer of them than others, the rest is NaN. The main process asks the rewards."""
        scores = [self._score(rows, candidates, state) if PartialState().is_main_process else None]
        return broadcast_object_list(scores)[0]

    def _score(self, rows: list[dict], candidates: Samples, state: TrainerState) -> tuple[np.ndarray, np.ndarray]:
        width = max(map(len, candidates))
        is_real = np.array([[i < len(completions) for i in range(width)] for completions in candidates])
        repeated = [row for row, completions in zip(rows, candidates, strict=True) for _ in completions]
        ids = [completion for completions in candidates for completion in completions]
        texts = [decode_completion(self.tokenizer, completion) for completion in ids]
        chat = not isinstance(rows[0]["prompt"], str)

        completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        columns = {"prompts": [row["prompt"] for row in repeated], "completions": completions, "completion_ids": ids}
        columns |= {name: [row[name] for row in repeated] for name in rows[0] if name != "prompt"}
        # the table has no room for further columns
        further = {"trainer_state": state, "log_extra": lambda column, values: None, "log_metric": self._log}

        def ask(rewards: list[int], which: Sequence[int]) -> np.ndarray:
            part = {name: [values[i] for i in which] for name, values in columns.items()}
            return scoring.score_completions([self.reward_funcs[i] for i in rewards], **part, **further)

        rewards_per_func = self._ask_rewards(ask, is_real, ids)
        for reward, values in zip(self.reward_funcs, rewards_per_func.T, strict=True):
            if not np.isnan(values).all():
                self._log(f"rewards/{reward.name}/mean", float(np.nanmean(values)))
        passed = np.zeros(is_real.shape, dtype=bool)
        passed[is_real] = scoring.passes_floors(rewards_per_func, self.reward_funcs)
        if self.args.normalize_rewards:
            by_question = np.full((*is_real.shape, len(self.reward_funcs)), np.nan)
            by_question[is_real] = rewards_per_func
            rewards_per_func = selection.normalize_within_questions(by_question)[is_real]
        rewards = np.full(is_real.shape, np.nan)
        rewards[is_real] = scoring.weighted_sum(rewards_per_func, self.reward_funcs)
        return rewards, passed

    def _ask_rewards(self, ask: Callable[..., np.ndarray], is_real: np.ndarray, ids: list[list[int]]) -> np.ndarray:
        """
        Scores `(candidates, rewards)` from `ask(numbers of rewards, numbers of candidates)`, NaN where late rewards
        need not be asked: a floor has shut out the candidate, or all weigh 0 and `num_selected` better ones passed.
        What is learned is as if all were asked about all.
        """
        scores = np.full((len(ids), len(self.reward_funcs)), np.nan)
        others, everything = [i for i in range(len(self.reward_funcs)) if i not in self.late], range(len(ids))
        scores[:, others] = ask(others, everything)
        if not self.late:
            return scores
        totals = scoring.weighted_sum(scores, self.reward_funcs)
        if np.isnan(totals).any():  # a late one may be all that can score a candidate
            scores[:, self.late] = ask(self.late, everything)
            return scores
        questions = np.split(np.arange(len(ids)), is_real.sum(1).cumsum()[:-1])
        passable = scoring.passes_floors(scores, self.reward_funcs)  # as far as the others say
        queues = [([i for i in q[np.argsort(-totals[q], kind="stable")] if passable[i]], set()) for q in questions]
        # few may pass: handfuls that grow, not hundreds of small batches
        growing = [slice(2**i - 1, 2 ** (i + 1) - 1) for i in range(is_real.shape[1].bit_length())]
        for handful in [slice(None)] if any(self.reward_funcs[i].weight for i in self.late) else growing:
            turn = {i: done for queue, done in queues if len(done) < self.args.num_selected for i in queue[handful]}
            if turn:
                scores[np.ix_(list(turn), self.late)] = ask(self.late, list(turn))
                for i, passes in zip(turn, scoring.passes_floors(scores[list(turn)], self.reward_funcs), strict=True):
                    turn[i].update([tuple(ids[i])] if passes else [])
        return scores

    def _pick(
        self, rows: list[dict], candidates: Samples, rewards: np.ndarray, passed: np.ndarray, step: int
    ) -> dict[int, list[BestAnswer]]:
        args, row_ids = self.args, [row["pmc_id"] for row in rows]
        if args.selection == "best":  # all in order: which are equal texts is seen later
            picks = selection.select_best(rewards, passed, rewards.shape[1])
        else:
            uniforms = selection.selection_uniforms(args.seed, step, row_ids, rewards.shape[1])
            picks = selection.select_bradley_terry(
                rewards, passed, args.selection_temperature, uniforms, args.num_selected
            )
        return {
            row_id: [BestAnswer(candidates[i][k], float(rewards[i, k])) for k in picks[i]]
            for i, row_id in enumerate(row_ids)
        }

    def _remember(self, picked: dict[int, list[BestAnswer]]) -> dict[int, list[BestAnswer]]:
        """The best answers of these questions so far, which go into the pool."""
        for row_id, answers in picked.items():
            before = self.pool.get(row_id, [])
            best = selection.best_answers(answers, before if self.scores_stay_valid else [], self.args.num_selected)
            is_better = best and (not before or best[0].reward > before[0].reward)
            self.visits_without_gain[row_id] = 0 if is_better else self.visits_without_gain.get(row_id, 0) + 1
            self.pool[row_id] = best
        return {row_id: self.pool[row_id] for row_id in picked}

    def _log(self, name: str, value: float) -> None:
        self.metrics[name].append(value)
