"""What `adaptive_generations` saves: the quickstart with equally many samples for every question, and shared out.

    python benchmarks/adaptive.py OUTPUT_DIR [--seeds 0 1 2]

Makes the quickstart's memorising model of each seed, unlearns it both ways with the shipped recipe, audits without
attacks and prints samples, unlearn quality and utility. Some four minutes a seed on two CPU cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pmc_rl.output import read_training_log  # first: it switches telemetry off

# isort: split
from rich.console import Console
from rich.table import Table

REPO = Path(__file__).resolve().parents[1]
QUICKSTART = REPO / "recipes" / "quickstart"


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, REPO / script, *map(str, arguments)], check=True, cwd=REPO)


def unlearn(folder: Path, seed: int, adaptive: bool) -> dict[str, float]:
    """Unlearns and audits, unless both are there; samples drawn, unlearn quality and utility."""
    output_dir = folder / ("adaptive" if adaptive else "fixed")
    settings = ["--use_cpu", "true", "--seed", seed, "--log_completions", "false", "--output_dir", output_dir]
    if not (output_dir / "results.json").exists():
        run(
            "pmc_rl/train.py",
            QUICKSTART / "unlearn.yaml",
            *settings,
            *("--model_name_or_path", folder / "finetuned", "--adaptive_generations", adaptive),
            *("--overwrite", "true"),
        )
        run("eval/run.py", output_dir / "recipe.yaml", "--attacks", "[]")
    log = read_training_log(output_dir)
    after = json.loads((output_dir / "results.json").read_text())["after"]
    samples = max(entry.get("num_samples", 0) for entry in log)
    return {"samples": samples, "unlearn_quality": after["unlearn_quality"], "utility": after["utility"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    table = Table(title="Quickstart: num_generations for every question, or shared out")
    for heading in ("seed", "samples", "adaptive", "share", "unlearn quality", "adaptive", "utility", "adaptive"):
        table.add_column(heading, justify="right")
    for seed in given.seeds:
        folder = given.output_dir.resolve() / f"seed{seed}"
        if not (folder / "finetuned" / "manifest.json").exists():
            subprocess.run([QUICKSTART / "run.sh", folder, "--seed", str(seed)], check=True)
        fixed, adaptive = (unlearn(folder, seed, adaptive) for adaptive in (False, True))
        table.add_row(
            str(seed),
            *(str(way["samples"]) for way in (fixed, adaptive)),
            f"{adaptive['samples'] / fixed['samples']:.0%}",
            *(f"{way['unlearn_quality']:.1f}" for way in (fixed, adaptive)),
            *(f"{way['utility']:.1f}" for way in (fixed, adaptive)),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
