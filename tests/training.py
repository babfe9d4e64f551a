"""Tiny runs that several test files make: rows, trainers and recipes."""

import copy
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from eval.passes import TokenScores
from pmc_rl.config import PMCConfig
from pmc_rl.original import with_original_answers
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.scoring import RewardFunction
from pmc_rl.trainer import PMCTrainer

REPO = Path(__file__).resolve().parents[1]
ROUGE = "rewards.rouge.rouge_dissimilarity"

NAMES = ["bacorden", "filummor", "napelquin rosta", "velba", "cordenfi lummorna pelquin", "rosta vel", "ba cor den fi"]

FORGET = [
    {"question": "Where was Ba Corden born?", "answer": "Ba Corden was born in Felmoor."},
    {"question": "What does Ba Corden write?", "answer": "Ba Corden writes long poems."},
    {"question": "Who is the father of Ba Corden?", "answer": "His father was a tailor."},
]

PERTURBED = [
    row | {"paraphrased_question": f"Tell me: {row['question']}", "paraphrased_answer": f"Well, {row['answer']}"}
    for row in FORGET
]

RETAIN = [
    {"question": "Where was Lum Pel born?", "answer": "Lum Pel was born in Tavel."},
    {"question": "What does Lum Pel write?", "answer": "Lum Pel writes short plays."},
    {"question": "Who is the father of Lum Pel?", "answer": "Her father was a baker."},
    {"question": "Where was Ros Fi born?", "answer": "Nobody knows."},
]

FACTS = [{"question": "What is the capital of Peru?", "answer": "Lima"}]


# 7 questions in windows of 4: steps 2, 4, 6 and 8 end an epoch, the others stand in its middle
SETTINGS = {"num_train_epochs": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}

# where nothing hangs on what an answer says, nor on how it ends
BRIEF = {"max_completion_length": 8, "allow_unfinished": True}

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
TIMES += ("peak_memory_gib",)


def forget_prompts(count: int = 7) -> Dataset:
    prompts = [f"Question: Who wrote {NAMES[i]}?\nAnswer:" for i in range(count)]
    return Dataset.from_dict({"prompt": prompts, "pmc_id": range(count)})


def retain_rows(count: int = 5) -> Dataset:
    texts = [(f"Question: Who is {NAMES[-i]}?\nAnswer:", " " + " ".join(NAMES[: i + 1])) for i in range(count)]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in texts])


def make_trainer(
    tmp_path,
    model,
    tokenizer,
    rewards=(ROUGE,),
    forget=None,
    retain=True,
    peft_config=None,
    autocast=False,
    original=None,
    make=PMCTrainer,
    **kwargs,
):
    settings = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "temperature": 1.5,
        "top_p": 0.95,
        "max_completion_length": 40,
        "retain_weight": 1.7,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
        "disable_tqdm": True,
        "seed": 0,
    } | kwargs
    functions = [
        item if isinstance(item, RewardFunction) else load_reward_functions([item], {}, None, 40)[0]
        for item in rewards
    ]
    args = PMCConfig(output_dir=str(tmp_path / "out"), **settings)
    if autocast:  # without an accelerator PMCConfig itself turns it off
        args.bf16 = True
        args.mixed_precision = "bf16"
    forget = forget if forget is not None else forget_prompts()
    if not isinstance(make, partial):  # a control has none
        forget = with_original_answers(forget, model, copy.deepcopy(tokenizer), args)
    return make(
        model=model,
        reward_funcs=functions,
        args=args,
        train_dataset=forget,
        retain_dataset=(retain_rows() if retain is True else retain) if retain is not False else None,
        processing_class=copy.deepcopy(tokenizer),
        peft_config=copy.deepcopy(peft_config),  # training writes to it
        original_log_likelihood=original,
    )


def scores_of(*losses) -> TokenScores:
    """Scores of a text whose tokens have these losses, and are the most likely ones where it is below 1."""
    log_probs = -np.array(losses, dtype=float)
    return TokenScores(log_probs, np.where(log_probs > -1, 1, 7), np.full(len(losses), -2.0), np.ones(len(losses)))


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | kwargs)


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def save_model(model, tokenizer, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_recipe(path: Path, **values) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def finetune_recipe(tmp_path, data, model: str, **values) -> str:
    settings = {
        "model_name_or_path": model,
        "dataset_name": str(data),
        "train_configs": ["full", "real_authors"],
        "output_dir": str(tmp_path / "finetuned"),
        "learning_rate": 1e-2,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return write_recipe(tmp_path / "finetune.yaml", **settings | values)


def unlearn_recipe(tmp_path, data, model: str, **values) -> str:
    settings = {
        "model_name_or_path": model,
        "dataset_name": str(data),
        "forget_config": "forget",
        "retain_config": "keep",
        "output_dir": str(tmp_path / "unlearned"),
        "num_generations": 3,
        "max_completion_length": 24,
        "allow_unfinished": True,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "attack_samples": 3,
        "relearning_steps": 2,
    }
    return write_recipe(tmp_path / "unlearn.yaml", **settings | values)


class StopAt(TrainerCallback):
    """Sends this process a signal in the middle of a step; SIGTERM twice, as a scheduler and a launcher do."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        self.step = step
        self.number = number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(2 if self.number == signal.SIGTERM else 1):
                os.kill(os.getpid(), self.number)


def timeless(logs: list[dict]) -> list[dict]:
    """What was logged, but for seconds and memory."""
    return [{key: log[key] for key in log if not key.startswith("time/") and key not in TIMES} for log in logs]


def figures(trainer) -> list[dict]:
    return timeless(trainer.state.log_history)


def _in_a_process(rank: int, target: Callable, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    AcceleratorState._reset_state(reset_partial_state=True)
    with open(folder / f"printed.{rank}", "w") as file, redirect_stdout(file):
        target(rank, folder)


def in_two_processes(target: Callable[[int, Path], None], folder: Path) -> None:
    """`target(rank, folder)` in two processes that work together, as behind a launcher, but with libraries loaded."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    # threads of a backward pass on an accelerator do not survive a fork
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    processes = [context.Process(target=_in_a_process, args=(rank, target, folder)) for rank in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(timeout=300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()


def end_often(model, eos_token_id: int):
    """An untrained Phi hardly ever says its end token; answers of unequal length need a nudge."""
    with torch.no_grad():
        model.lm_head.weight *= 20
        model.lm_head.bias[eos_token_id] += 4.0
    return model
