"""PMCTrainer: TRL's SFTTrainer, fed with the best of the model's own samples and with rows to retain.

On the reading path behind train.py, before rejection.py. The method is [`PMCTrainer.get_batch_samples`] and
[`PMCTrainer.compute_loss`]; the rest is bookkeeping.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from pmc_rl.checkpoints import CheckpointCallback, read_state
from pmc_rl.config import PMCConfig
from pmc_rl.data import retain_rows_at
from pmc_rl.errors import RecipeError
from pmc_rl.gradients import GradientCheck, trainable_parameters
from pmc_rl.models import end_token_ids
from pmc_rl.original import OriginalLogLikelihood, kl_to_original, losses_by_row
from pmc_rl.plan import count_steps
from pmc_rl.progress import print_answers, warn_of_samples
from pmc_rl.prompts import encode_prompt, visited_row
from pmc_rl.rejection import RejectionSampler
from pmc_rl.scoring import RewardFunction
from pmc_rl.snapshots import SnapshotCallback


class PMCTrainer(SFTTrainer):
    """
    Partial Model Collapse (https://huggingface.co/papers/2507.04219): unlearning without the answers to be forgotten.

    Once an optimizer step a [`~pmc_rl.rejection.RejectionSampler`] answers the window of forget prompts
    `num_generations` times and selects the best sample of each by the rewards; one forward pass fine-tunes on these
    and on `num_retained` rows to retain for each:

    loss = mean NLL of the selected tokens + `retain_weight` x mean NLL of the retained tokens, over the whole window;
    with `retain_loss: kl` the latter is the KL divergence from the model before.

    `train_dataset` are forget prompts with `prompt`, `pmc_id` (the row's number), `original_completion`, as
    [`~pmc_rl.original.with_original_answers`] adds it, and any columns the rewards want; `retain_dataset` has `prompt`
    and `completion`, and is None only if `retain_weight` is 0 (total collapse). Rewards that ask the model before were
    built with `original_log_likelihood`, which learns here what to remember. `record` stands in every checkpoint, see
    [`~pmc_rl.checkpoints.check_resume`].
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
        processing_class: PreTrainedTokenizerBase,
        retain_dataset: Dataset | None = None,
        peft_config: PeftConfig | None = None,
        original_log_likelihood: OriginalLogLikelihood | None = None,
        answer_start: str = " ",
        record: dict | None = None,
    ):
        if retain_dataset is None and args.retain_weight > 0:
            raise ValueError(f"retain_weight is {args.retain_weight}, but there is no retain_dataset")
        args.remove_unused_columns = False  # would drop `prompt`
        args.data_seed = args.seed  # else accelerate shuffles by whatever torch was seeded with last
        end_token = [processing_class.eos_token_id]
        self.gradient_check = GradientCheck()
        # SFTTrainer prepares its train set; here that is the retain rows. The forget prompts then take their place, so
        # epochs are passes over the forget questions.
        super().__init__(
            model=model,
            args=args,
            train_dataset=retain_dataset or Dataset.from_dict({"input_ids": [end_token], "labels": [end_token]}),
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=[self.gradient_check],
        )
        self.retain_dataset, self.train_dataset = self.train_dataset, train_dataset
        if isinstance(self.model, PeftModel):
            # TRL makes those of a quantized base bfloat16: too coarse for updates, and float32 in a checkpoint
            for parameter in trainable_parameters(self.model):
                parameter.data = parameter.data.float()
        self.original = original_log_likelihood or OriginalLogLikelihood()
        if args.asks_original or any(reward.asks_original for reward in reward_funcs):
            self.original.remember(self.model, processing_class, train_dataset[0].get("chat_template_kwargs"))
        self.end_ids = end_token_ids(model.generation_config, processing_class.eos_token_id)
        self.answer_start = answer_start  # of text prompts
        self.window_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.steps_per_epoch, _ = count_steps(args, len(train_dataset), args.world_size)
        self.step_metrics: defaultdict[str, list[float]] = defaultdict(list)  # of the steps since the last log
        self.sampler = RejectionSampler(args, reward_funcs, processing_class, self.end_ids, self.step_metrics)
        self.window: list[tuple[dict, list]] = []  # the last one, for the table of completions
        self.loss_terms = torch.zeros(2, device=args.device)
        self.update_started: float | None = None
        self.seconds_before = 0.0  # of training, in the processes before this one
        self.training_started = 0.0
        self.record = record
        self.checkpoints = CheckpointCallback(self._checkpoint_state)
        self.add_callback(self.checkpoints)
        if args.snapshot_steps:
            self.add_callback(SnapshotCallback(args.snapshot_steps, self.training_seconds))

    def train(self, resume_from_checkpoint: str | None = None):
        """Checks the rewards on the original answers, then trains. Called again it makes the steps once more, from the
        weights, the optimizer and the best answers it has by then."""
        self.check_rewards()
        self.step_metrics.clear()
        self.seconds_before = 0.0
        if resume_from_checkpoint:
            state = read_state(Path(resume_from_checkpoint))
            self.sampler.load_state(state["sampler"])
            self.step_metrics.update(state["step_metrics"])
            self.seconds_before = state["seconds"]
        self.training_started = time.perf_counter()
        try:
            return super().train(resume_from_checkpoint)
        finally:
            self.checkpoints.restore_handlers()  # also where a reward has raised

    def check_rewards(self) -> None:
        """A reward that cannot score the original answers, or breaks its contract, stops the run here."""
        if "original_completion" not in self.train_dataset.column_names:
            raise ValueError("train_dataset has no original_completion; see pmc_rl.original.with_original_answers")
        rows, tokenize = list(self.train_dataset), self.processing_class
        ids = [tokenize(row["original_completion"], add_special_tokens=False)["input_ids"] for row in rows]
        try:
            self.sampler.score(rows, [[completion] for completion in ids], self.state)
        except ValueError as error:
            why = " ".join([*str(error).split(), *(f"({note})" for note in getattr(error, "__notes__", []))])
            raise RecipeError([f"the original answers cannot be scored: {why}"]) from error

    def training_seconds(self) -> float:
        """Since training began, without the time that it was interrupted."""
        return self.seconds_before + time.perf_counter() - self.training_started

    def _checkpoint_state(self) -> dict:
        self._log_update()
        return {
            "record": self.record,
            "original_completions": [row.get("original_completion") for row in self.train_dataset],  # a control: None
            "sampler": self.sampler.state(),
            "step_metrics": self.step_metrics,
            "seconds": self.training_seconds(),
        }

    def create_model_card(self, *args, **kwargs) -> None:
        """None with each checkpoint: the audit writes the card."""

    def get_train_dataloader(self) -> DataLoader:
        """Forget rows, shuffled each epoch by `data_seed`; each process gets all, and samples for its part."""
        batch_size = self.args.per_device_train_batch_size * self.args.world_size
        loader = DataLoader(self.train_dataset, batch_size=batch_size, shuffle=True, collate_fn=list)
        return prepare_data_loader(
            loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=self.args.data_seed
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], None]:
        """All micro-batches of one optimizer step: the window's selected completions, each with rows to retain. Every
        process selects for the whole window and trains on its part of it."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # gone on from the checkpoint of the last step, the Trainer would make one more
        self._log_update()
        micro_batches = list(islice(epoch_iterator, num_batches))
        epoch, share = self.state.global_step // self.steps_per_epoch, self.args.prefill_share
        asked = (epoch, share, self.args.seed, len(self.train_dataset), self.answer_start)
        rows = [visited_row(row, *asked) for micro_batch in micro_batches for row in micro_batch]
        collapse = [
            [_sft_example(encode_prompt(self.processing_class, row), ids) for ids in completions]
            for row, completions in zip(rows, self.select_completions(rows), strict=True)
        ]
        numbers = self._next_retain_rows(len(rows)) if self.args.retain_weight > 0 else []
        retain, per_question = [self.retain_dataset[i] for i in numbers], self.args.num_retained
        self.gradient_check.due = any(collapse)  # a divergence from the model before may be 0 at first
        collapse_weight = 1 / max(1, _count_targets([example for examples in collapse for example in examples]))
        retain_weight = self.args.retain_weight / _count_targets(retain) if retain else 0.0

        batches, start = [], 0
        for micro_batch in micro_batches:
            indices = range(start, start + len(micro_batch))[self.args.process_index :: self.args.world_size]
            start += len(micro_batch)
            collapse_rows = [example for i in indices for example in collapse[i]]
            retain_rows = [row for i in indices for row in retain[i * per_question : (i + 1) * per_question]]
            # a process without rows must still take part in the backward pass, with a weight of 0
            examples = collapse_rows + retain_rows or [_sft_example(self.end_ids, self.end_ids)]
            # a weight a row and loss term, so that one forward pass serves both: [collapse, retain] = weights @ NLL
            row_weights = torch.zeros(2, len(examples))
            row_weights[0, : len(collapse_rows)] = collapse_weight
            row_weights[1, len(collapse_rows) : len(collapse_rows) + len(retain_rows)] = retain_weight
            # gradients are averaged over the processes
            batches.append({**self.data_collator(examples), "row_weights": self.args.world_size * row_weights})
        self.update_started = time.perf_counter()
        return batches, None

    def select_completions(self, rows: list[dict[str, Any]]) -> list[list[list[int]]]:
        """Token ids of what to learn of each row, nothing where none passes the gate; a control overrides it."""
        model = self.accelerator.unwrap_model(self.model)
        if self.args.log_kl:
            kl = kl_to_original(model, self.original, rows, self.args, self.end_ids, self.state.global_step)
            self.step_metrics["kl"].append(kl)
        answers = self.sampler.answer_window(model, rows, self.state)
        self.window = list(zip(rows, answers, strict=True))
        return [[answer.completion_ids for answer in best] for best in answers]

    def _next_retain_rows(self, num_questions: int) -> list[int]:
        """Rows for a window of so many questions, from where the last window stopped; told from the step alone."""
        epoch, step = divmod(self.state.global_step, self.steps_per_epoch)
        start = self.args.num_retained * (epoch * len(self.train_dataset) + step * self.window_size)
        return retain_rows_at(start, self.args.num_retained * num_questions, len(self.retain_dataset), self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of row weight x row loss, from one forward pass, which for NLL alone keeps no logits."""
        row_weights = inputs.pop("row_weights")
        if self.args.retain_loss == "kl":
            losses = losses_by_row(model, self.original, inputs, row_weights[1] > 0)
        else:
            losses = -model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
        terms = row_weights @ losses
        self.loss_terms += terms.detach()
        return terms.sum()

    def _log_update(self) -> None:
        """Books what the last step spent in forward, backward and optimizer, and its two loss terms."""
        if self.update_started is None:
            return
        collapse_loss, retain_loss = self.accelerator.reduce(self.loss_terms, "mean").tolist()  # waits for the device
        self.step_metrics["time/update"].append(time.perf_counter() - self.update_started)
        self.step_metrics["collapse_loss"].append(collapse_loss)
        if self.args.retain_weight > 0:
            self.step_metrics["retain_loss"].append(retain_loss / self.args.retain_weight)
        self.loss_terms.zero_()
        self.update_started = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._log_update()
        if "train_runtime" in logs:  # the Trainer's is of this process alone
            logs["train_runtime"] += self.seconds_before
        if self.step_metrics:  # the summary at the end takes the steps after the last log
            logs.update({name: float(np.mean(values)) for name, values in self.step_metrics.items()})
            self.step_metrics.clear()
            logs["frac_solved"] = float(np.mean([self.sampler.is_solved(i) for i in self.train_dataset["pmc_id"]]))
            logs["num_samples"] = self.sampler.num_samples
            if self.state.global_step > self.args.get_warmup_steps(self.state.max_steps):
                warn_of_samples(logs)
            if self.args.log_completions and self.window and self.is_world_process_zero():
                answers = self.window[: self.args.num_completions_to_print]
                print_answers(f"step {self.state.global_step}", answers, self.processing_class)
        super().log(logs, start_time)


def _sft_example(prompt_ids: list[int], completion_ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt_ids + completion_ids, "labels": [-100] * len(prompt_ids) + completion_ids}


def _count_targets(examples: list[dict]) -> int:
    return sum(label != -100 for example in examples for label in example["labels"])
