"""Relearning attack: a few steps of fine-tuning on other rows, then the forgotten is asked for again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from eval.attacks.altered import altered_measures
from eval.metrics.leakage import doublings
from eval.passes import ModelPasses
from eval.sets import QuestionSet
from pmc_rl.config import PMCConfig
from pmc_rl.data import retain_rows_at
from pmc_rl.generation import autocast
from pmc_rl.gradients import check_gradients, trainable_parameters
from pmc_rl.likelihood import Row


def relearning_attack(
    passes: ModelPasses, before: ModelPasses, scored: QuestionSet, relearner: "Relearner", what: str
) -> dict:
    """
    How far the way back goes: recall and probability of the truth after 0, 1, 2, 4, ... steps on other rows, and
    `recovered`, the share of the way back by recall; lists of one entry a checkpoint, with intervals.

    `passes` is the unlearned model, `before` the one before; `scored` are forget rows that are not learned, and `what`
    names those that are, in progress bars. If the cache has all answers the relearner does not start.
    """
    steps = doublings(relearner.steps)
    states = {f"{step} steps on {what}": partial(relearner.at, step) for step in steps}
    measured = altered_measures(passes, before, scored, states, relearner.fingerprint)
    return {
        "steps": [0, *steps],
        **{name: [measures[name] for measures in measured] for name in measured[0]},
        "learned": len(relearner.rows),
        "scored": len(scored.questions),
    }


@dataclass
class Relearner:
    """
    A model that is fine-tuned a little further each time it is asked for, by AdamW at a constant learning rate.

    `load` makes the unlearned model, in the dtype to train in, adapters merged; `rows` are prompt and answer ids, in
    turn, shuffled by the seed; `steps` is the last step that will be asked for. With a `peft_config` a new adapter is
    trained in place of the weights. Of `args` batch size, seed and precision are read.
    """

    load: Callable[[], PreTrainedModel]
    rows: list[Row]
    steps: int
    learning_rate: float
    peft_config: LoraConfig | None
    args: PMCConfig
    model: PreTrainedModel | PeftModel | None = None
    step: int = 0  # steps done

    def __post_init__(self):
        # tells this fine-tuning from any other of the same model; made now, since training completes the peft config
        args, adapter = self.args, self.peft_config and self.peft_config.to_dict()
        batch_size = args.per_device_train_batch_size
        settings = [self.rows, self.learning_rate, adapter, batch_size, args.seed, args.bf16, args.fp16]
        described = json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
        self.fingerprint = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

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
            size = min(self.args.per_device_train_batch_size, len(self.rows))
            batch = retain_rows_at(self.step * size, size, len(self.rows), self.args.seed)
            if self._train_on([self.rows[i] for i in batch]):
                self.step += 1
        return self.model

    def _train_on(self, rows: list[Row]) -> bool:
        """Whether a step was made: in float16 one whose gradients overflow is to be tried again, scaled less."""
        device = self.model.device
        # padded on the right, where a causal model does not look, so no mask is needed
        input_ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in rows], batch_first=True)
        targets = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in rows]
        labels = pad_sequence(targets, batch_first=True, padding_value=-100)
        with autocast(device, self.args):
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
