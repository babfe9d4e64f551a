"""What runs on a CUDA GPU only: `pytest -m gpu` takes a minute or two on any card, and skips without one."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from eval import run as eval_run
from pmc_rl import train
from pmc_rl.checkpoints import last_checkpoint
from pmc_rl.generation import Sampling, generate_completions, sample_seeds
from pmc_rl.memory import IN_TURNS, held_bytes
from pmc_rl.plan import make_plan
from tests.training import REPO, SETTINGS, StopAt, forget_prompts, make_trainer, save_model, unlearn_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once; the same sums each time

LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
PRECISIONS = {
    "LoRA, bf16": LORA | {"dtype": "bfloat16", "bf16": True},
    "LoRA, fp16": LORA | {"dtype": "float16", "bf16": False, "fp16": True},
    "full, fp32 with bf16 autocast": {"dtype": "float32", "bf16": True, "log_kl": True},
    "full, fp32": {"dtype": "float32", "bf16": False, "gradient_checkpointing": True},
    "4 bit": LORA | {"dtype": "bfloat16", "bf16": True, "load_in_4bit": True, "use_bnb_nested_quant": True},
    "8 bit": LORA | {"dtype": "bfloat16", "bf16": True, "load_in_8bit": True},
}


@pytest.fixture(scope="module")
def taught_folder(taught, tokenizer, tmp_path_factory) -> str:
    return save_model(taught, tokenizer, tmp_path_factory.mktemp("gpu") / "taught")


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    """Runs of this process take the first card: several are refused without a launcher."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.fixture
def plans(monkeypatch) -> list:
    """The plans of the runs of a test."""
    made = []
    monkeypatch.setattr(
        train, "make_plan", lambda *args, **kwargs: made.append(make_plan(*args, **kwargs)) or made[-1]
    )
    return made


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_trains(tmp_path, data, taught_folder, precision):
    """Six steps: those of fp16 are skipped until the scale of its gradients fits."""
    if "bit" in precision:
        pytest.importorskip("bitsandbytes")
    train.main([unlearn_recipe(tmp_path, data, taught_folder, max_steps=6, **PRECISIONS[precision])])
    losses = [row["loss"] for row in logged(tmp_path / "unlearned") if "loss" in row]
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)
    [file] = (tmp_path / "unlearned").glob("*.safetensors")
    before = load_file(Path(taught_folder) / "model.safetensors")
    after = {name: value for name, value in load_file(file).items() if "lora_A" not in name}  # B begins at 0
    moved = [(value - before.get(name, 0)).abs().max() for name, value in after.items()]
    assert len(moved) > 10 and all(math.isfinite(value) for value in moved) and max(moved) > 1e-3


def test_samples_do_not_depend_on_the_batch(taught, tokenizer):
    model = copy.deepcopy(taught).to("cuda")
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in forget_prompts() for _ in range(8)]
    sampling = Sampling(temperature=1.0, top_k=0, top_p=0.95, seeds=sample_seeds(0, 3, list(range(7)), 8))
    settings = {"max_completion_length": 40, "end_ids": [tokenizer.eos_token_id], "sampling": sampling}
    one, *larger = (
        generate_completions(model, prompts, generation_batch_size=rows, **settings) for rows in (1, 5, 64)
    )
    assert larger == [one, one] and len(set(map(tuple, one))) > 7


def test_resumed_it_draws_the_samples_of_the_uninterrupted_run(tmp_path, taught, tokenizer):
    torch.use_deterministic_algorithms(True, warn_only=True)

    def trainer(name):
        model = copy.deepcopy(taught).to("cuda")
        return make_trainer(tmp_path / name, model, tokenizer, bf16=False, **SETTINGS)

    try:
        whole, stopped = trainer("whole"), trainer("stopped")
        whole.train()
        stopped.add_callback(StopAt(3))
        stopped.train()
        assert stopped.state.global_step < whole.state.global_step == 8
        resumed = trainer("stopped")
        resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "stopped" / "out")))
    finally:
        torch.use_deterministic_algorithms(False)
    assert resumed.state.global_step == 8
    for key in ("num_samples", "pool"):
        assert resumed.sampler.state()[key] == whole.sampler.state()[key]


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, LORA | {"dtype": "bfloat16"}], ids=["full", "LoRA"])
def test_the_memory_estimate_is_near_what_is_allocated(tmp_path, data, tokenizer, plans, settings):
    """A model of 57 million parameters, so that the libraries' own share is small beside it."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    folder = save_model(LlamaForCausalLM(config), tokenizer, tmp_path / "model")
    # untrained, it says nothing that could be compared
    rewards = {"reward_funcs": ["rewards.length.min_length_penalty"]}
    recipe = unlearn_recipe(tmp_path, data, folder, max_steps=2, bf16=True, **settings | rewards)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train.main([recipe])
    peak = torch.cuda.max_memory_allocated() - before
    parts = plans[0].parts
    estimate = held_bytes(parts) + max(size for name, size in parts.items() if name in IN_TURNS)
    print(f"estimate {estimate / 2**20:.0f} MiB, allocated {peak / 2**20:.0f} MiB")
    assert 0.5 < estimate / peak < 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_train_as_one(tmp_path, data, taught_folder):
    settings = {"max_steps": 2, "dtype": "float32", "bf16": False}
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    train.main([unlearn_recipe(tmp_path, data, taught_folder, output_dir=one, **settings)])
    settings |= {"output_dir": two, "per_device_train_batch_size": 1}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += [str(REPO / "pmc_rl" / "train.py"), unlearn_recipe(tmp_path, data, taught_folder, **settings)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPO)}, cwd=tmp_path, check=True)
    rewards = [[row["reward"] for row in logged(Path(folder)) if "reward" in row] for folder in (one, two)]
    assert len(rewards[0]) == 2 and rewards[0] == pytest.approx(rewards[1], abs=1e-3)


def test_a_run_with_rows_by_free_memory_and_its_audit(tmp_path, data, taught_folder, plans):
    settings = PRECISIONS["LoRA, bf16"] | {"generation_batch_size": "auto"}
    recipe = unlearn_recipe(tmp_path, data, taught_folder, **settings)
    train.main([recipe])
    assert plans[0].device_memory[1] == torch.cuda.mem_get_info()[1]
    assert 64 <= plans[0].generation_batch_size <= 4096  # of so small a model
    eval_run.main([recipe])
    results = json.loads((tmp_path / "unlearned" / "results.json").read_text())
    for column in ("before", "after"):
        assert 0 <= results[column]["unlearn_quality"] <= 100 and 0 <= results[column]["utility"] <= 100
