"""Checkpoints: a resumed run equals the uninterrupted one bit for bit; kills; which checkpoint counts; refusals."""

import copy
import json
import os
import shutil
import signal
import stat
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trl import ModelConfig

from eval.study.control import ControlTrainer
from pmc_rl import finetune, train
from pmc_rl.checkpoints import STATE, check_resume, last_checkpoint, read_state, remove_checkpoints
from pmc_rl.errors import RecipeError
from pmc_rl.folders import CHECKPOINT_MARK, SNAPSHOT_RECORD
from pmc_rl.output import MANIFEST, UNDO, check_output_dir, read_manifest
from pmc_rl.run_folder import begin
from tests.conftest import build_phi, errors_of
from tests.training import (
    BRIEF,
    ROUGE,
    SETTINGS,
    StopAt,
    figures,
    finetune_recipe,
    lora,
    make_trainer,
    save_model,
    unlearn_recipe,
    weights,
)

KINDS = {
    "full": {},
    "lora with dropout": {"peft_config": lora(lora_alpha=8, lora_dropout=0.2), "gradient_checkpointing": True},
    "not stationary": {"rewards": (ROUGE, "rewards.diversity.duplicate_penalty")},
    "bradley_terry": {
        "selection": "bradley_terry",
        "selection_temperature": 0.3,
        "num_selected": 2,
        "logging_steps": 4,
    },
    "adaptive": {"adaptive_generations": True, "prefill_share": 0.5, "num_selected": 2, "retain_loss": "kl"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, tokenizer, taught, kind):
    settings = SETTINGS | {"num_train_epochs": 2, "max_completion_length": 24, "allow_unfinished": True} | KINDS[kind]
    step = 2 if kind == "full" else 3  # the end of an epoch, or inside of one; of bradley_terry between two logs
    number = signal.SIGINT if kind == "bradley_terry" else signal.SIGTERM

    def trainer(name):
        torch.manual_seed(len(name))  # nothing may hang on the state of the global generator
        return make_trainer(tmp_path / name, copy.deepcopy(taught), tokenizer, **settings)

    whole = trainer("whole")
    whole.train()
    stopped = trainer("stopped")
    stopped.add_callback(StopAt(step, number))
    stopped.train()
    assert stopped.checkpoints.stopped_by == number
    checkpoint = last_checkpoint(tmp_path / "stopped" / "out")
    assert checkpoint.name == f"checkpoint-{step}"
    resumed = trainer("stopped")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert not torch.equal(weights(stopped.model), weights(whole.model))
    if settings.get("logging_steps"):  # the Trainer forgets its own figures between two logs
        for name in ("reward", "reward_selected", "collapse_loss", "retain_loss", "completions/mean_length"):
            assert resumed.state.log_history[0][name] == whole.state.log_history[0][name]
    else:
        assert figures(resumed) == figures(whole)
    seconds = [run.state.log_history[-1]["train_runtime"] for run in (stopped, resumed)]
    assert seconds[1] > seconds[0] > 0  # the whole time, not that since it went on
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert resumed.sampler.state() == whole.sampler.state()


def test_checkpoints_are_private_and_the_last_two_are_kept(tmp_path, tokenizer, model):
    out = tmp_path / "out"
    (out / "checkpoint-500").mkdir(parents=True)  # of another program
    os.utime(out / "checkpoint-500", (0, 0))
    trainer = make_trainer(tmp_path, model, tokenizer, **SETTINGS, **BRIEF, save_strategy="steps", save_steps=3)
    trainer.train()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["checkpoint-500", "checkpoint-6", "checkpoint-8"]  # 3 went; no model card was made
    for folder in (out / "checkpoint-6", out / "checkpoint-8"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "PRIVATE" in (folder / CHECKPOINT_MARK).read_text()
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE} <= set(os.listdir(folder))
    state = read_state(out / "checkpoint-6")
    assert state["original_completions"] == trainer.train_dataset["original_completion"][:]
    assert state["sampler"]["num_samples"] > 0


def test_a_control_can_be_stopped_as_well(tmp_path, tokenizer, model):
    """It makes no original answers, which a checkpoint else holds."""
    make = partial(ControlTrainer, targets=[[5, 1]] * 7, seconds=None)
    trainer = make_trainer(tmp_path, model, tokenizer, make=make, **SETTINGS, **BRIEF)
    trainer.add_callback(StopAt(2))
    trainer.train()
    assert last_checkpoint(tmp_path / "out").name == "checkpoint-2"


def make_folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").touch()
        if not name.startswith("."):
            (tmp_path / name / STATE).write_text("{}")
            (tmp_path / name / CHECKPOINT_MARK).touch()


def test_only_a_complete_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "missing") is None
    make_folders(tmp_path, "checkpoint-9", "checkpoint-10", "checkpoint-20", ".saving-x")
    (tmp_path / "checkpoint-20" / STATE).unlink()  # killed before it was written
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    remove_checkpoints(tmp_path, keep=tmp_path / "checkpoint-10")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    # a finished run is not gone on with, but one begun after it is
    saved = (tmp_path / "checkpoint-10" / STATE).stat().st_mtime_ns
    (tmp_path / MANIFEST).write_text('{"files": []}')
    for at, found in ((saved + 1, None), (0, tmp_path / "checkpoint-10")):
        os.utime(tmp_path / MANIFEST, ns=(0, at))
        assert last_checkpoint(tmp_path) == found


def test_another_run_is_refused(tmp_path):
    def record(recipe, column="1", source="x", processes=1):
        read = {"forget": {"source": source, "columns": {"question": column}}, "retain": None}
        return {"recipe": {"num_generations": 4, **recipe}, "read": read, "processes": processes}

    state = {"record": record({"seed": 1, "output_dir": "a"})}
    (tmp_path / STATE).write_text(json.dumps(state))
    harmless = {"seed": 1, "output_dir": "b", "attacks": [], "logging_steps": 9}
    check_resume(tmp_path, record(harmless, source="y"))
    errors = errors_of(check_resume, tmp_path, record({"num_generations": 5, "output_dir": "a"}, "2", processes=2))
    assert [error.split()[0] for error in errors] == ["num_generations:", "seed:", "the", "num_processes:"]
    for error, fragments in zip(
        errors,
        [("5, but", "made with 4"), ("'(not given)', but",), ("forget rows have changed",), ("2, but", "made with 1")],
        strict=True,
    ):
        assert all(fragment in error for fragment in fragments)


def refusals(folder, resume=False, overwrite=False) -> list[str]:
    """What a run in this folder is told. A RunConfig would reset accelerate, in the middle of the run that is seen."""
    args = SimpleNamespace(output_dir=str(folder), overwrite=overwrite, resume_from_checkpoint=None)
    try:
        check_output_dir(args, ModelConfig(model_name_or_path="some/model"), resume)
    except RecipeError as error:
        return error.errors
    return []


def test_what_stands_in_a_folder(tmp_path):
    make_folders(tmp_path, "ours/checkpoint-5")
    [line] = refusals(tmp_path / "ours")
    assert "--resume_from_checkpoint auto" in line and "--overwrite true" in line
    assert refusals(tmp_path / "ours", resume=True) == refusals(tmp_path / "ours", overwrite=True) == []
    (tmp_path / "theirs" / "checkpoint-500").mkdir(parents=True)  # of another program
    assert "no finished run" in refusals(tmp_path / "theirs", overwrite=True)[0]


def test_what_is_not_ours_is_not_removed(tmp_path):
    """Beside what a killed run left, whatever it is called."""
    mine = [tmp_path / name for name in (".saving-notes.txt", "checkpoint-best", "checkpoint-7", "snapshots")]
    for path in mine[1:]:
        path.mkdir()
        (path / "mine.txt").touch()
    mine[0].touch()
    assert "choose another folder" in refusals(tmp_path)[0]
    make_folders(tmp_path, "checkpoint-5", ".saving-x")
    copies = [tmp_path / name for name in ("checkpoint-5.bak", "checkpoint-old-5")]
    for copied in copies:
        shutil.copytree(tmp_path / "checkpoint-5", copied)
    assert last_checkpoint(tmp_path).name == "checkpoint-5"
    begin(SimpleNamespace(output_dir=str(tmp_path)))
    assert refusals(tmp_path) == []  # killed now it still tells of a run that began, beside files of others
    assert {path for path in tmp_path.iterdir() if path.is_file() or any(path.iterdir())} == {*mine, *copies}


class Kills:
    """
    Looks at a folder as SIGKILL would leave it: before each call of the operating system that changes a file. Copies
    those states before and after which the next run finds something else; all others are like one of these to it.
    """

    EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self, folder: Path, copies: Path):
        self.folder, self.copies = folder, copies
        self.states: dict[tuple, list[Path]] = {}  # by what is found in them
        self.looks, self.seen, self.watching, self.copy_next = 0, None, False, False
        sys.addaudithook(self.look)

    def look(self, event, args):
        if not self.watching or event not in self.EVENTS or (event == "open" and not args[2] & os.O_CREAT):
            return
        self.watching = False
        paths = [Path(arg).name for arg in args[:2] if isinstance(arg, (str, Path))]
        turns = event in ("os.rename", "os.remove") and not {STATE, MANIFEST, UNDO}.isdisjoint(paths)
        files = sorted((str(path), path.is_file() and path.stat().st_size) for path in self.folder.rglob("*"))
        if turns or (self.folder.exists(), files) != self.seen:
            self.seen = (self.folder.exists(), files)
            self.looks += 1
            self.check()
            if turns or self.copy_next or self.looks <= 3:  # the first ones: no folder, an empty one, a marked one
                self.copy()
            self.copy_next = turns
        self.watching = True

    def check(self):
        manifest = read_manifest(self.folder)
        if manifest is not None:  # then the folder is complete
            assert {*manifest["files"]} <= {path.name for path in self.folder.iterdir()}
        for name, mark in (("checkpoint-*", CHECKPOINT_MARK), ("snapshots/step-*", SNAPSHOT_RECORD)):
            assert all((path / mark).exists() for path in self.folder.glob(name))  # made and removed in one move
        assert all("--overwrite true" in line for line in refusals(self.folder))

    def copy(self):
        state = self.copies / f"killed-{self.looks}"
        shutil.copytree(self.folder, state) if self.folder.exists() else state.mkdir()
        checkpoint, manifest = last_checkpoint(state), read_manifest(state)
        begun = any(state.glob(f".saving-*/{UNDO}"))
        found = (checkpoint and checkpoint.name, manifest and "merged" in manifest["files"], begun)
        self.states.setdefault(found, []).append(state)

    def during(self, run, *args) -> dict:
        """The states while `run` went to its end: last checkpoint, kind of the finished run, whether files move up."""
        self.watching = True
        try:
            run(*args)
        finally:
            self.watching = False
        return self.states


def put(state, folder) -> None:
    shutil.rmtree(folder)
    shutil.copytree(state, folder)


def tree(folder) -> dict:
    """The files of a run, but for those with times in them."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: name.endswith(("jsonl", "snapshot.json")) or path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_killed_at_any_moment_goes_on_by_the_same_line(tmp_path, tokenizer, data, earlier):
    """Over nothing, or over an earlier run with its audit, its snapshots and a file that is not ours."""
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    adapter = {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_r": 2, "save_merged": True}
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "snapshot_steps": 2, **BRIEF}
    out, line = tmp_path / "unlearned", [unlearn_recipe(tmp_path, data, untrained, **adapter, **steps)]
    if earlier:
        train.main([*line, "--use_peft", "false", "--save_merged", "false", "--snapshot_steps", "1"])
        (out / "notes.txt").write_text("mine")
        (out / "results.json").write_text("of the earlier run")
        line += ["--overwrite", "true"]
    line += ["--resume_from_checkpoint", "auto"]
    states = Kills(out, tmp_path).during(train.main, line)
    whole = tree(out)
    assert "merged/model.safetensors" in whole and "snapshots/step-2/snapshot.json" in whole
    old = ("checkpoint", ".", "results.json", "snapshots/step-1")
    assert not any(name.startswith(old) for name in whole)
    assert whole.get("notes.txt") == (b"mine" if earlier else None)
    if earlier:
        # the first checkpoint half written; a snapshot behind the last checkpoint; the earlier run half removed; all
        # but the manifest moved up; all, but not tidied
        half_moved = states["checkpoint-3", None, True]
        chosen = [states[None, False, False][-1], states["checkpoint-1", False, False][-1], half_moved[0]]
        chosen += [half_moved[-1], states[None, True, True][0]]
        assert (chosen[1] / "snapshots" / "step-2").exists() and (chosen[2] / "results.json").exists()
    else:
        nothing, empty, marked = states[None, None, False][:3]  # the last one tells of a run
        assert [len([*state.iterdir()]) for state in (nothing, empty, marked)] == [0, 0, 1]
        assert refusals(marked) == []
        chosen = [nothing, marked]
    for state in chosen:
        put(state, out)
        train.main(line)
        assert tree(out) == whole, state


def test_a_finetuning_killed_at_any_moment_is_begun_anew(tmp_path, tokenizer, data):
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    out, line = tmp_path / "finetuned", [finetune_recipe(tmp_path, data, untrained, max_steps=1)]
    states = Kills(out, tmp_path).during(finetune.main, line)
    whole = tree(out)
    marked, half_moved = states[None, None, False][2], states[None, None, True][-1]
    assert refusals(marked) == [] and "--overwrite true" in refusals(half_moved)[0]
    for state, flags in ((marked, []), (half_moved, ["--overwrite", "true"])):
        put(state, out)
        finetune.main([*line, *flags])
        assert tree(out).keys() == whole.keys()


def test_auto_on_a_finished_run(tmp_path, tokenizer, data, capsys):
    """Started once more it has nothing to do, and another run does not take its place unasked."""
    untrained = save_model(build_phi(tokenizer), tokenizer, tmp_path / "untrained")
    line = [unlearn_recipe(tmp_path, data, untrained, max_steps=1, **BRIEF), "--resume_from_checkpoint", "auto"]
    train.main(line)
    before = tree(tmp_path / "unlearned")
    train.main(line)
    assert "holds this run, finished" in capsys.readouterr().out
    for other in (["--seed", "5"], ["--retain_config", "real_authors"]):
        [error] = errors_of(train.main, [*line, *other])
        assert "holds a run" in error and "--overwrite true" in error
    assert tree(tmp_path / "unlearned") == before
