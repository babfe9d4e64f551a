"""README and docs are true: their files exist, their links lead somewhere, their commands parse, the example runs."""

import re
import shlex
from pathlib import Path

import pytest

from pmc_rl.recipe import parse_finetune_recipe, parse_recipe
from pmc_rl.reward_loading import load_reward_functions
from pmc_rl.scoring import score_completions

REPO = Path(__file__).parents[1]
FILES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
PAGES = {path: path.read_text(encoding="utf-8") for path in FILES}
README, DOCS = PAGES[REPO / "README.md"], "\n".join(PAGES.values())
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
]
LAUNCHES = [words for words in COMMANDS if words[:2] == ["accelerate", "launch"]]


def test_paths_exist():
    paths = set(re.findall(r"\b(?:recipes|pmc_rl|eval|rewards|benchmarks|tests|docs)/[\w./*-]*[\w*]", DOCS))
    assert len(paths) > 40
    for path in paths:
        assert list(REPO.glob(path)), path


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            linked = page.parent / target if target else page
            assert linked.exists(), (page.name, target)
            if anchor:
                headings = re.findall(r"(?m)^#+ (.*)$", linked.read_text(encoding="utf-8"))
                assert anchor in [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings]


def test_the_readme_is_short_and_no_placeholder_is_left():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 2000 and "@@" not in DOCS


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_launch_lines_parse(words):
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, *argv = words[start:]
    assert (REPO / script).is_file()
    launcher = words[2:start]  # options and their values
    assert set(launcher[::2]) <= {"--config_file", "--num_processes"}
    if argv[0].startswith("runs/"):  # a recipe that an earlier line makes
        return
    argv[0] = str(REPO / argv[0])
    parse = parse_finetune_recipe if script == "pmc_rl/finetune.py" else parse_recipe
    parse(argv)


def test_set_up_lines_are_what_ci_runs():
    ci = (REPO / ".ci" / "run").read_text()
    [tests] = [words for words in COMMANDS if words[0] == "python3" and words[-1] == "pytest"]
    assert "pip install torch==2.13.0" in " ".join(tests)
    for command in ("torch==2.13.0", '-e ".[dev]"', "\npytest\n", "\npytest -m slow\n"):
        assert command in ci


def test_reward_example_runs(tmp_path, monkeypatch):
    [code] = [block for language, block in BLOCKS if language == "python"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    [reward] = load_reward_functions(["my_rewards.refusal"], {}, None, 10)
    assert reward.max_reward == 1.0
    texts = ["I do not know that.", "Ilse was born in Tbilisi."]
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        scores = score_completions([reward], ["q", "q"], completions, [[1], [2]], original_completion=["a", "b"])
        assert scores.tolist() == [[1.0], [0.0]]


def test_shipped_rewards_are_all_listed():
    for path in (REPO / "rewards").glob("[!_]*.py"):
        for name in re.findall(r"^(\w+)\.max_reward = ", path.read_text(), re.MULTILINE):
            assert f"`rewards.{path.stem}.{name}`" in DOCS
