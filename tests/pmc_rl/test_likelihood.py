"""Likelihoods against plain torch."""

import math

import pytest
import torch

import pmc_rl.likelihood
from pmc_rl.likelihood import mean_log_probs
from tests import architectures
from tests.conftest import build_llama, build_phi


def by_hand(model, prompt, target):
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    return float(torch.stack([log_probs[len(prompt) + i - 1, token] for i, token in enumerate(target)]).mean())


@pytest.mark.parametrize(("build", "tokens"), [(build_llama, 1), (build_phi, 40), (build_llama, 4096)])
def test_mean_log_probs(monkeypatch, tokenizer, build, tokens):
    """Rows of all lengths, some equal; batches and chunks of logits of any size."""
    model = build(tokenizer).eval()
    monkeypatch.setattr(pmc_rl.likelihood, "TOKENS_PER_BATCH", {"cpu": tokens})
    monkeypatch.setattr(pmc_rl.likelihood, "LOGITS_PER_CHUNK", {"cpu": 3 * len(tokenizer)})
    prompts = [
        tokenizer(text)["input_ids"] for text in ("Question: Who?\nAnswer:", "Question: Who is bacorden?\nAnswer:")
    ]
    rows = [(prompts[i % 2], list(range(3, 4 + i % 5))) for i in range(9)] + [(prompts[0], [])]
    means = mean_log_probs(model, rows)
    assert means[:-1] == pytest.approx([by_hand(model, *row) for row in rows[:-1]], abs=1e-5)
    assert math.isnan(means[-1])


@pytest.mark.parametrize("kind", ["bloom", "gemma3_text", "gpt2", "mamba", "mistral"])
def test_equal_prompts_are_read_once(monkeypatch, kind):
    """Positions by ALiBi, by table and by rotation; windows shorter than a prompt; a recurrent one reads all again."""
    model = architectures.build(kind)
    prompts = [list(range(3, 3 + length)) for length in (14, 2, 9)]
    rows = [(prompt, [20 + i * j % 90 for j in range(1 + 4 * i)]) for prompt in prompts for i in range(4)]
    expected = [by_hand(model, *row) for row in rows]
    read, forward = [], type(model.get_decoder()).forward
    monkeypatch.setattr(
        type(model.get_decoder()),
        "forward",
        lambda self, input_ids, **kwargs: read.append(input_ids.numel()) or forward(self, input_ids, **kwargs),
    )
    assert mean_log_probs(model, rows) == pytest.approx(expected, abs=1e-4)
    assert sum(read) == (12 * 27 if kind == "mamba" else 3 * 13 + 12 * 14)
