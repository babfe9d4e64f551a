"""Relearning attack: a few steps of fine-tuning on other rows, then the forgotten is asked for again."""

import hashlib
import json
from collections.abc import Callable
from statistics import fmean

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from eval.attacks.altered import forget_measures, recovered_share
from eval.data import QuestionSet
from eval.passes import ModelPasses
from pmc_rl.config import PMCConfig
from pmc_rl.generation import autocast
from pmc_rl.gradients import check_gradients, trainable_parameters
from pmc_rl.trainer import retain_rows_at

Row = tuple[list[int], list[int]]


def relearning_attack(
    passes: ModelPasses, before: ModelPasses, scored: QuestionSet, relearner: "Relearner", what: str
) -> dict:
    """
    How far the way back goes: recall and probability of the truth after 0, 1, 2, 4, ... steps on other rows.

    Args:
        passes, before ([`~eval.passes.ModelPasses`]): the unlearned model, and the one before unlearning.
        scored (`QuestionSet`): forget rows that are not learned.
        relearner ([`Relearner`]): the fine-tuning; not started if the cache has all its answers.
        what (`str`): names the rows that are learned, in progress bars.

    Returns:
        `dict`: lists of one entry a checkpoint: `steps`, `recall`, `recall_by_row`, `probability` and `recovered`, the
        share of the way back by recall; and the numbers of rows `learned` and `scored`.
    """
    recalls, probability = forget_measures(passes, scored)
    before_recall = fmean(forget_measures(before, scored)[0].values())
    passes.release()  # one model at a time: the copy that learns needs the room
    before.release()
    steps, by_row, probabilities = [0], [recalls], [probability]
    for step in checkpoints(relearner.steps):
        altered = passes.altered(
            f"{passes.name}, {step} steps on {what}",
            f"{passes.fingerprint} {relearner.fingerprint} {step}",
            lambda step=step: relearner.at(step),
        )
        recalls, probability = forget_measures(altered, scored)
        steps.append(step)
        by_row.append(recalls)
        probabilities.append(probability)
    means = [fmean(recalls.values()) for recalls in by_row]
    return {
        "steps": steps,
        "recall": means,
        "recall_by_row": by_row,
        "probability": probabilities,
        "recovered": [recovered_share(recall, means[0], before_recall) for recall in means],
        "learned": len(relearner.rows),
        "scored": len(scored.questions),
    }


def checkpoints(steps: int) -> list[int]:
    """Steps after which the model is asked: 1, 2, 4, ... and the last."""
    return [2**i for i in range(steps.bit_length()) if 2**i < steps] + [steps]


class Relearner:
    """
    A model that is fine-tuned a little further each time it is asked for, by AdamW at a constant learning rate.

    Args:
        load (`Callable`): makes the unlearned model, in the dtype to train in, adapters merged.
        rows (`list[tuple[list[int], list[int]]]`): prompt and answer ids to learn, in turn, shuffled by the seed.
        steps (`int`): the last step that will be asked for.
        peft_config: a new adapter is trained in place of the weights, as in the run that is audited.
        args ([`~pmc_rl.config.PMCConfig`]): batch size, seed and precision.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        rows: list[Row],
        steps: int,
        learning_rate: float,
        peft_config: LoraConfig | None,
        args: PMCConfig,
    ):
        self.load = load
        self.rows = rows
        self.steps = steps
        self.learning_rate = learning_rate
        self.peft_config = peft_config
        self.args = args
        # tells this fine-tuning from any other of the same model; made now, since training completes the peft config
        adapter = peft_config and peft_config.to_dict()
        settings = [rows, learning_rate, adapter, args.per_device_train_batch_size, args.seed, args.bf16, args.fp16]
        described = json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
        self.fingerprint = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
        self.model: PreTrainedModel | PeftModel | None = None
        self.step = 0  # steps done

    def at(self, step: int) -> PreTrainedModel:
        """The model after `step` steps, in eval mode; steps must not go back."""
        if self.model is None:
            torch.manual_seed(self.args.seed)  # a new adapter begins with random numbers
            self.model = self.load()
            if self.peft_config is not None:
                self.model = get_peft_model(self.model, self.peft_config)
            self.optimizer = torch.optim.AdamW(trainable_parameters(self.model), self.learning_rate, weight_decay=0.0)
            # small gradients are 0 in float16; does nothing without it
            self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.args.fp16)
        # in eval mode: without dropout the steps are the same on every process
        self.model.eval()
        while self.step < step:
            if self._train_on(self._batch(self.step)):
                self.step += 1
        return self.model

    def _batch(self, step: int) -> list[Row]:
        size = min(self.args.per_device_train_batch_size, len(self.rows))
        return [self.rows[i] for i in retain_rows_at(step * size, size, len(self.rows), self.args.seed)]

    def _train_on(self, rows: list[Row]) -> bool:
        """Whether a step was made: in float16 one whose gradients overflow is to be tried again, scaled less."""
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full_like(input_ids, -100)
        for i, (prompt, answer) in enumerate(rows):
            input_ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        device = self.model.device
        with autocast(device, self.args):
            # padded on the right, where a causal model does not look, so no mask is needed
            loss = self.model(input_ids=input_ids.to(device), labels=labels.to(device), use_cache=False).loss
        if not loss.isfinite():
            raise ValueError(f"the loss of the relearning attack is {loss.item()} at step {self.step}")
        self.scaler.scale(loss).backward()
        if self.step == 0:
            check_gradients(self.model)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return self.scaler.get_scale() >= scale
