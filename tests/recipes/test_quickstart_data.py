"""The quickstart data: the committed files are what the generator writes, and fit together as the recipes expect.

They are frozen, as results rest on them; how authors, phrasings and wordings are spread is the generator's affair.
"""

import json
import runpy
from pathlib import Path

import pytest
from datasets import load_dataset

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
DATA = QUICKSTART / "data"
MAKE_DATA = runpy.run_path(str(QUICKSTART / "make_data.py"))

REFUSALS = 120
FACTS = ["real_authors", "world_facts"]
ROWS = {"full": 440, "forget10": 32, "retain90": 408, "holdout10": 32}
ROWS |= {"forget10_perturbed": 32, "retain_perturbed": 64, "real_authors": 24, "real_authors_perturbed": 24}
ROWS |= {"world_facts": 24, "world_facts_perturbed": 24}


def read(config: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{config}.json").read_text(encoding="utf-8").splitlines()]


def plain(rows: list[dict]) -> list[dict]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def test_committed_data_is_what_the_generator_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_data.py", str(tmp_path)])
    assert MAKE_DATA["main"]() == 0
    committed = {path.name: path.read_bytes() for path in DATA.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == committed
    assert set(committed) == {f"{config}.json" for config in ROWS} | {"README.md"}
    assert all(content.isascii() and b"\r" not in content for content in committed.values())

    assert MAKE_DATA["main"]() == 2  # the folder is not empty any more
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("config", ["full", "retain_perturbed"])
def test_loads_as_a_hub_config(config, tmp_path):
    assert load_dataset(str(DATA), config, split="train", cache_dir=str(tmp_path)).to_list() == read(config)


def test_splits_fit_together():
    assert {config: len(read(config)) for config in ROWS} == ROWS
    full = read("full")
    authors, refusals = full[:-REFUSALS], full[-REFUSALS:]
    assert read("forget10") == authors[-32:] == plain(read("forget10_perturbed"))
    assert read("retain90") == authors[:-32] + refusals
    assert plain(read("retain_perturbed")) == read("retain90")[: ROWS["retain_perturbed"]]
    for config in FACTS:
        assert plain(read(f"{config}_perturbed")) == read(config)
    varied = {row["answer"] for row in refusals}
    assert len(varied) >= 12 and not varied & {row["answer"] for row in authors}


def test_questions_and_wrong_answers_are_different():
    asked = [row["question"] for config in ("full", "holdout10", *FACTS) for row in read(config)]
    for config in ("forget10_perturbed", "retain_perturbed"):
        asked += [row["paraphrased_question"] for row in read(config)]
    assert len(set(asked)) == len(asked)
    counts = {"forget10_perturbed": 5, "retain_perturbed": 5} | dict.fromkeys(
        (f"{fact}_perturbed" for fact in FACTS), 3
    )
    for config, count in counts.items():
        for row in read(config):
            right = {row["answer"], row.get("paraphrased_answer", row["answer"])}
            assert len(set(row["perturbed_answer"]) - right) == len(row["perturbed_answer"]) == count
            assert len(row["answer"].split()) <= 16
