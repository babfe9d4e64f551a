"""PMCTrainer: TRL's SFTTrainer, fed with the best of the model's own samples and with rows to retain.

The method reads top to bottom in `get_batch_samples`, `_select` and `compute_loss`; the rest is bookkeeping.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, logging
from trl import SFTTrainer

from pmc_rl.config import PMCConfig, RecipeError
from pmc_rl.data import encode_prompt
from pmc_rl.generation import Sampling, decode_completion, end_token_ids, generate_completions, sample_seeds
from pmc_rl.scoring import RewardFunction, is_stationary, maximal_reward, score_completions, weighted_sum
from pmc_rl.selection import BestAnswer, is_solved, select_best, update_pool

logger = logging.get_logger(__name__)


def retain_rows_at(start: int, count: int, num_rows: int, seed: int) -> list[int]:
    """Rows `start` to `start + count` of an endless stream of permutations of `range(num_rows)`; no state, no RNG."""
    rows = []
    for position in range(start, start + count):
        pass_number, offset = divmod(position, num_rows)
        if not rows or offset == 0:
            order = np.random.default_rng([seed, pass_number]).permutation(num_rows)
        rows.append(int(order[offset]))
    return rows


class PMCTrainer(SFTTrainer):
    """
    Partial Model Collapse (https://huggingface.co/papers/2507.04219): unlearning without the answers to be forgotten.

    Once an optimizer step the model answers its window of forget prompts `num_generations` times, rewards choose the
    best sample of each, and one forward pass fine-tunes on these and on as many rows to retain:

    loss = mean NLL of the selected tokens + `retain_weight` x mean NLL of the retained tokens, over the whole window.

    Args:
        model ([`~transformers.PreTrainedModel`]): the model that is to forget; it is trained in place.
        reward_funcs (`list[RewardFunction]`): as [`~pmc_rl.scoring.load_reward_functions`] makes them.
        args ([`~pmc_rl.config.PMCConfig`]): the settings.
        train_dataset ([`~datasets.Dataset`]): forget prompts: `prompt`, `pmc_id` (unique), and any columns the rewards
            want. Without an `original_completion` column the model's greedy answers are made before the first step.
        retain_dataset ([`~datasets.Dataset`], *optional*): rows with `prompt` and `completion`; may be missing if
            `retain_weight` is 0 (total collapse).
        processing_class: the tokenizer.
        peft_config: trains an adapter instead of the weights.
    """

    _tag_names = ["trl", "pmc"]
    _name = "PMC"
    loss_is_scaled_for_ga = True  # the loss below is already normalised over the whole window

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: list[RewardFunction],
        args: PMCConfig,
        train_dataset: Dataset,
        retain_dataset: Dataset | None,
        processing_class: PreTrainedTokenizerBase,
        peft_config=None,
    ):
        if retain_dataset is None and args.retain_weight > 0:
            raise ValueError(f"retain_weight is {args.retain_weight}, but there is no retain_dataset")
        args.remove_unused_columns = False  # would drop `prompt`
        args.data_seed = args.seed  # else accelerate shuffles by whatever torch was seeded with last
        end_token = [processing_class.eos_token_id]
        # SFTTrainer prepares its train set; here that is the retain rows. The forget prompts then take their place, so
        # epochs are passes over the forget questions.
        super().__init__(
            model=model,
            args=args,
            train_dataset=retain_dataset or Dataset.from_dict({"input_ids": [end_token], "labels": [end_token]}),
            processing_class=processing_class,
            peft_config=peft_config,
        )
        self.retain_dataset, self.train_dataset = self.train_dataset, train_dataset
        self.reward_funcs = reward_funcs
        self.end_ids = end_token_ids(model, processing_class.eos_token_id)
        self.prompt_ids = {row["pmc_id"]: encode_prompt(processing_class, row) for row in train_dataset}
        self.max_reward = maximal_reward(reward_funcs, args.max_reward)
        self.pool: dict[int, BestAnswer] = {}
        self.window_table: list[tuple[str, str, str, float]] = []
        self.step_metrics: defaultdict[str, list[float]] = defaultdict(list)
        self.loss_terms = torch.zeros(2, device=args.device)
        self.update_started: float | None = None
        self.warned_of_clipping = False

    def train(self, *args, **kwargs):
        """Makes the original answers if the data has none, checks them and the rewards on them, then trains."""
        if "original_completion" not in self.train_dataset.column_names:
            self._add_original_completions()
        # a reward that cannot score these answers, or breaks the contract, stops the run here
        rows = list(self.train_dataset)
        texts = [row["original_completion"] for row in rows]
        ids = [self.processing_class(text, add_special_tokens=False)["input_ids"] for text in texts]
        self._score(rows, 1, texts, ids)
        self.step_metrics.clear()
        return super().train(*args, **kwargs)

    def _add_original_completions(self) -> None:
        """The model's greedy answers before any step: what the rewards compare with. Never the ground truth."""
        ids = self._generate([self.prompt_ids[i] for i in self.train_dataset["pmc_id"]], progress="original answers")
        clipped = sum(row[-1] not in self.end_ids for row in ids)
        if clipped > len(ids) / 2 and not self.args.allow_unfinished:
            raise RecipeError(
                [
                    f"{clipped} of {len(ids)} original answers hit max_completion_length = "
                    f"{self.args.max_completion_length}: the limit is too small, the prompt template or the end token "
                    "is not the one the model was trained with, or the model does not end its answers "
                    "(--allow_unfinished true goes on all the same)"
                ]
            )
        texts = [decode_completion(self.processing_class, row) for row in ids]
        self.train_dataset = self.train_dataset.add_column("original_completion", texts)

    def _generate(
        self, prompt_ids: list[list[int]], sampling: Sampling | None = None, progress: str | None = None
    ) -> list[list[int]]:
        # without the outer autocast each decoding step would cast all weights again
        with self.accelerator.autocast():
            return generate_completions(
                self.accelerator.unwrap_model(self.model),
                prompt_ids,
                max_completion_length=self.args.max_completion_length,
                generation_batch_size=self.args.generation_batch_size,
                end_ids=self.end_ids,
                sampling=sampling,
                progress=progress,
            )

    def get_train_dataloader(self) -> DataLoader:
        """Forget rows as they are, shuffled each epoch; tokens are made once an optimizer step, further down."""
        batch_size = self.args.per_device_train_batch_size
        # prepared, the shuffle becomes a function of `data_seed` and epoch
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, batch_size=batch_size, shuffle=True, collate_fn=list)
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], None]:
        """All micro-batches of one optimizer step: the window's selected completions, each with a row to retain."""
        self._end_update()
        micro_batches = list(islice(epoch_iterator, num_batches))
        rows = [row for batch in micro_batches for row in batch]
        completion_ids = self._select(rows)
        collapse = [
            _sft_example(self.prompt_ids[row["pmc_id"]], ids) for row, ids in zip(rows, completion_ids, strict=True)
        ]
        retain = []
        if self.args.retain_weight > 0:
            retain = [self.retain_dataset[i] for i in self._next_retain_rows(len(rows))]
        collapse_weight = 1 / _count_targets(collapse)
        retain_weight = self.args.retain_weight / _count_targets(retain) if retain else 0.0

        batches, start = [], 0
        for micro_batch in micro_batches:
            part = slice(start, start + len(micro_batch))
            start = part.stop
            examples = collapse[part] + retain[part]
            batch = self.data_collator(examples)
            # a weight a row and loss term, so that one forward pass serves both: [collapse, retain] = weights @ NLL
            row_weights = torch.zeros(2, len(examples))
            row_weights[0, : len(micro_batch)] = collapse_weight
            row_weights[1, len(micro_batch) :] = retain_weight
            batches.append({**batch, "row_weights": row_weights})
        self.update_started = time.perf_counter()
        return batches, None

    def _select(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """One completion a question: samples, rewards, the best; solved questions keep their stored answer."""
        args = self.args
        unsolved = [row for row in rows if not is_solved(self.pool, row["pmc_id"], self.max_reward)]
        if unsolved:
            k = args.num_generations
            started = time.perf_counter()
            samples = self._generate(
                [self.prompt_ids[row["pmc_id"]] for row in unsolved for _ in range(k)],
                Sampling(
                    args.temperature,
                    args.top_k,
                    args.top_p,
                    sample_seeds(args.seed, self.state.global_step, [row["pmc_id"] for row in unsolved], k),
                ),
            )
            generated = time.perf_counter()
            ids, stationary = samples, is_stationary(self.reward_funcs)
            if not stationary:
                ids, k = self._with_stored_answers(unsolved, samples), k + 1
            texts = [decode_completion(self.processing_class, row) for row in ids]
            rewards = self._score(unsolved, k, texts, ids).reshape(len(unsolved), k)
            picks = select_best(rewards)
            for i, (row, pick) in enumerate(zip(unsolved, picks, strict=True)):
                if not stationary:  # judged afresh: whatever won just now is the best
                    self.pool.pop(row["pmc_id"], None)
                update_pool(self.pool, row["pmc_id"], ids[i * k + pick], rewards[i, pick])
            metrics = self.step_metrics
            metrics["time/generation"].append(generated - started)
            metrics["time/rewards"].append(time.perf_counter() - generated)
            metrics["reward"].append(float(np.nanmean(rewards[:, : args.num_generations])))
            metrics["reward_std"].append(float(np.nanstd(rewards[:, : args.num_generations], axis=1).mean()))
            metrics["completions/mean_length"].append(float(np.mean([len(row) for row in samples])))
            metrics["completions/clipped_ratio"].append(
                float(np.mean([row[-1] not in self.end_ids for row in samples]))
            )
        best = [self.pool[row["pmc_id"]] for row in rows]
        self.step_metrics["reward_selected"].append(float(np.mean([answer.reward for answer in best])))
        self.step_metrics["frac_sampled"].append(len(unsolved) / len(rows))
        self.window_table = [
            (
                row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"],
                row["original_completion"],
                decode_completion(self.processing_class, answer.completion_ids),
                answer.reward,
            )
            for row, answer in zip(rows[: args.num_completions_to_print], best, strict=False)
        ]
        return [answer.completion_ids for answer in best]

    def _with_stored_answers(self, rows: list[dict], ids: list[list[int]]) -> list[list[int]]:
        """Adds each question's stored answer as a last candidate, so that it is scored as the rewards are now."""
        k = self.args.num_generations
        candidates = []
        for i, row in enumerate(rows):
            samples = ids[i * k : (i + 1) * k]
            stored = self.pool.get(row["pmc_id"])
            candidates += [*samples, stored.completion_ids if stored else samples[-1]]
        return candidates

    def _score(self, rows: list[dict], k: int, texts: list[str], ids: list[list[int]]) -> np.ndarray:
        """Total rewards of `k` completions a row, prompt-major, shape `(len(rows) * k,)`."""
        repeated = [row for row in rows for _ in range(k)]
        chat = not isinstance(rows[0]["prompt"], str)
        rewards_per_func = score_completions(
            self.reward_funcs,
            prompts=[row["prompt"] for row in repeated],
            completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            completion_ids=ids,
            **{name: [row[name] for row in repeated] for name in rows[0] if name != "prompt"},
            trainer_state=self.state,
            log_extra=lambda column, values: None,  # the table has no room for further columns
            log_metric=lambda name, value: self.step_metrics[name].append(value),
        )
        for i, reward in enumerate(self.reward_funcs):
            if not np.isnan(rewards_per_func[:, i]).all():
                self.step_metrics[f"rewards/{reward.name}/mean"].append(float(np.nanmean(rewards_per_func[:, i])))
        return weighted_sum(rewards_per_func, self.reward_funcs)

    def _next_retain_rows(self, count: int) -> list[int]:
        """As many rows as this window has questions, from where the last window stopped; told from the step alone."""
        window = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        steps_per_epoch = -(-len(self.train_dataset) // window)
        epoch, step = divmod(self.state.global_step, steps_per_epoch)
        start = epoch * len(self.train_dataset) + step * window
        return retain_rows_at(start, count, len(self.retain_dataset), self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of row weight x row NLL, from one forward pass that keeps no logits."""
        row_weights = inputs.pop("row_weights")
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        terms = row_weights @ -outputs.log_probs.sum(1)
        self.loss_terms += terms.detach()
        return terms.sum()

    def _end_update(self) -> None:
        """Books what the last step spent in forward, backward and optimizer, and its two loss terms."""
        if self.update_started is None:
            return
        collapse_loss, retain_loss = self.loss_terms.tolist()  # waits for the accelerator
        self.step_metrics["time/update"].append(time.perf_counter() - self.update_started)
        self.step_metrics["collapse_loss"].append(collapse_loss)
        if self.args.retain_weight > 0:
            self.step_metrics["retain_loss"].append(retain_loss / self.args.retain_weight)
        self.loss_terms.zero_()
        self.update_started = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._end_update()
        if self.step_metrics:  # the summary at the end takes the steps after the last log
            logs.update({name: float(np.mean(values)) for name, values in self.step_metrics.items()})
            self.step_metrics.clear()
            solved = sum(is_solved(self.pool, row_id, self.max_reward) for row_id in self.prompt_ids)
            logs["frac_solved"] = solved / len(self.prompt_ids)
            self._warn_of_clipping(logs)
            if self.args.log_completions:
                self._print_window(logs)
        super().log(logs, start_time)

    def _warn_of_clipping(self, logs: dict[str, float]) -> None:
        warmed_up = self.state.global_step > self.args.get_warmup_steps(self.state.max_steps)
        if warmed_up and logs.get("completions/clipped_ratio", 0) > 0.5 and not self.warned_of_clipping:
            self.warned_of_clipping = True
            logger.warning(
                f"{logs['completions/clipped_ratio']:.0%} of the samples hit max_completion_length: the model learns "
                "not to end its answers. Add rewards.length.unfinished_penalty or raise max_completion_length."
            )

    def _print_window(self, logs: dict[str, float]) -> None:
        table = Table(title=f"step {self.state.global_step}: selected reward {logs['reward_selected']:.3f}")
        for column in ("question", "original answer", "selected answer"):
            table.add_column(column)
        table.add_column("reward", justify="right")
        for question, original, selected, reward in self.window_table:
            # Text: an answer is no markup
            table.add_row(Text(question), Text(original), Text(selected), f"{reward:.2f}", end_section=True)
        Console().print(table)


def _sft_example(prompt_ids: list[int], completion_ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt_ids + completion_ids, "labels": [-100] * len(prompt_ids) + completion_ids}


def _count_targets(examples: list[dict]) -> int:
    return sum(label != -100 for example in examples for label in example["labels"])
