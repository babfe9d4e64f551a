"""Our rewards in TRL's real GRPOTrainer, with conversations; how both trainers call them: test_scoring.py."""

import copy
from functools import partial

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.rewards.test_rewards import CASES

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


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_grpo_trains_with_our_rewards(tmp_path, chat_llama, chat_tokenizer):
    before = chat_llama.lm_head.weight.detach().clone()
    witness, rows = Witness(), []
    for i, name in enumerate(["Bacor Denfi", "Lum Morna"]):
        prompt = [{"role": "user", "content": f"Who is {name}?"}]
        rows.append({"prompt": prompt, "original_completion": f"{name} was born in Velros.", "pmc_id": i})
    trainer = GRPOTrainer(
        model=chat_llama,
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
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(chat_tokenizer),
    )
    trainer.train()

    log = trainer.state.log_history[0]
    for reward in FUNCTIONS:
        function = reward.func if isinstance(reward, partial) else reward
        assert function.max_reward - 1 <= log[f"rewards/{function.__name__}/mean"] <= function.max_reward
    assert log["witness_metric"] == 0.5 and "rewards/witness/mean" in log
    completions, kwargs = witness.calls[0]
    assert len(completions) == 4 and isinstance(completions[0], list)
    assert {"prompts", "completion_ids", "original_completion", "pmc_id", "trainer_state"} <= set(kwargs)
    assert not before.equal(trainer.model.lm_head.weight)
