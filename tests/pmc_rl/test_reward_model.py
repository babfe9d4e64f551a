"""Sequence-classification models as rewards: the logit that transformers gives, one text at a time."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.reward_model import RewardModel
from tests.conftest import errors_of, tiny_sizes


def saved(folder, tokenizer, num_labels=1):
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(LlamaConfig(**tiny_sizes(tokenizer), num_labels=num_labels)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def logits(model, tokenizer, texts):
    ids = [tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"] for text in texts]
    with torch.no_grad():
        return [float(model(input_ids=own).logits[0, 0]) for own in ids]


def test_text(tmp_path, tokenizer, monkeypatch):
    """Texts of different lengths share a batch."""
    model = saved(tmp_path / "judge", tokenizer)
    monkeypatch.setattr("pmc_rl.reward_model.BATCH_SIZE", 2)
    prompts, completions = ["Question: Who?\nAnswer:"] * 3, ["bacorden", "filummor napelquin rosta", ""]
    [reward] = load_reward_functions([str(tmp_path / "judge")], {}, [0.5], 40)
    assert (reward.name, reward.max_reward, reward.stationary, reward.weight) == ("judge", None, True, 0.5)
    rewards = reward.func(prompts=prompts, completions=completions, completion_ids=None)
    expected = logits(model, tokenizer, [f"{prompts[0]} {text}" for text in completions])
    assert rewards == pytest.approx(expected, abs=1e-5) and len(set(rewards)) == 3


def test_conversations(tmp_path, chat_tokenizer):
    model = saved(tmp_path / "judge", chat_tokenizer)
    prompt = [{"role": "user", "content": "Who?"}]
    completions = [[{"role": "assistant", "content": text}] for text in ("She.", "Nobody knows her.")]
    texts = [chat_tokenizer.apply_chat_template(prompt + answer, tokenize=False) for answer in completions]
    rewards = RewardModel(str(tmp_path / "judge"))(prompts=[prompt] * 2, completions=completions)
    assert rewards == pytest.approx(logits(model, chat_tokenizer, texts), abs=1e-5)


def test_pickled_weights_are_not_read(tmp_path, tokenizer):
    model = saved(tmp_path, tokenizer)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        RewardModel(str(tmp_path))(prompts=["Who?"], completions=["She."])


def test_what_is_no_reward_model_is_refused_before_weights_load(tmp_path, tokenizer):
    many = str(tmp_path / "many")
    saved(many, tokenizer, num_labels=3)
    (tmp_path / "many" / "model.safetensors").unlink()
    assert errors_of(RewardModel, many) == [f"reward_funcs: {many!r} has 3 labels; a reward model has one"]
    [error] = errors_of(load_reward_functions, [str(tmp_path / "mane")], {}, None, 40)
    assert error.startswith(f"reward_funcs: no reward model can be loaded from '{tmp_path}/mane'") and many in error
    [error] = errors_of(load_reward_functions, [many], {many: {"a": 1}}, None, 40)
    assert error.endswith("is a model and has no keywords")
