"""Several processes, two on this CPU, train as one does: samples, rewards, weights; they stop, go on and save."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pmc_rl import train
from pmc_rl.checkpoints import STATE, read_state
from pmc_rl.output import is_finished_run, read_training_log
from pmc_rl.scoring import RewardFunction
from pmc_rl.trainer import PMCTrainer
from tests.conftest import errors_of, write_jsonl
from tests.training import (
    FORGET,
    RETAIN,
    ROUGE,
    StopAt,
    forget_prompts,
    in_two_processes,
    lora,
    make_trainer,
    retain_rows,
    save_model,
    timeless,
    unlearn_recipe,
    weights,
)

PROCESSES = 2
# 7 questions in windows of 4 and 3. Micro-batches of 2 for both processes end with one of 1: nothing for the second.
SPLIT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
CASES = {
    "rouge": {
        "max_reward": 0.85,
        "num_train_epochs": 3,
        "log_kl": True,
        "max_completion_length": 40,
        "retain_loss": "kl",
    },
    "not stationary": {"rewards": (ROUGE, "rewards.diversity.duplicate_penalty"), "num_selected": 2, **SPLIT},
    "lora": {"peft_config": lora(lora_alpha=8), **SPLIT},
    "one question": {"num_questions": 1},
}
FIGURES = """
loss grad_norm collapse_loss retain_loss reward reward_selected frac_sampled frac_solved num_samples
completions/mean_length
""".split()


def train_case(folder: Path, model, tokenizer, case: str, processes: int) -> dict:
    """What is seen of a run on this process; one process takes the whole window at once."""
    settings = {"per_device_train_batch_size": 2, "max_completion_length": 24, **CASES[case]}
    if processes == 1:
        settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    asked = []

    def note(completions, pmc_id, **kwargs):
        asked.append((pmc_id, completions))
        return [0.0] * len(pmc_id)

    rewards = [*settings.pop("rewards", (ROUGE,)), RewardFunction("note", note, 1.0, 0.0, True)]
    if "num_questions" in settings:
        settings["forget"] = forget_prompts(settings.pop("num_questions"))
    trainer = make_trainer(
        folder,
        model,
        tokenizer,
        rewards,
        retain=retain_rows(7),  # as many as questions: no row comes twice in an epoch
        num_generations=3,
        optim="sgd",  # Adam's division would turn a rounding error of a tiny gradient into a full step
        max_grad_norm=0.5,
        allow_unfinished=True,
        learning_rate=1e-1,
        **settings,
    )
    batches = watch_batches(trainer)
    trainer.train()
    return {
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "weights": weights(trainer.model),
        "sampler": trainer.sampler.state(),
        "batches": batches,
        "asked": asked,
    }


def watch_batches(trainer) -> list[list[dict]]:
    """Of each step and micro-batch, the rows of both loss terms, as token ids."""
    steps = []
    make = trainer.get_batch_samples

    def watched(*args):
        batches, count = make(*args)
        pad = trainer.processing_class.pad_token_id
        steps.append([])
        for batch in batches:
            rows = [[i for i in ids if i != pad] for ids in batch["input_ids"].tolist()]
            used = [[ids for ids, weight in zip(rows, term, strict=True) if weight] for term in batch["row_weights"]]
            steps[-1].append({"collapse": used[0], "retain": used[1], "rows": len(rows)})
        return batches, count

    trainer.get_batch_samples = watched
    return steps


def load(folder: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(folder / "taught"), AutoTokenizer.from_pretrained(folder / "taught")


def in_each_process(rank: int, folder: Path) -> None:
    for case in CASES:
        seen = train_case(folder / case, *load(folder), case, PROCESSES)
        torch.save(seen, folder / f"{case}.{rank}.pt")
    train.main(command(folder, "whole"))
    with pytest.raises(SystemExit) as stopped:
        train.main(command(folder, "stopped"), partial(StoppedTrainer, stop=rank == 1))
    assert stopped.value.code == 128 + signal.SIGTERM
    if rank == 0:
        shutil.copytree(folder / "stopped", folder / "left")
    torch.manual_seed(rank)  # nothing may hang on the state of the global generator
    train.main([*command(folder, "stopped"), "--resume_from_checkpoint", "auto"])


class StoppedTrainer(PMCTrainer):
    """One process gets a signal in the second step."""

    def __init__(self, *args, stop: bool, **kwargs):
        super().__init__(*args, **kwargs)
        if stop:
            self.add_callback(StopAt(2))


def command(folder: Path, name: str) -> list[str]:
    """A command line; windows of 2 and 1 questions for two processes."""
    return [str(folder / "unlearn.yaml"), "--output_dir", str(folder / name)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory, tokenizer, taught) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    model = save_model(taught, tokenizer, folder / "taught")
    files = {"forget_file": write_jsonl(folder / "forget.jsonl", FORGET)}
    files |= {"retain_file": write_jsonl(folder / "retain.jsonl", RETAIN)}
    no_configs = {"dataset_name": None, "forget_config": None, "retain_config": None}
    adapter = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"], "lora_dropout": 0.2}
    unlearn_recipe(folder, "unused", model, **no_configs, **files, **adapter, per_device_train_batch_size=1)
    in_two_processes(in_each_process, folder)
    return folder


def both(folder: Path, case: str) -> list[dict]:
    return [torch.load(folder / f"{case}.{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tmp_path, launched, case):
    ranks = both(launched, case)
    one = train_case(tmp_path, *load(launched), case, processes=1)
    for rank in ranks:
        assert len(rank["logs"]) == len(one["logs"]) > 1
        for a, b in zip(rank["logs"], one["logs"], strict=True):
            for key in FIGURES:
                # a log-probability in float32 is exact to some 1e-7, however small a loss is
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-7), key
            assert a.get("kl") == pytest.approx(b.get("kl"), abs=1e-6)  # a small difference of large numbers
        assert torch.equal(rank["weights"], ranks[0]["weights"])
        assert torch.allclose(rank["weights"], one["weights"], rtol=0, atol=1e-6)
        assert rank["sampler"] == one["sampler"]

    # rows: each process its own, together those of one process
    for whole, *parts in zip(one["batches"], *(rank["batches"] for rank in ranks), strict=True):
        for term in ("collapse", "retain"):
            rows = [[ids for batch in part for ids in batch[term]] for part in parts]
            assert not any(ids in rows[1] for ids in rows[0])
            assert sorted(rows[0] + rows[1]) == sorted(whole[0][term])
    # rewards: asked of the whole window, by the main process alone
    assert ranks[1]["asked"] == []
    assert ranks[0]["asked"] == one["asked"]


def test_the_cases_hold_what_they_are_for(launched):
    logs = both(launched, "rouge")[0]["logs"]
    counts = [b["num_samples"] - a["num_samples"] for a, b in zip(logs, logs[1:], strict=False)]
    assert any(log["frac_solved"] > 0 for log in logs)
    assert any(count % 2 and log["frac_sampled"] < 1 for count, log in zip(counts, logs[1:], strict=True))
    for case in ("not stationary", "lora"):
        first, second = (rank["batches"] for rank in both(launched, case))
        assert [len(batch["retain"]) for batch in first[1]] == [1, 1]
        assert [len(batch["retain"]) for batch in second[1]] == [1, 0]
        assert second[1][1] == {"collapse": [], "retain": [], "rows": 1}  # one that counts nothing


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_the_same(launched):
    """By the command line, with dropout: launched, stopped, gone on with in as many processes, saved once."""
    checkpoint = launched / "left" / "checkpoint-2"
    files = {STATE, "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"}
    assert files <= set(os.listdir(checkpoint))
    assert read_state(checkpoint)["record"]["processes"] == PROCESSES
    [error] = errors_of(train.main, [*command(launched, "left"), "--resume_from_checkpoint", "auto"])
    assert "num_processes: 1, but" in error

    whole, resumed = launched / "whole", launched / "stopped"
    assert is_finished_run(resumed) and sorted(os.listdir(resumed)) == sorted(os.listdir(whole))
    half_way, *ends = (load_file(folder / "adapter_model.safetensors") for folder in (checkpoint, whole, resumed))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], half_way[name]) for name in half_way)
    logs = [timeless(read_training_log(folder)) for folder in (whole, resumed)]
    assert logs[0] == logs[1]  # of the main process; that of the other is not kept
    assert [row["step"] for row in logs[0]] == [1, 2, 3, 4, 4]
    printed = "".join((launched / f"printed.{rank}").read_text() for rank in range(PROCESSES))
    assert printed.count("Going on from") == printed.count(f"Saved to {resumed}") == 1
