"""General ability: lm-evaluation-harness (the extra `lm-eval`) on a model that is loaded already.

Prompts and metrics are the harness's own, so the numbers are those of its command line.
"""

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.errors import RecipeError, did_you_mean, one_line

# Rows of a forward pass to begin with: lm-eval keeps the logits of all their tokens, some 6 bytes a number, so that 8
# rows of 1,024 tokens take 6 GB with a vocabulary of 128,000.
BATCH_SIZE = 8

# it warns of every model that is handed over loaded, and of every default a task leaves to it
logging.getLogger("lm_eval").setLevel(logging.ERROR)


@cache
def _task_manager():
    from lm_eval.tasks import TaskManager  # optional, and slow to import

    return TaskManager()  # reads 15,000 YAML files: some ten seconds


def check_tasks(tasks: list[str]) -> None:
    """Refuses tasks (names of tasks, groups or tags, paths of YAML files) that cannot be loaded with their data."""
    if find_spec("lm_eval") is None:
        raise RecipeError(["lm_eval_tasks: the package lm-eval is not installed; pip install -e '.[lm-eval]'"])
    manager = _task_manager()
    errors: list[str] = []
    origins: dict[str, str] = {}
    for task in tasks:
        if task not in manager.task_index and not Path(task).is_file():
            advice = did_you_mean(task, [*manager.all_tasks, *map(str, Path(task).parent.glob("*.yaml"))])
            errors.append(f"lm_eval_tasks: {task!r} is neither a task of lm-eval nor the path of a YAML file.{advice}")
            continue
        try:
            loaded = manager.load([task])["tasks"]
        except Exception as error:  # a task is data and code of its own, which may fail in any way
            errors.append(f"lm_eval_tasks: {task!r} cannot be loaded ({type(error).__name__}: {one_line(error)})")
            continue
        # of two tasks of one name, lm-eval would silently keep the last
        if twice := sorted(loaded.keys() & origins.keys()):
            both = f"{task!r} and {origins[twice[0]]!r} both hold a task {twice[0]!r}"
            errors.append(f"lm_eval_tasks: {both}; leave one out, or give it another name")
        origins |= dict.fromkeys(loaded, task)
    if errors:
        raise RecipeError(errors)


def general_ability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: list[str], batch_size: int = BATCH_SIZE
) -> dict[str, dict[str, float]]:
    """
    Runs tasks on a model where it is, its adapter not merged; `batch_size` is halved where memory is too small.

    Returns:
        for each task `n`, its number of rows, and each metric such as `acc` with `acc_stderr` where there is one; a
        task that reads its answers in several ways has `exact_match/strict-match`. A group with a score of its own,
        such as mmlu, stands for its tasks.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    was_training = model.training
    # lm-eval ties the weights of any model again: with an adapter on the embeddings or the head of a model that ties
    # them, that fails, or puts other weights in place of the adapter's
    model.tie_weights = lambda: None
    results = None
    try:
        while results is None:
            try:
                # means have a formula for their error; other metrics are bootstrapped, 100,000 times by default
                harness = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
                options = {"task_manager": _task_manager(), "log_samples": False, "bootstrap_iters": 1000}
                results = simple_evaluate(harness, tasks=tasks, **options)
            except torch.OutOfMemoryError:  # at once if at all: the longest rows come first
                if batch_size == 1:
                    raise
                batch_size //= 2
            if results is None:  # outside the handler, which keeps the tensors of the failed call alive
                torch.accelerator.empty_cache()
    finally:
        del model.tie_weights
        model.train(was_training)
    in_a_group = {part for group in results.get("groups", {}) for part in results["group_subtasks"][group]}
    scores = {task: _scores(row) for task, row in results["results"].items() if task not in in_a_group}
    return {task: row for task, row in scores.items() if row}


def _scores(row: dict) -> dict[str, float]:
    """lm-eval's `acc,none` and `acc_stderr,none` as `acc` and `acc_stderr`; empty for a group without a score."""
    scores = {}
    for key, value in row.items():
        metric, comma, answer_filter = key.partition(",")
        if not comma or value == "N/A":  # not a metric, such as alias; a metric without a standard error
            continue
        name = metric.removesuffix("_stderr")
        how = "" if answer_filter == "none" else f"/{answer_filter}"
        scores[name + how + metric[len(name) :]] = float(value)
    return {"n": row["sample_len"], **scores} if scores else {}
