"""What a user sees of a run in between: a table of selected answers, and a warning when answers stop ending."""

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from pmc_rl.generation import decode_completion
from pmc_rl.selection import BestAnswer

logger = logging.get_logger(__name__)


def print_answers(title: str, answers: list[tuple[dict, BestAnswer]], tokenizer: PreTrainedTokenizerBase) -> None:
    """A row for each forget row and the answer selected for it."""
    table = Table("question", "original answer", "selected answer", title=title)
    table.add_column("reward", justify="right")
    for row, answer in answers:
        question = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        texts = (question, row["original_completion"], decode_completion(tokenizer, answer.completion_ids))
        # Text: an answer is no markup
        table.add_row(*map(Text, texts), f"{answer.reward:.2f}", end_section=True)
    Console().print(table)


def warn_of_clipping() -> None:
    logger.warning_once(
        "Over half of the samples hit max_completion_length: the model learns not to end its answers. Add "
        "rewards.length.unfinished_penalty or raise max_completion_length."
    )
