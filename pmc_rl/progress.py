"""What a user sees of a run in between: numbers and a table of its answers, warnings where its samples go wrong."""

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from pmc_rl.prompts import decode_completion
from pmc_rl.selection import BestAnswer

logger = logging.get_logger(__name__)


def print_answers(
    title: str, answers: list[tuple[dict, list[BestAnswer]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A row for each forget row and the best answer to it, if there is one."""
    table = Table("question", "original answer", "best answer", title=title)
    table.add_column("reward", justify="right")
    for row, best in answers:
        question = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        answer, reward = "", "none passed"
        if best:
            answer, reward = decode_completion(tokenizer, best[0].completion_ids), f"{best[0].reward:.2f}"
        # Text: an answer is no markup
        table.add_row(*map(Text, (question, row["original_completion"], answer, reward)), end_section=True)
    Console().print(table)


def warn_of_samples(logs: dict[str, float]) -> None:
    """Once each, where the logged numbers of the samples say that a run goes wrong."""
    if logs.get("completions/clipped_ratio", 0) > 0.5:
        logger.warning_once(
            "Over half of the samples hit max_completion_length: the model learns not to end its answers. Add "
            "rewards.length.unfinished_penalty or raise max_completion_length."
        )
    if logs.get("frac_passed", 1) < 0.5:
        logger.warning_once(
            "Over half of the questions had no sample lately that passes reward_floors; nothing was learned of them. "
            "If that goes on: raise num_generations, lower a floor, or change temperature (down where samples are "
            "not fluent, else up)."
        )


def sample_metrics(samples: list[list[list[int]]], rewards: np.ndarray, end_ids: list[int]) -> dict[str, float]:
    """
    Logged numbers of the new samples of a window, by question, as token ids.

    `rewards` has a row a question: of its samples, then of answers stored before, which count nowhere.
    """
    flat = [ids for completions in samples for ids in completions]
    metrics = {
        "completions/mean_length": np.mean([len(ids) for ids in flat]),
        "completions/clipped_ratio": np.mean([ids[-1] not in end_ids for ids in flat]),
        "distinct_samples": np.mean([len(set(map(tuple, s))) / len(s) for s in samples]),
    }
    scored = [values[: len(new)] for values, new in zip(rewards, samples, strict=True)]
    scored = [values[~np.isnan(values)] for values in scored if not np.isnan(values).all()]
    if scored:
        metrics["reward"] = np.concatenate(scored).mean()
        metrics["reward_std"] = np.mean([values.std() for values in scored])
        # Theorem 1 of the paper: the first goes to its maximum, the second to 0
        metrics["exp_reward/mean"] = np.mean([np.exp(values).mean() for values in scored])
        metrics["exp_reward/var"] = np.mean([np.exp(values).var() for values in scored])
    return {name: float(value) for name, value in metrics.items()}
