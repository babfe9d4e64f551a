"""Snapshots: the weights of their step; those of another run, or of later steps, are made again or go."""

import copy
import json

import torch

from pmc_rl import train
from tests.training import BRIEF, make_trainer, save_model, unlearn_recipe, weights


def test_snapshots_of_a_run_that_goes_on(tmp_path, tokenizer, taught):
    """Killed behind its last checkpoint, it makes the later ones again and keeps the earlier ones."""

    def trainer():
        settings = {"max_steps": 4, "snapshot_steps": 1, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(tmp_path, copy.deepcopy(taught), tokenizer, **settings, **BRIEF)

    whole = trainer()
    whole.train()
    out = tmp_path / "out"
    record = [json.loads((out / "snapshots" / f"step-{step}" / "snapshot.json").read_text()) for step in (2, 3)]
    assert [entry["step"] for entry in record] == [2, 3] and 0 < record[0]["seconds"] < record[1]["seconds"]
    saved, then = (type(taught).from_pretrained(out / name) for name in ("snapshots/step-2", "checkpoint-2"))
    assert torch.equal(weights(saved), weights(then)) and not torch.equal(weights(saved), weights(whole.model))

    for step in (2, 3):
        (out / "snapshots" / f"step-{step}" / "old").touch()
    (out / "snapshots" / "mine").mkdir()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert {path.name for path in (out / "snapshots").iterdir()} == {"mine", "step-1", "step-2", "step-3"}
    assert (out / "snapshots" / "step-2" / "old").exists() and not (out / "snapshots" / "step-3" / "old").exists()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_snapshots_of_a_replaced_run_go(tmp_path, tokenizer, model, data):
    folder = save_model(model, tokenizer, tmp_path / "taught")
    recipe = [unlearn_recipe(tmp_path, data, folder, max_steps=2, **BRIEF)]
    for more, names in (["--snapshot_steps", "1"], ["step-1"]), (["--overwrite", "true"], []):
        train.main([*recipe, *more, "--resume_from_checkpoint", "auto"])
        assert [path.name for path in (tmp_path / "unlearned").glob("snapshots/*")] == names
