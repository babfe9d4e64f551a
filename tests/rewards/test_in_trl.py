"""Our rewards in TRL's real GRPOTrainer, and a reward of TRL in our PMCTrainer."""

import copy
from functools import partial

import pytest
from datasets import Dataset
from transformers import LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from pmc_rl.config import PMCConfig
from pmc_rl.scoring import load_reward_functions
from pmc_rl.trainer import PMCTrainer
from rewards.diversity import duplicate_penalty
from rewards.key_content import key_content_penalty
from rewards.length import length_band_penalty, max_length_penalty, min_length_penalty, unfinished_penalty
from rewards.refusal import ClassifiedRefusal, fading_refusal, refusal
from rewards.repetition import distinct_ngrams_penalty, readability_penalty, repetition_penalty
from rewards.rouge import paper_reward, rouge_dissimilarity

FUNCTIONS = [
    rouge_dissimilarity,
    paper_reward,
    min_length_penalty,
    partial(max_length_penalty, max_words=5),
    partial(length_band_penalty, minimum=2, maximum=5, margin=3, unit="tokens"),
    partial(unfinished_penalty, max_completion_length=8),
    refusal,
    fading_refusal,
    repetition_penalty,
    distinct_ngrams_penalty,
    readability_penalty,
    key_content_penalty,
    duplicate_penalty,
]


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
        question = f"Who is {name}?"
        prompt = [{"role": "user", "content": question}] if chat else f"Question: {question}\nAnswer:"
        rows.append({"prompt": prompt, "original_completion": f"{name} was born in Velros.", "pmc_id": i})
    return Dataset.from_list(rows)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("chat", [False, True])
def test_grpo_trains_one_step_with_our_rewards(tmp_path, request, chat):
    model, tokenizer = (
        request.getfixturevalue(name)
        for name in (("chat_llama", "chat_tokenizer") if chat else ("tiny_llama", "tokenizer"))
    )
    before = model.lm_head.weight.detach().clone()
    config = copy.deepcopy(model.config)
    config.id2label = {0: "answer", 1: "refusal"}
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    witness = Witness()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[*FUNCTIONS, ClassifiedRefusal(str(tmp_path / "classifier")), witness],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,  # the second reads the log of the first
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
    assert 0 < log["rewards/classified_refusal/mean"] < 1
    assert log["witness_metric"] == 0.5 and "rewards/witness/mean" in log
    completions, kwargs = witness.calls[0]
    assert len(completions) == 4 and isinstance(completions[0], list) == chat
    assert {"prompts", "completion_ids", "original_completion", "pmc_id", "trainer_state"} <= set(kwargs)
    assert not before.equal(trainer.model.lm_head.weight)


def test_a_reward_of_trl_in_our_trainer(tmp_path, chat_llama, chat_tokenizer):
    [reward] = load_reward_functions(
        names=["trl.rewards.think_format_reward"], kwargs={}, weights=None, max_completion_length=8
    )
    trainer = PMCTrainer(
        model=chat_llama,
        reward_funcs=[reward],
        args=PMCConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=8,
            retain_weight=0.0,
            gradient_checkpointing=False,
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=questions(chat=True),
        retain_dataset=None,
        processing_class=copy.deepcopy(chat_tokenizer),
    )
    trainer.train()
    assert trainer.state.log_history[0]["rewards/think_format_reward/mean"] == 0.0
