"""Does the audit tell hidden from forgotten? Two models that only hide, beside Partial Model Collapse.

    python benchmarks/hidden_or_forgotten.py OUTPUT_DIR [--seeds 0 1 2]

`refusal` answers every question to forget with one fixed sentence; `first_tokens` has learned only the first three
tokens of it. Both are fine-tuned from the memorising model, on rows to retain as well. Prints what comes out of each
model under each attack, and the verdicts. Some five minutes a seed on two CPU cores.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from pmc_rl.recipe import parse_recipe  # first: it switches telemetry off

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from trl import ModelConfig

from eval.attacks.relearning import Relearner
from eval.data import load_data
from eval.verdict import leakage_by_attack
from pmc_rl.data import read_retain_rows
from pmc_rl.models import load_end_ids, load_model, load_tokenizer
from pmc_rl.prompts import encode_answers

REPO = Path(__file__).resolve().parents[1]
QUICKSTART = REPO / "recipes" / "quickstart"
REFUSAL = "I have no information about that author."
FIRST_TOKENS = 3
STEPS = 60
LEARNING_RATE = 3e-4


def hide(folder: Path, seed: int, first_tokens: int | None) -> Path:
    """Fine-tunes the memorising model to refuse, by all tokens of the refusal or by its first ones."""
    output_dir = folder / ("refusal" if first_tokens is None else "first_tokens")
    if output_dir.exists():
        return output_dir
    model_args = ModelConfig(model_name_or_path=str(folder / "finetuned"))
    recipe = [str(QUICKSTART / "unlearn.yaml"), "--seed", str(seed), "--use_cpu", "true"]
    script_args, args, _, eval_args = parse_recipe([*recipe, "--dataset_name", str(QUICKSTART / "data")])
    tokenizer = load_tokenizer(model_args, None)
    forget = load_data(script_args, eval_args).questions["forget"]
    retain, _ = read_retain_rows(script_args)
    encode = partial(encode_answers, script_args, tokenizer, end_ids=load_end_ids(model_args, tokenizer))
    refusals = encode(forget.questions, [REFUSAL] * len(forget.questions))
    kept = encode([row["question"] for row in retain], [row["answer"] for row in retain])
    refusals = [(prompt, answer[:first_tokens]) for prompt, answer in refusals] * (len(kept) // len(refusals))
    relearner = Relearner(
        lambda: load_model(model_args, torch.float32, torch.device("cpu")),
        rows=refusals + kept,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        peft_config=None,
        args=args,
    )
    relearner.at(STEPS).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return output_dir


def audit(folder: Path, seed: int) -> dict:
    """The audit's results and verdicts of one seed; stages that are there already are not run again."""
    if not (folder / "unlearned" / "manifest.json").exists():
        subprocess.run([QUICKSTART / "run.sh", folder, "--seed", str(seed), "--audit"], check=True)
    for first_tokens in (None, FIRST_TOKENS):
        hide(folder, seed, first_tokens)
    hidden = ["--also", f"refusal={folder / 'refusal'}", f"first_tokens={folder / 'first_tokens'}"]
    others = ["--retain_only_model", folder / "retain_only", *hidden, "--log_completions", "false"]
    command = [sys.executable, REPO / "eval" / "run.py", folder / "unlearned" / "recipe.yaml", *others]
    subprocess.run([*command, "--overwrite", "true"], check=True, cwd=REPO)
    return {name: json.loads((folder / "unlearned" / f"{name}.json").read_text()) for name in ("results", "audit")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    table = Table(title="Worst recall of the truth under each attack")
    for heading in ("seed", "model", "greedy", "sampling", "prefilling", "relearning", "quantization", "verdict"):
        table.add_column(heading)
    for seed in given.seeds:
        found = audit(given.output_dir.resolve() / f"seed{seed}", seed)
        for name, column in found["results"].items():
            leakage = leakage_by_attack(column)
            cells = [
                f"{leakage[attack]:.2f}" if attack in leakage else "-"
                for attack in ("greedy", "sampling", "prefilling", "relearning", "quantization")
            ]
            verdict = found["audit"]["verdicts"].get(name, {}).get("forgetting", "")
            table.add_row(str(seed), name, *cells, verdict)
        table.add_section()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
