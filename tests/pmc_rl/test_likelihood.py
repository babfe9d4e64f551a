"""Likelihoods against plain torch, and that the model before unlearning is the one before unlearning."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

import pmc_rl.likelihood
from pmc_rl.likelihood import OriginalLogLikelihood, mean_log_probs
from tests.conftest import build_llama, build_phi

PROMPTS = ["Question: Who?\nAnswer:", "Question: Who is bacorden?\nAnswer:"]


def by_hand(model, prompt, target):
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    own = [log_probs[len(prompt) + i - 1, token] for i, token in enumerate(target)]
    return float(torch.stack(own).mean())


@pytest.mark.parametrize("build", [build_llama, build_phi])
@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_mean_log_probs(monkeypatch, tokenizer, build, tokens):
    """Rows of all lengths, some equal; batches and chunks of logits of any size."""
    model = build(tokenizer).eval()
    monkeypatch.setattr(pmc_rl.likelihood, "TOKENS_PER_BATCH", {"cpu": tokens})
    monkeypatch.setattr(pmc_rl.likelihood, "LOGITS_PER_CHUNK", {"cpu": 3 * len(tokenizer)})
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    rows = [(prompts[i % 2], list(range(3, 4 + i % 5))) for i in range(9)] + [(prompts[0], [])]
    means = mean_log_probs(model, rows)
    assert means[:-1] == pytest.approx([by_hand(model, *row) for row in rows[:-1]], abs=1e-5)
    assert math.isnan(means[-1])


@pytest.mark.parametrize("lora", [False, True])
def test_the_model_before_unlearning_is_asked(tokenizer, lora):
    model = build_phi(tokenizer).train()
    rows = [(tokenizer(prompt)["input_ids"], [5, 6, tokenizer.eos_token_id]) for prompt in PROMPTS]
    before = mean_log_probs(build_phi(tokenizer).eval(), rows)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    original = OriginalLogLikelihood()
    original.remember(model, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.5
    assert original(PROMPTS, [ids for _, ids in rows]) == pytest.approx(before, abs=1e-6)
    assert model.training  # left as it was
    assert mean_log_probs(model.eval(), rows) != pytest.approx(before, abs=1e-3)


def test_prompts_as_messages(chat_tokenizer):
    model = build_llama(chat_tokenizer).eval()
    original = OriginalLogLikelihood({"date_string": "1 May 2025"})
    original.remember(model, chat_tokenizer)
    prompts = [
        [{"role": "user", "content": "Who?"}],
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She"}],
    ]
    texts = [
        chat_tokenizer.apply_chat_template(
            prompts[0], add_generation_prompt=True, tokenize=False, date_string="1 May 2025"
        ),
    ]
    texts.append(texts[0] + "She")
    ids = [chat_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = [by_hand(model, prompt, [5, 6]) for prompt in ids]
    assert original(prompts, [[5, 6], [5, 6]]) == pytest.approx(expected, abs=1e-5)
