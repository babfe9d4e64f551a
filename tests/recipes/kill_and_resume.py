"""Kills the quickstart at random moments and goes on: are the final weights those of a run that nobody stopped?

    python tests/recipes/kill_and_resume.py QUICKSTART_FOLDER OUTPUT_DIR [--kills 20] [--seed 0]

QUICKSTART_FOLDER is what recipes/quickstart/run.sh made. Each start of the run gets SIGKILL after a random part of the
time that the whole run took, imports and saving included; the next one goes on by `--resume_from_checkpoint auto`. A
run that ends before its kill is compared, and the next one begins. Prints a table; exit code 1 if any differs.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pmc_rl.checkpoints import STATE, last_checkpoint
from pmc_rl.output import is_finished_run

REPO = Path(__file__).resolve().parents[2]
SAVE_STEPS = 4


def command(finetuned: Path, output_dir: Path) -> list[str]:
    return [
        *(sys.executable, str(REPO / "pmc_rl" / "train.py"), str(REPO / "recipes" / "quickstart" / "unlearn.yaml")),
        *("--model_name_or_path", str(finetuned), "--output_dir", str(output_dir), "--use_cpu", "true"),
        *("--save_strategy", "steps", "--save_steps", str(SAVE_STEPS), "--resume_from_checkpoint", "auto"),
        *("--log_completions", "false"),
    ]


def run(finetuned: Path, output_dir: Path, seconds: float | None = None) -> bool:
    """To its end, or for some seconds; whether it had to be killed then."""
    process = subprocess.Popen(
        command(finetuned, output_dir), cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode != 0:
        raise RuntimeError(errors)
    return False


def digest(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()


def found(output_dir: Path) -> str:
    """What a kill left behind."""
    if is_finished_run(output_dir):
        return "a finished run"
    checkpoint = last_checkpoint(output_dir)
    what = "no checkpoint" if checkpoint is None else checkpoint.name
    if any(not (folder / STATE).exists() for folder in output_dir.glob("checkpoint-*")):
        what += ", a broken one"
    return what + ", a run half saved" * any(output_dir.glob(".saving-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    finetuned, folder = given.quickstart.resolve() / "finetuned", given.output_dir.resolve()
    rng = random.Random(given.seed)

    started = time.perf_counter()
    run(finetuned, folder / "whole")
    seconds = time.perf_counter() - started
    expected = digest(folder / "whole")
    table = Table(title=f"{given.kills} kills; a run that nobody stops takes {seconds:.0f} s")
    for column in ("kill", "run", "seconds after its start", "left behind"):
        table.add_column(column)
    kills, finished, equal = 0, 0, 0
    while True:
        output_dir = folder / f"killed-{finished}"
        after = rng.uniform(0, seconds) if kills < given.kills else None
        if run(finetuned, output_dir, after):
            kills += 1
            table.add_row(str(kills), str(finished), f"{after:.1f}", found(output_dir))
            continue
        finished += 1
        equal += digest(output_dir) == expected
        if kills == given.kills:
            break
    Console(width=100).print(table)
    print(f"{kills} kills, {finished} runs went to their end, {equal} with the weights of the whole run.")
    return 0 if equal == finished else 1


if __name__ == "__main__":
    sys.exit(main())
