"""The naive schedule of benchmarks/schedule.py: the same samples and the same weights as ours."""

import copy

import pytest
import torch

from benchmarks.schedule import SCORER, Naive, Ours, print_table
from tests.training import make_trainer, weights


def test_naive_schedule_equals_ours(tmp_path, tokenizer, taught, monkeypatch, capsys):
    """Three windows of up to two micro-batches of two questions, one of them short, and questions that are solved."""
    scored = []
    score = SCORER.score
    monkeypatch.setattr(SCORER, "score", lambda *texts: scored.append(texts) or score(*texts))
    runs = {}
    for trainer_class in (Ours, Naive):
        model = copy.deepcopy(taught)
        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "optim": "sgd"}
        settings |= {"max_reward": 0.6, "allow_unfinished": True, "max_completion_length": 24, "make": trainer_class}
        trainer = make_trainer(tmp_path, model, tokenizer, **settings)
        before = weights(model)
        trainer.train()
        assert (weights(model) - before).abs().max() > 1e-3
        runs[trainer_class] = trainer
        assert bool(scored) == (trainer_class is Naive)

    ours, naive = (runs[trainer_class].measured for trainer_class in (Ours, Naive))
    assert ours.samples == naive.samples
    assert len(ours.samples) == runs[Ours].sampler.num_samples == runs[Naive].sampler.num_samples < 11 * 4
    assert torch.allclose(weights(runs[Ours].model), weights(runs[Naive].model), rtol=0, atol=1e-5)
    assert ours.tokens_trained == naive.tokens_trained > 0
    for run in (ours, naive):
        parts = [run.seconds[part] for part in ("generation", "rewards", "update", "other")]
        assert sum(parts) == pytest.approx(run.seconds["all"]) and min(map(min, parts)) > 0
    print_table(ours, naive, steps=3)
    assert f"3 optimizer steps, {len(ours.samples)} samples" in capsys.readouterr().out
