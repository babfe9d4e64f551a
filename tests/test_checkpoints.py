"""Checkpoints: a resumed run equals the uninterrupted one bit for bit; which checkpoint counts; what is refused."""

import copy
import json
import os
import signal
import stat
from functools import partial

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from trl import ModelConfig

from pmc_rl.checkpoints import STATE, check_resume, last_checkpoint, read_state, remove_checkpoints
from pmc_rl.config import RunConfig
from pmc_rl.control import ControlTrainer
from pmc_rl.output import CHECKPOINT_MARK, MANIFEST, check_output_dir
from tests.conftest import errors_of
from tests.test_trainer import make_trainer, model, taught, weights  # noqa: F401

# 7 questions in windows of 4: steps 2, 4, 6 and 8 end an epoch, the others stand in its middle
SETTINGS = {"num_train_epochs": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")


class StopAt(TrainerCallback):
    """Sends this process a signal in the middle of a step; SIGTERM twice, as a scheduler and a launcher do."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        self.step = step
        self.number = number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)
            if self.number == signal.SIGTERM:
                os.kill(os.getpid(), self.number)


def figures(trainer) -> list[dict]:
    """What was logged, but for seconds."""
    logs = trainer.state.log_history
    return [{key: log[key] for key in log if not key.startswith("time/") and key not in TIMES} for log in logs]


KINDS = {
    "full": {},
    "lora with dropout": {
        "peft_config": lambda: LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    },
    "not stationary": {"rewards": ("rewards.rouge.rouge_dissimilarity", "rewards.diversity.duplicate_penalty")},
    "bradley_terry": {"selection": "bradley_terry", "selection_temperature": 0.3, "num_selected": 2},
    "adaptive": {"adaptive_generations": True, "prefill_words": 1, "num_selected": 2},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, tokenizer, taught, kind, step):  # noqa: F811
    def trainer(name):
        kwargs = {key: value() if callable(value) else value for key, value in KINDS[kind].items()}
        torch.manual_seed(len(name))  # nothing may hang on the state of the global generator
        return make_trainer(tmp_path / name, copy.deepcopy(taught), tokenizer, **SETTINGS, **kwargs)

    whole = trainer("whole")
    whole.train()
    stopped = trainer("stopped")
    stopped.add_callback(StopAt(step))
    stopped.train()
    assert stopped.checkpoints.stopped_by == signal.SIGTERM
    checkpoint = last_checkpoint(tmp_path / "stopped" / "out")
    assert checkpoint.name == f"checkpoint-{step}"
    resumed = trainer("stopped")
    generated = []
    generate = resumed._generate
    resumed._generate = lambda *args, **kwargs: generated.append(kwargs) or generate(*args, **kwargs)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not any(kwargs.get("progress") == "original answers" for kwargs in generated)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert not torch.equal(weights(stopped.model), weights(whole.model))
    assert figures(resumed) == figures(whole)
    seconds = [run.state.log_history[-1]["train_runtime"] for run in (stopped, resumed)]
    assert seconds[1] > seconds[0] > 0  # the whole time, not that since it went on
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert resumed.sampler.state() == whole.sampler.state()


def test_metrics_between_two_logs_survive(tmp_path, tokenizer, taught):  # noqa: F811
    settings = SETTINGS | {"logging_steps": 4}
    whole = make_trainer(tmp_path / "whole", copy.deepcopy(taught), tokenizer, **settings)
    whole.train()
    stopped = make_trainer(tmp_path / "out", copy.deepcopy(taught), tokenizer, **settings)
    stopped.add_callback(StopAt(2, signal.SIGINT))
    stopped.train()
    resumed = make_trainer(tmp_path / "out", copy.deepcopy(taught), tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "out" / "out")))
    for name in ("reward", "reward_selected", "collapse_loss", "retain_loss", "completions/mean_length"):
        assert resumed.state.log_history[0][name] == whole.state.log_history[0][name]


def test_checkpoints_are_private_and_the_last_two_are_kept(tmp_path, tokenizer, model):  # noqa: F811
    trainer = make_trainer(tmp_path, model, tokenizer, **SETTINGS, save_strategy="steps", save_steps=3)
    trainer.train()
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name for folder in folders] == ["checkpoint-6", "checkpoint-8"]  # 3 went; no model card was made
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "PRIVATE" in (folder / CHECKPOINT_MARK).read_text()
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE} <= set(os.listdir(folder))
    state = read_state(folders[0])
    assert state["original_completions"] == trainer.original_completions
    assert state["sampler"]["num_samples"] > 0


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        if not name.startswith("."):
            (tmp_path / name / STATE).write_text("{}")
            (tmp_path / name / CHECKPOINT_MARK).touch()


def test_only_a_complete_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "missing") is None
    folders(tmp_path, "checkpoint-9", "checkpoint-10", "checkpoint-20", ".saving-x")
    (tmp_path / "checkpoint-20" / STATE).unlink()  # killed before it was written
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-500").mkdir()  # of another program, and so is this:
    (tmp_path / "checkpoint-best").touch()
    remove_checkpoints(tmp_path, keep=tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-500", "checkpoint-best"]
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_finished_run_is_not_resumed_but_one_begun_after_it_is(tmp_path):
    folders(tmp_path, "checkpoint-5")
    (tmp_path / MANIFEST).write_text('{"files": []}')
    os.utime(tmp_path / MANIFEST, ns=(0, (tmp_path / "checkpoint-5" / STATE).stat().st_mtime_ns + 1))
    assert last_checkpoint(tmp_path) is None
    os.utime(tmp_path / MANIFEST, ns=(0, 0))
    assert last_checkpoint(tmp_path).name == "checkpoint-5"


def test_another_run_is_refused(tmp_path):
    record = {
        "recipe": {"num_generations": 4, "seed": 1, "output_dir": "a"},
        "read": {"forget": {"source": "x", "columns": {"question": "1"}}, "retain": None},
        "processes": 1,
    }
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / STATE).write_text(json.dumps({"record": record}))
    harmless = record | {
        "recipe": {"num_generations": 4, "seed": 1, "output_dir": "b", "attacks": [], "logging_steps": 9},
        "read": {"forget": {"source": "y", "columns": {"question": "1"}}, "retain": None},
    }
    check_resume(folder, harmless)
    other = {
        "recipe": {"num_generations": 5, "output_dir": "a"},
        "read": {"forget": {"source": "x", "columns": {"question": "2"}}, "retain": None},
        "processes": 2,
    }
    errors = errors_of(check_resume, folder, other)
    assert [error.split()[0] for error in errors] == ["num_generations:", "seed:", "the", "num_processes:"]
    assert "5, but" in errors[0] and "made with 4" in errors[0]
    assert "'(not given)', but" in errors[1]
    assert "forget rows have changed" in errors[2]
    assert "2, but" in errors[3] and "made with 1" in errors[3]


def test_a_control_can_be_stopped_as_well(tmp_path, tokenizer, model):  # noqa: F811
    """It makes no original answers, which a checkpoint else holds."""
    make = partial(ControlTrainer, targets=[[5, 1]] * 7, seconds=None)
    trainer = make_trainer(tmp_path, model, tokenizer, make=make, **SETTINGS)
    trainer.add_callback(StopAt(2))
    trainer.train()
    assert last_checkpoint(tmp_path / "out").name == "checkpoint-2"


def test_an_unfinished_run_is_neither_overwritten_nor_taken_for_finished(tmp_path):
    folders(tmp_path, "checkpoint-5")
    model_args = ModelConfig(model_name_or_path="some/model")
    args = RunConfig(output_dir=str(tmp_path), use_cpu=True)
    [line] = errors_of(check_output_dir, args, model_args)
    assert "--resume_from_checkpoint auto" in line and "--overwrite true" in line
    check_output_dir(args, model_args, resume=True)
    check_output_dir(RunConfig(output_dir=str(tmp_path), use_cpu=True, overwrite=True), model_args)


def test_a_folder_with_checkpoints_of_another_program_is_refused(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    model_args = ModelConfig(model_name_or_path="some/model")
    args = RunConfig(output_dir=str(tmp_path), use_cpu=True, overwrite=True)
    [line] = errors_of(check_output_dir, args, model_args)
    assert "no finished run" in line
