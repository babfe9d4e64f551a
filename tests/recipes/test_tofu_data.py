"""TOFU cut down to a few authors: which rows are kept, by default and as asked."""

import json
import runpy
import sys
from pathlib import Path

import pytest

MAKE_DATA = Path(__file__).parents[2] / "recipes" / "tofu_small" / "make_data.py"
COPIED = ["forget01", "holdout01", "real_authors", "world_facts"]
COPIED += [f"{name}_perturbed" for name in ("forget01", "real_authors", "world_facts")]


@pytest.fixture
def tofu(tmp_path):
    """A folder in the Hub's layout with as many rows as TOFU where they are cut, and one elsewhere."""
    folder = tmp_path / "TOFU"
    folder.mkdir()
    rows = {"full": 4000, "retain_perturbed": 400} | dict.fromkeys(COPIED, 1)
    for name, count in rows.items():
        questions = [f"{i}?" if name in ("full", "retain_perturbed") else name for i in range(count)]
        lines = [json.dumps({"question": question, "answer": name}) + "\n" for question in questions]
        (folder / f"{name}.json").write_text("".join(lines))
    return folder


def cut(monkeypatch, tofu, *options):
    out = tofu.parent / "data"
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tofu), str(out), *options])
    runpy.run_path(str(MAKE_DATA), run_name="__main__")
    return out, {path.stem: path.read_text().splitlines() for path in out.glob("*.json")}


@pytest.mark.parametrize(("options", "authors"), [([], 20), (["--authors", "10"], 10), (["--authors", "22"], 22)])
def test_two_authors_are_forgotten_and_the_first_ones_retained(monkeypatch, tofu, options, authors):
    out, rows = cut(monkeypatch, tofu, *options)
    for name in ("retain", "retain_perturbed"):
        assert [json.loads(row)["question"] for row in rows[name]] == [f"{i}?" for i in range(20 * (authors - 2))]
    assert rows["full"] == rows["retain"] + rows["forget01"]
    for name in COPIED:
        assert rows[name] == (tofu / f"{name}.json").read_text().splitlines()
    readme = (out / "README.md").read_text()
    assert f"cut down to {authors} authors" in readme
    assert all(f"config_name: {name}\n" in readme for name in rows)


@pytest.mark.parametrize("authors", ["2", "23"])
def test_more_or_fewer_authors_than_there_are(monkeypatch, tofu, authors):
    with pytest.raises(SystemExit, match="2"):
        cut(monkeypatch, tofu, "--authors", authors)
    assert not (tofu.parent / "data").exists()
