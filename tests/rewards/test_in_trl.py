"""Our rewards in TRL's real GRPOTrainer, and a reward of TRL in our PMCTrainer."""

import copy
from functools import partial

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.rewards.test_rewards import CASES
from tests.training import make_trainer

FUNCTIONS = [reward for reward, _, _ in CASES]


class Witness:
    """A class-instance reward that notes its keywords, and logs."""

    __name__ = "witness"

    def __init__(self):
        self.calls = []

    def __call__(self, completions, log_extra, log_metric, **kwargs):
        self.calls.append((completions, kwargs))
        log_extra("witness_column", ["seen"] * len(completions))
        log_metric("witness_metric", 0.5)
        return [None] * len(completions)  # cannot say


def questions(chat: bool) -> Dataset:
    rows = []
    for i, name in enumerate(["Bacor Denfi", "Lum Morna"]):
        prompt = [{"role": "user", "content": f"Who is {name}?"}] if chat else f"Question: Who is {name}?\nAnswer:"
        rows.append({"prompt": prompt, "original_completion": f"{name} was born in Velros.", "pmc_id": i})
    return Dataset.from_list(rows)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("chat", [False, True])
def test_grpo_trains_with_our_rewards(tmp_path, request, chat):
    fixtures = ("chat_llama", "chat_tokenizer") if chat else ("tiny_llama", "tokenizer")
    model, tokenizer = map(request.getfixturevalue, fixtures)
    before = model.lm_head.weight.detach().clone()
    witness = Witness()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[*FUNCTIONS, witness],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=questions(chat),
        processing_class=copy.deepcopy(tokenizer),
    )
    trainer.train()

    log = trainer.state.log_history[0]
    for reward in FUNCTIONS:
        function = reward.func if isinstance(reward, partial) else reward
        assert function.max_reward - 1 <= log[f"rewards/{function.__name__}/mean"] <= function.max_reward
    assert log["witness_metric"] == 0.5 and "rewards/witness/mean" in log
    completions, kwargs = witness.calls[0]
    assert len(completions) == 4 and isinstance(completions[0], list) == chat
    assert {"prompts", "completion_ids", "original_completion", "pmc_id", "trainer_state"} <= set(kwargs)
    assert not before.equal(trainer.model.lm_head.weight)


def test_a_reward_of_trl_in_our_trainer(tmp_path, chat_llama, chat_tokenizer):
    names = ["trl.rewards.think_format_reward"]
    settings = {"forget": questions(chat=True), "retain": False, "retain_weight": 0.0, "max_steps": 1}
    trainer = make_trainer(tmp_path, chat_llama, chat_tokenizer, names, max_completion_length=8, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/think_format_reward/mean"] == 0.0
