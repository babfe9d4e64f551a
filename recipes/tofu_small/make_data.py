"""Cuts TOFU down to a few authors: its first ones to retain, the two of forget01 to forget, all the facts.

python recipes/tofu_small/make_data.py TOFU_FOLDER OUTPUT_DIR [--authors 20]
TOFU_FOLDER is a copy of locuslab/TOFU in the Hub's layout; the output has the same layout. Of 20 authors 0
to 17 are retained.
"""

import argparse
import json
import sys
from pathlib import Path

ROWS_PER_AUTHOR = 20
FORGOTTEN_AUTHORS = 2
MOST_AUTHORS = 22  # retain_perturbed has the first 20
# kept as they are; both perturbed sets belong to authors that are kept
COPIED = """
forget01 forget01_perturbed real_authors real_authors_perturbed world_facts world_facts_perturbed holdout01
""".split()


def read(folder: Path, config: str) -> list[str]:
    return (folder / f"{config}.json").read_text(encoding="utf-8").splitlines()


def main(tofu: Path, output_dir: Path, authors: int) -> None:
    retained = (authors - FORGOTTEN_AUTHORS) * ROWS_PER_AUTHOR
    configs = {name: read(tofu, name) for name in COPIED}
    configs["retain"] = read(tofu, "full")[:retained]
    configs["retain_perturbed"] = read(tofu, "retain_perturbed")[:retained]
    configs["full"] = configs["retain"] + configs["forget01"]
    questions = [[json.loads(row)["question"] for row in configs[name]] for name in ("retain", "retain_perturbed")]
    if questions[0] != questions[1]:
        sys.exit(f"error: {tofu}: retain_perturbed does not begin with the rows of full; is this TOFU?")
    if output_dir.exists():
        sys.exit(f"error: {output_dir} exists already; use it as it is, name another folder or remove it")
    output_dir.mkdir(parents=True)
    for name, rows in configs.items():
        (output_dir / f"{name}.json").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    entries = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in configs)
    (output_dir / "README.md").write_text(
        f"---\nconfigs:\n{entries}---\nTOFU (MIT licence), cut down to {authors} authors.\n"
    )
    print(f"Wrote {', '.join(f'{name} {len(rows)}' for name, rows in configs.items())} rows to {output_dir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tofu", metavar="TOFU_FOLDER", type=Path)
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path)
    numbers = range(FORGOTTEN_AUTHORS + 1, MOST_AUTHORS + 1)
    parser.add_argument("--authors", type=int, default=20, choices=numbers, metavar="N", help=f"3 to {MOST_AUTHORS}")
    given = parser.parse_args()
    main(given.tofu, given.output_dir, given.authors)
