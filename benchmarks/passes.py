"""Speed of the teacher-forced pass beside a bare forward loop over the same rows in the same order.

    python benchmarks/passes.py MODEL_FOLDER RECIPE [--key value ...]

Prints rows a second of both, medians of five alternating runs, and their ratio. The pass also encodes, reads and
writes the cache, and makes log-probabilities, hits and the statistics over the vocabulary; the bare loop makes logits.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from pmc_rl.errors import exit_on_recipe_error  # first: it switches telemetry off
from pmc_rl.recipe import parse_recipe

# isort: split
import torch
from rich.console import Console
from rich.table import Table

from eval.cache import RowCache
from eval.data import load_data
from eval.passes import ModelPasses
from pmc_rl.likelihood import TOKENS_PER_BATCH, kind_of_device
from pmc_rl.models import load_end_ids, load_model, load_tokenizer, training_dtype
from pmc_rl.prompts import encode_answers

RUNS = 5


@torch.no_grad()
def bare_forward(model, rows: list[list[int]], batch_size: int) -> None:
    """Logits of all rows, padded on the right, with an attention mask."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        input_ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, ids in enumerate(batch):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            attention_mask[i, : len(ids)] = 1
        model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False)
    if model.device.type != "cpu":
        torch.accelerator.synchronize()


def main(argv: list[str]) -> None:
    folder, *recipe = argv
    script_args, args, model_args, eval_args = parse_recipe(recipe)
    model_args = replace(model_args, model_name_or_path=folder, use_peft=False)
    tokenizer = load_tokenizer(model_args, script_args.tokenizer_name_or_path)
    model = load_model(model_args, training_dtype(model_args, args), args.device).eval()
    sets = load_data(script_args, eval_args).options
    pairs = [
        (question, text)
        for rows in sets.values()
        for i, question in enumerate(rows.questions)
        for text in [rows.answers[i], *(rows.paraphrases or [])[i : i + 1], *(rows.wrong[i] if rows.wrong else [])]
    ]
    questions, answers = [q for q, _ in pairs], [text for _, text in pairs]
    end_ids = load_end_ids(model_args, tokenizer)
    encoded = {str(row): sum(row, []) for row in encode_answers(script_args, tokenizer, questions, answers, end_ids)}
    rows = sorted(encoded.values(), key=len, reverse=True)
    batch_size = max(1, TOKENS_PER_BATCH[kind_of_device(args.device)] // len(rows[0]))

    seconds: dict[str, list[float]] = {"bare forward": [], "teacher-forced pass": []}
    for _ in range(RUNS):
        started = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            bare_forward(model, rows, batch_size)
        seconds["bare forward"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as temporary:
            cache = RowCache(Path(temporary) / "rows.sqlite")
            timed = ModelPasses("model", "benchmark", lambda: model, tokenizer, end_ids, script_args, args, cache)
            started = time.perf_counter()
            timed.score(questions, answers)
            seconds["teacher-forced pass"].append(time.perf_counter() - started)
    table = Table(title=f"{len(rows)} rows, {sum(map(len, rows))} tokens, batches of {batch_size}")
    for heading in ("", "seconds", "rows a second", "of bare"):
        table.add_column(heading)
    bare = median(seconds["bare forward"])
    for name, values in seconds.items():
        spent = median(values)
        table.add_row(name, f"{spent:.2f}", f"{len(rows) / spent:.0f}", f"{bare / spent:.0%}")
    Console().print(table)


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
