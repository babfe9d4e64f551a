"""The quickstart end to end, held to what the README promises."""

import json
import subprocess
import sys

import pytest

from tests.training import REPO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder it made, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    out = folder / "quickstart"
    command = [REPO / "recipes" / "quickstart" / "run.sh", out, "--audit"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_kills_at_random_moments_change_nothing(quickstart, tmp_path):
    script = REPO / "tests" / "recipes" / "kill_and_resume.py"
    command = [sys.executable, script, quickstart[0], tmp_path, "--kills", "3"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "3 kills," in result.stdout, result.stdout + result.stderr


def test_quickstart(quickstart):
    out, printed = quickstart
    results = json.loads((out / "unlearned" / "results.json").read_text())
    before, after = results["before"], results["after"]
    print(json.dumps(results, indent=2))

    def recall(column: dict, name: str) -> float:
        return column["sets"][name]["rougeL_recall"]

    assert recall(before, "forget") >= 0.9
    assert before["unlearn_quality"] < 40
    assert after["unlearn_quality"] >= 95
    assert after["utility"] >= before["utility"] - 3
    for facts in ("real_authors", "world_facts"):  # in no retain row
        assert recall(after, facts) >= recall(before, facts) - 0.05
    assert all(scores["empty"] == 0 for scores in after["sets"].values())
    assert all(scores["ended"] >= 0.9 for scores in after["sets"].values())

    # the whole audit: three models, no number missing that this data can give
    assert list(results) == ["before", "after", "retain_only"]
    assert not any("not_available" in block for block in after["attacks"].values())
    assert not any("not_available" in after[block] for block in ("memorization", "membership", "answer_kinds"))
    assert "value" in after["tofu"]["model_utility"] and "p_value" in after["tofu"]["forget_quality"]
    assert before["memorization"]["exact_memorization"]["mean"] > 0.95
    assert before["attacks"]["sampling"]["temperature 1"]["worst_case"]["mean"] > 0.95
    assert before["membership"]["loss"]["auc"] > 0.95
    assert results["retain_only"]["memorization"]["extraction_strength"]["mean"] < 0.5
    for name in ("report.html", "report.md", "README.md", "audit.json"):
        assert (out / "unlearned" / name).stat().st_size > 1000

    # the table is the last thing printed
    last_lines = printed.rstrip().splitlines()[-30:]
    assert any("unlearn quality" in line and f"{after['unlearn_quality']:.1f}" in line for line in last_lines)
    assert last_lines[-1].startswith("└")

    again = subprocess.run([REPO / "recipes" / "quickstart" / "run.sh", out], capture_output=True, text=True)
    assert again.returncode == 2 and "exists already" in again.stderr
