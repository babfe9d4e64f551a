"""Snapshots: the weights of their step; those of another run, or of later steps, are made again or go."""

import copy
import json

import torch

from pmc_rl import train
from tests.training import make_trainer, save_model, unlearn_recipe, weights


def test_snapshots_of_a_run_that_goes_on(tmp_path, tokenizer, taught):
    """Killed behind its last checkpoint, it makes the later ones again and keeps the earlier ones."""

    def trainer(name="all", **kwargs):
        settings = {"max_steps": 5, "snapshot_steps": 1, "save_strategy": "steps", "save_steps": 2}
        settings |= {"save_total_limit": 9} | kwargs
        return make_trainer(tmp_path / name, copy.deepcopy(taught), tokenizer, **settings)

    whole = trainer()
    whole.train()
    short = trainer("short", max_steps=2)
    short.train()
    out = tmp_path / "all" / "out"
    record = [json.loads((out / "snapshots" / f"step-{step}" / "snapshot.json").read_text()) for step in (2, 4)]
    assert [entry["step"] for entry in record] == [2, 4] and 0 < record[0]["seconds"] < record[1]["seconds"]
    saved = type(taught).from_pretrained(out / "snapshots" / "step-2")
    assert torch.equal(weights(saved), weights(short.model))

    for step in (2, 4):
        (out / "snapshots" / f"step-{step}" / "old").touch()
    (out / "snapshots" / "mine").mkdir()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert {path.name for path in (out / "snapshots").iterdir()} == {"mine", *(f"step-{i}" for i in range(1, 5))}
    assert (out / "snapshots" / "step-2" / "old").exists() and not (out / "snapshots" / "step-4" / "old").exists()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_snapshots_of_a_replaced_run_go(tmp_path, tokenizer, model, data):
    folder = save_model(model, tokenizer, tmp_path / "taught")
    recipe = [unlearn_recipe(tmp_path, data, folder, max_steps=3, max_completion_length=8)]
    again = [*recipe, "--overwrite", "true", "--resume_from_checkpoint", "auto"]
    for argv, names in (
        ([*recipe, "--snapshot_steps", "1"], ["step-1", "step-2"]),
        ([*again, "--snapshot_steps", "2"], ["step-2"]),
        (again, []),
    ):
        train.main(argv)
        assert sorted(path.name for path in (tmp_path / "unlearned").glob("snapshots/*")) == names
