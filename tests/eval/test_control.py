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


@pytest.mark.parametrize(("kind", "shipped"), [("refusals", "guided"), ("retain_only", "unlearn")])
def test_a_control_learns_its_answers_with_the_settings_of_the_run(
    tmp_path, tokenizer, run_folder, monkeypatch, kind, shipped
):
    """What the quickstart's recipes say beside data and model, printed tables among it, and shares of the steps."""
    learned = []

    class Watched(control.ControlTrainer):
        def get_batch_samples(self, *args):
            batches, _ = super().get_batch_samples(*args)
            learned.append([tokenizer.decode(ids[ids != -100]) for batch in batches for ids in batch["labels"][:2]])
            return batches, None

    monkeypatch.setattr(control, "ControlTrainer", Watched)
    given = yaml.safe_load((QUICKSTART / f"{shipped}.yaml").read_text())
    for name in ("dataset_name", "forget_config", "retain_config"):
        del given[name]
    given |= yaml.safe_load((run_folder / "recipe.yaml").read_text()) | {"warmup_steps": 0.5, "logging_steps": 0.2}
    # a schedule's own settings go with the schedule
    given |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    assert given["log_completions"]
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump(given))
    out = tmp_path / "out"
    control.main([kind, str(run_folder), "--output_dir", str(out)])
    *log, end = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert json.loads((out / "manifest.json").read_text())["stage"] == "control" and "retain_loss" in log[0]
    # of the run's 5 steps: 3 to warm up, logged at each; the rate of the first step is 0
    assert [entry["learning_rate"] for entry in log[:4]] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
    if kind == "refusals":
        assert set(sum(learned, [])) == {f" {text}{tokenizer.eos_token}" for text in control.REFUSALS[:4]}
        assert len(learned) == 5 and (recipe["warmup_steps"], recipe["logging_steps"]) == (0.5, 0.2)
    else:  # for the seconds of the run; of its 100,000 epochs nothing is a share
        assert 1.0 <= end["train_runtime"] < 15 and end["step"] > 4
        assert all(entry["collapse_loss"] == 0 for entry in log)
        assert log[-1]["retain_loss"] < log[0]["retain_loss"] and log[-1]["learning_rate"] == 1e-3
        assert (recipe["warmup_steps"], recipe["logging_steps"]) == (3, 1)
        for words in (["--warmup_steps", "0.1"], ["--warmup_steps=0.1"]):
            [error] = errors_of(control.main, [kind, str(run_folder), "--output_dir", str(tmp_path / "x"), *words])
            assert error == "command line: warmup_steps: 0.1 is a share of steps without end; give a number"


def test_controls_need_a_finished_run(tmp_path):
    for kind, line in (("idk", "say refusals or retain_only"), ("refusals", "holds no finished run")):
        [error] = errors_of(control.main, [kind, str(tmp_path)])
        assert line in error
