"""Checkpoints: a resumed run equals the uninterrupted one bit for bit; which checkpoint counts; what is refused."""

import copy
import json
import os
import shutil
import signal
import stat
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from eval.study.control import ControlTrainer
from pmc_rl import finetune, train
from pmc_rl.checkpoints import STATE, begin_run, check_resume, last_checkpoint, read_state, remove_checkpoints
from pmc_rl.config import RunConfig
from pmc_rl.errors import RecipeError
from pmc_rl.folders import CHECKPOINT_MARK
from pmc_rl.output import MANIFEST, check_output_dir, read_manifest
from tests.conftest import build_phi, errors_of
from tests.training import (
    SETTINGS,
    StopAt,
    figures,
    finetune_recipe,
    make_trainer,
    save_model,
    unlearn_recipe,
    weights,
)

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


@pytest.mark.parametrize(("kind", "step"), [("full", 2), *((kind, 3) for kind in KINDS)])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, tokenizer, taught, kind, step):
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
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert not torch.equal(weights(stopped.model), weights(whole.model))
    assert figures(resumed) == figures(whole)
    seconds = [run.state.log_history[-1]["train_runtime"] for run in (stopped, resumed)]
    assert seconds[1] > seconds[0] > 0  # the whole time, not that since it went on
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert resumed.sampler.state() == whole.sampler.state()


def test_metrics_between_two_logs_survive(tmp_path, tokenizer, taught):
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


def test_checkpoints_are_private_and_the_last_two_are_kept(tmp_path, tokenizer, model):
    trainer = make_trainer(tmp_path, model, tokenizer, **SETTINGS, save_strategy="steps", save_steps=3)
    trainer.train()
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name for folder in folders] == ["checkpoint-6", "checkpoint-8"]  # 3 went; no model card was made
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "PRIVATE" in (folder / CHECKPOINT_MARK).read_text()
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE} <= set(os.listdir(folder))
    state = read_state(folders[0])
    assert state["original_completions"] == trainer.train_dataset["original_completion"][:]
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


def test_a_control_can_be_stopped_as_well(tmp_path, tokenizer, model):
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


class Kills:
    """Copies of a folder as SIGKILL would leave it: before each call of the operating system that changes a file."""

    EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self, folder, copies):
        self.folder, self.copies, self.states = folder, copies, []
        self.seen, self.watching = None, False
        sys.addaudithook(self.look)

    def look(self, event, args):
        if not self.watching or event not in self.EVENTS or (event == "open" and not args[2] & os.O_CREAT):
            return
        self.watching = False
        files = sorted((str(path), path.is_file() and path.stat().st_size) for path in self.folder.rglob("*"))
        if files != self.seen:
            self.seen = files
            self.states.append(self.copies / str(len(self.states)))
            if self.folder.exists():
                shutil.copytree(self.folder, self.states[-1])
            else:
                self.states[-1].mkdir()
        self.watching = True

    def during(self, run, *args):
        """The states while `run` went to its end, and what it left."""
        self.watching = True
        run(*args)
        self.watching = False
        self.seen = None
        self.states.append(self.copies / str(len(self.states)))
        shutil.copytree(self.folder, self.states[-1])
        return self.states


def kind_of(state) -> tuple:
    """States of one kind are gone on from in one way."""
    names = {path.name.partition("-")[0] for path in state.iterdir()}
    saving = {path.name for folder in state.glob(".saving-*") for path in folder.iterdir()}
    names &= {"adapter_config.json", "merged", "private", MANIFEST}
    checkpoint = last_checkpoint(state)
    return checkpoint is None or checkpoint.name == "checkpoint-3", frozenset(names), MANIFEST in saving


def put(state, folder) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder)


def tree(folder) -> dict:
    """The files of a run, but for those with times in them."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: name.endswith(("jsonl", "snapshot.json")) or path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_killed_at_any_moment_goes_on_by_the_same_line(tmp_path, tokenizer, data, earlier):
    """Over nothing, or over an earlier run with its audit, its snapshots and a file that is not ours."""
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    lora = {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_r": 2, "save_merged": True}
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "snapshot_steps": 2}
    out, line = tmp_path / "unlearned", [unlearn_recipe(tmp_path, data, untrained, **lora, **steps)]
    if earlier:
        train.main([*line, "--use_peft", "false", "--save_merged", "false", "--snapshot_steps", "1"])
        (out / "notes.txt").write_text("mine")
        (out / "results.json").write_text("of the earlier run")
        line += ["--overwrite", "true"]
    line += ["--resume_from_checkpoint", "auto"]
    states = Kills(out, tmp_path).during(train.main, line)
    whole = tree(out)
    assert "merged/model.safetensors" in whole and "snapshots/step-2/snapshot.json" in whole
    assert not any("checkpoint" in name or name.startswith(".") or name == "results.json" for name in whole)
    assert whole.get("notes.txt") == (b"mine" if earlier else None)
    gone_on = set()
    for state in states:
        manifest = read_manifest(state)
        if manifest is not None:  # then the folder is complete
            assert {*manifest["files"]} <= {path.name for path in state.iterdir()}
        put(state, out)
        [*told] = check_without_flags(out)
        assert all("--overwrite true" in error for error in told)
        kind = kind_of(state)
        if kind not in gone_on:
            gone_on.add(kind)
            train.main(line)
            assert tree(out) == whole
    assert len(gone_on) > 4


def check_without_flags(folder) -> list[str]:
    try:
        check_output_dir(RunConfig(output_dir=str(folder), use_cpu=True), ModelConfig(model_name_or_path="some/model"))
    except RecipeError as error:
        return error.errors
    return []


def test_a_finetuning_killed_at_any_moment_is_begun_anew(tmp_path, tokenizer, data):
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    out, line = tmp_path / "finetuned", [finetune_recipe(tmp_path, data, untrained, max_steps=1)]
    states = Kills(out, tmp_path).during(finetune.main, line)
    whole = tree(out)
    gone_on = set()
    for state in states:
        put(state, out)
        [*told] = check_without_flags(out)
        assert all("--overwrite true" in error for error in told)
        kind = kind_of(state)
        if kind not in gone_on:
            gone_on.add(kind)
            finetune.main(line if not told else [*line, "--overwrite", "true"])
            assert tree(out).keys() == whole.keys()
    assert len(gone_on) > 3


def test_what_is_not_ours_is_not_removed(tmp_path):
    """Beside what a killed run left, whatever it is called."""
    (tmp_path / "out").mkdir()
    mine = [tmp_path / "out" / name for name in (".saving-notes.txt", "checkpoint-best", "checkpoint-7", "snapshots")]
    for path in mine[1:]:
        path.mkdir()
        (path / "mine.txt").touch()
    mine[0].touch()
    assert "choose another folder" in check_without_flags(tmp_path / "out")[0]
    folders(tmp_path / "out", "checkpoint-5", ".saving-x")
    copies = [tmp_path / "out" / name for name in ("checkpoint-5.bak", "checkpoint-old-5")]
    for copied in copies:
        shutil.copytree(tmp_path / "out" / "checkpoint-5", copied)
    assert last_checkpoint(tmp_path / "out").name == "checkpoint-5"
    begin_run(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file() or any(path.iterdir())}
    assert names == {path.name for path in [*mine, *copies]}


def test_checkpoints_of_another_program_are_kept(tmp_path, tokenizer, model):
    (tmp_path / "out" / "checkpoint-500").mkdir(parents=True)
    os.utime(tmp_path / "out" / "checkpoint-500", (0, 0))
    make_trainer(tmp_path, model, tokenizer, **SETTINGS, save_strategy="steps", save_steps=3).train()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["checkpoint-500", "checkpoint-6", "checkpoint-8"]


def test_auto_on_a_finished_run(tmp_path, tokenizer, data, capsys):
    """Started once more it has nothing to do, and another run does not take its place unasked."""
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    line = [unlearn_recipe(tmp_path, data, untrained, max_steps=1), "--resume_from_checkpoint", "auto"]
    train.main(line)
    before = tree(tmp_path / "unlearned")
    train.main(line)
    assert "holds this run, finished" in capsys.readouterr().out
    for other in (["--seed", "5"], ["--retain_config", "real_authors"]):
        [error] = errors_of(train.main, [*line, *other])
        assert "holds a run" in error and "--overwrite true" in error
    assert tree(tmp_path / "unlearned") == before
