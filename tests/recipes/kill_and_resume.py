"""Kills the quickstart at random moments and goes on: are the final weights those of a run that nobody stopped?

    python tests/recipes/kill_and_resume.py QUICKSTART_FOLDER OUTPUT_DIR [--kills 20] [--seed 0]

QUICKSTART_FOLDER is what recipes/quickstart/run.sh made. Each start of the run gets SIGKILL after a random part of the
time that the whole run took, imports and saving included; the next one goes on by `--resume_from_checkpoint auto`. A
run that ends before its kill is compared, and the next one begins. Exit code 1 if any differs.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

from pmc_rl.checkpoints import last_checkpoint
from pmc_rl.output import is_finished_run

REPO = Path(__file__).resolve().parents[2]


def run(finetuned: Path, output_dir: Path, seconds: float | None = None) -> bool:
    """To its end, or for some seconds; whether it had to be killed then."""
    command = [sys.executable, "pmc_rl/train.py", "recipes/quickstart/unlearn.yaml", "--use_cpu", "true"]
    command += ["--model_name_or_path", finetuned, "--output_dir", output_dir, "--log_completions", "false"]
    command += ["--save_strategy", "steps", "--save_steps", "4", "--resume_from_checkpoint", "auto"]
    try:
        result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=seconds)  # then SIGKILL
    except subprocess.TimeoutExpired:
        return True
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    return False


def digest(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()


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
    kills, finished, equal = 0, 0, 0
    after: float | None = 0.0
    while after is not None:  # the last run is not killed
        output_dir = folder / f"killed-{finished}"
        after = rng.uniform(0, seconds) if kills < given.kills else None
        if run(finetuned, output_dir, after):
            kills += 1
            found = "a finished run" if is_finished_run(output_dir) else f"checkpoint {last_checkpoint(output_dir)}"
            print(f"kill {kills} of run {finished} after {after:.1f} of {seconds:.0f} s left {found}")
        else:
            finished += 1
            equal += digest(output_dir) == expected
    print(f"{kills} kills, {finished} runs went to their end, {equal} with the weights of the whole run.")
    return 0 if equal == finished else 1


if __name__ == "__main__":
    sys.exit(main())
