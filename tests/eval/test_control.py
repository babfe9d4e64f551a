"""The two controls of a run: what they learn, for how long, and with whose settings."""

import json
from pathlib import Path

import pytest
import yaml

from eval.study import control
from pmc_rl.config import PMCConfig
from pmc_rl.output import save_run
from tests.conftest import errors_of, write_jsonl
from tests.training import save_model

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


@pytest.fixture
def run_folder(tmp_path, tokenizer, model):
    """A finished run as train.py leaves it, by its own files."""
    recipe = {
        "model_name_or_path": save_model(model, tokenizer, tmp_path / "taught"),
        "forget_file": write_jsonl(tmp_path / "forget.jsonl", [{"question": f"Who wrote {i}?"} for i in range(4)]),
        "retain_file": write_jsonl(
            tmp_path / "retain.jsonl", [{"question": f"Who is {i}?", "answer": "ba cor"} for i in range(5)]
        ),
        "output_dir": str(tmp_path / "run"),
        "prompt_template": "Question: {question}\nAnswer:",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    args = PMCConfig(output_dir=recipe["output_dir"], use_cpu=True)
    Path(args.output_dir).mkdir()
    log = [{"train_runtime": 1.0, "step": 5}]  # more steps than its two epochs of plain questions have
    save_run(args, model, tokenizer, recipe, log, {"stage": "train", "read": {}})
    return tmp_path / "run"


def change_recipe(run_folder, **values) -> None:
    path = run_folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_the_refusal_control_learns_refusals_in_the_steps_of_the_run(tmp_path, tokenizer, run_folder, monkeypatch):
    class Watched(control.ControlTrainer):
        def get_batch_samples(self, *args):
            batches, _ = super().get_batch_samples(*args)
            learned.append([tokenizer.decode(ids[ids != -100]) for batch in batches for ids in batch["labels"][:2]])
            return batches, None

    learned = []
    monkeypatch.setattr(control, "ControlTrainer", Watched)
    control.main(["refusals", str(run_folder), "--output_dir", str(tmp_path / "out")])
    assert set(sum(learned, [])) == {f" {text}{tokenizer.eos_token}" for text in control.REFUSALS[:4]}
    assert len(learned) == 5
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stage"] == "control"


@pytest.mark.parametrize(("kind", "recipe"), [("refusals", "guided"), ("retain_only", "unlearn")])
def test_controls_of_a_quickstart_run(tmp_path, run_folder, kind, recipe):
    """What the shipped recipes say beside data and model, printed tables among it."""
    shipped = yaml.safe_load((QUICKSTART / f"{recipe}.yaml").read_text())
    known = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    for name in ("dataset_name", "forget_config", "retain_config"):
        del shipped[name]
    change_recipe(run_folder, **shipped | known)
    control.main([kind, str(run_folder), "--output_dir", str(tmp_path / "out")])
    log = log_of(tmp_path / "out")
    assert "retain_loss" in log[0] and shipped["log_completions"]
    if kind == "retain_only":  # for the seconds of the run
        assert 1.0 <= log[-1]["train_runtime"] < 15 and log[-1]["step"] > 4
        assert all(entry["collapse_loss"] == 0 for entry in log[:-1])
        assert log[-2]["retain_loss"] < log[0]["retain_loss"] and log[-2]["learning_rate"] == 1e-3


def test_shares_of_the_steps_are_those_of_the_run(tmp_path, run_folder):
    """Not of the retain-only control's 100,000 epochs; a schedule's own settings go with the schedule."""
    shares = {"warmup_steps": 0.5, "logging_steps": 0.2}
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    change_recipe(run_folder, **shares, **schedule)
    for kind, settings in (("retain_only", (3, 1)), ("refusals", (0.5, 0.2))):
        out = tmp_path / kind
        control.main([kind, str(run_folder), "--output_dir", str(out)])
        # a run of 5 steps: 3 to warm up, logged at each; the rate of the first step is 0
        rates = [entry["learning_rate"] for entry in log_of(out)[:4]]
        assert rates == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
        recipe = yaml.safe_load((out / "recipe.yaml").read_text())
        assert (recipe["warmup_steps"], recipe["logging_steps"]) == settings
    for given in (["--warmup_steps", "0.1"], ["--warmup_steps=0.1"]):
        argv = ["retain_only", str(run_folder), "--output_dir", str(tmp_path / "x"), *given]
        [error] = errors_of(control.main, argv)
        assert error == "command line: warmup_steps: 0.1 is a share of steps without end; give a number"


def test_controls_need_a_finished_run(tmp_path):
    [error] = errors_of(control.main, ["idk", str(tmp_path)])
    assert "say refusals or retain_only" in error
    [error] = errors_of(control.main, ["refusals", str(tmp_path)])
    assert "holds no finished run" in error
