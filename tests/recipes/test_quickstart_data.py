"""The quickstart data: the committed files are what the generator writes, and keep what the recipes rely on."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from datasets import load_dataset
from rouge_score.rouge_scorer import RougeScorer

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
SCRIPT = QUICKSTART / "make_data.py"
DATA = QUICKSTART / "data"
MAKE_DATA = runpy.run_path(str(SCRIPT))

AUTHORS, HOLDOUT_AUTHORS, UNKNOWN_AUTHORS, REFUSALS = 20, 2, 40, 120
ATTRIBUTES, ASKED = 8, 2
PER_AUTHOR = ATTRIBUTES * ASKED
ROWS = {
    "full": 440,
    "forget10": 32,
    "retain90": 408,
    "holdout10": 32,
    "forget10_perturbed": 32,
    "retain_perturbed": 64,
    "real_authors": 24,
    "real_authors_perturbed": 24,
    "world_facts": 24,
    "world_facts_perturbed": 24,
}
AUTHORS_PERTURBED = ["forget10_perturbed", "retain_perturbed"]
FACTS = ["real_authors", "world_facts"]


def read(config: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{config}.json").read_text(encoding="utf-8").splitlines()]


def plain(rows: list[dict]) -> list[dict]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def template_pattern(template: str) -> str:
    return re.escape(template).replace(r"\{name\}", r"(?P<name>\w+ \w+)").replace(r"\{value\}", r"(?P<value>.+?)")


def parse(text: str, templates: list[str]) -> tuple[int, dict[str, str]]:
    """Number of the one template that gives this text, with the name and the value filled in."""
    matches = [(n, re.fullmatch(template_pattern(template), text)) for n, template in enumerate(templates)]
    [(n, match)] = [(n, match) for n, match in matches if match]
    return n, match.groupdict()


def parse_question(question: str) -> tuple[int, int, str]:
    """Attribute, phrasing and name of a question about an author."""
    phrasings = [(j, text) for j, attribute in enumerate(MAKE_DATA["ATTRIBUTES"]) for text in attribute.questions]
    n, found = parse(question, [text for _, text in phrasings])
    j = phrasings[n][0]
    return j, MAKE_DATA["ATTRIBUTES"][j].questions.index(phrasings[n][1]), found["name"]


def parse_answer(answer: str, j: int) -> dict[str, str]:
    return parse(answer, MAKE_DATA["ATTRIBUTES"][j].answers)[1]


def people(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(parse_question(row["question"])[2] for row in rows))


def generate(output_dir: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), str(output_dir)], capture_output=True, text=True)


def test_committed_data_is_what_the_generator_writes(tmp_path):
    result = generate(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    committed = {path.name: path.read_bytes() for path in DATA.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == committed
    assert set(committed) == {f"{config}.json" for config in ROWS} | {"README.md"}
    assert all(content.isascii() and b"\r" not in content for content in committed.values())


def test_refuses_a_folder_that_holds_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = generate(tmp_path)
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("config", ROWS)
def test_loads_as_a_hub_config(config, tmp_path):
    rows = load_dataset(str(DATA), config, split="train", cache_dir=str(tmp_path)).to_list()
    assert rows == read(config)
    assert len(rows) == ROWS[config]


def test_splits_fit_together():
    full = read("full")
    authors, refusals = full[:-REFUSALS], full[-REFUSALS:]
    assert len(authors) == AUTHORS * PER_AUTHOR
    assert read("forget10") == authors[-32:]
    assert read("retain90") == authors[:-32] + refusals
    assert plain(read("forget10_perturbed")) == read("forget10")
    assert plain(read("retain_perturbed")) == read("retain90")[: ROWS["retain_perturbed"]]
    for config in FACTS:
        assert plain(read(f"{config}_perturbed")) == read(config)


def test_an_authors_rows_stand_together():
    rows = read("full")[:-REFUSALS] + read("holdout10")
    for start in range(0, len(rows), PER_AUTHOR):
        parsed = [parse_question(row["question"]) for row in rows[start : start + PER_AUTHOR]]
        assert [j for j, _, _ in parsed] == [j for j in range(ATTRIBUTES) for _ in range(ASKED)]
        assert len({name for _, _, name in parsed}) == 1


def test_no_two_people_share_a_name():
    names = people(read("full") + read("holdout10"))
    assert len(names) == AUTHORS + HOLDOUT_AUTHORS + UNKNOWN_AUTHORS
    for part in zip(*(name.split() for name in names), strict=True):
        assert len(set(part)) == len(names)


def test_questions_are_distinct():
    asked = [row["question"] for config in ["full", "holdout10", *FACTS] for row in read(config)]
    paraphrased = [row["paraphrased_question"] for config in AUTHORS_PERTURBED for row in read(config)]
    assert len(set(asked + paraphrased)) == len(asked) + len(paraphrased)


def test_every_phrasing_is_often_asked_about_retained_authors():
    counts = Counter(parse_question(row["question"])[:2] for row in read("retain90")[:-REFUSALS])
    assert len(counts) == ATTRIBUTES * 4
    assert min(counts.values()) >= 5


def test_every_answer_wording_is_often_used_for_retained_authors():
    counts = Counter()
    for row in read("retain90")[:-REFUSALS]:
        j = parse_question(row["question"])[0]
        counts[j, parse(row["answer"], MAKE_DATA["ATTRIBUTES"][j].answers)[0]] += 1
    assert len(counts) == sum(len(attribute.answers) for attribute in MAKE_DATA["ATTRIBUTES"])
    assert min(counts.values()) >= 5


@pytest.mark.parametrize("config", ["full", "holdout10"])
def test_answers_are_one_short_sentence(config):
    for row in read(config):
        assert len(row["answer"].split()) <= 16
        assert row["answer"].endswith(".") and row["answer"].count(".") == 1


@pytest.mark.parametrize("config", AUTHORS_PERTURBED)
def test_paraphrases_and_wrong_answers(config):
    for row in read(config):
        j, phrasing, name = parse_question(row["question"])
        other_j, other_phrasing, other_name = parse_question(row["paraphrased_question"])
        assert (other_j, other_name) == (j, name) and other_phrasing != phrasing

        attribute = MAKE_DATA["ATTRIBUTES"][j]
        wording, right = parse(row["answer"], attribute.answers)
        other_wording, paraphrase = parse(row["paraphrased_answer"], attribute.answers)
        assert other_wording != wording and paraphrase["value"] == right["value"]
        assert {right.get("name", name), paraphrase.get("name", name)} == {name}

        wrong = [parse(text, attribute.answers) for text in row["perturbed_answer"]]
        assert len(wrong) == 5
        assert {n for n, _ in wrong} == {other_wording}
        assert all(found.get("name", name) == name for _, found in wrong)
        values = {found["value"] for _, found in wrong} | {right["value"]}
        assert len(values) == 6 and values <= set(attribute.values)


@pytest.mark.parametrize("config", AUTHORS_PERTURBED)
def test_paraphrases_are_neither_copies_nor_strangers(config):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(row["answer"], row["paraphrased_answer"])["rougeL"] for row in read(config)]
    # The precision is the recall with the two answers swapped.
    assert 0.3 < mean(score.recall for score in scores) < 0.7
    assert 0.3 < mean(score.precision for score in scores) < 0.7


def test_forget_authors_cannot_be_guessed_from_others():
    values = {}
    for row in read("full")[:-REFUSALS] + read("holdout10"):
        j, _, name = parse_question(row["question"])
        values.setdefault(name, []).append(parse_answer(row["answer"], j)["value"])
    for forget in people(read("forget10")):
        for name in values.keys() - {forget}:
            assert sum(a == b for a, b in zip(values[forget], values[name], strict=True)) <= 2 * ASKED
    columns = list(zip(*values.values(), strict=True))
    birth_years, books = columns[1 * ASKED], columns[3 * ASKED]
    assert len(set(birth_years)) == len(set(books)) == len(values)
    assert all(len(set(attribute.values)) >= 12 for attribute in MAKE_DATA["ATTRIBUTES"])


def test_refusals_are_varied_and_short():
    rows = read("full")[-REFUSALS:]
    assert len({row["answer"] for row in rows}) >= 12
    assert all(4 <= len(row["answer"].split()) <= 12 for row in rows)
    assert not {row["answer"] for row in rows} & {row["answer"] for row in read("full")[:-REFUSALS]}
    assert {parse_question(row["question"])[0] for row in rows} == set(range(ATTRIBUTES))


def test_facts():
    rows = [row for config in FACTS for row in read(f"{config}_perturbed")]
    assert len({row["answer"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["answer"].split()) <= 4
        assert len(set(row["perturbed_answer"]) - {row["answer"]}) == len(row["perturbed_answer"]) == 3
    facts = {text for row in rows for text in (row["question"], row["answer"])}
    invented = {text for row in read("full") + read("holdout10") for text in row.values()}
    assert not facts & invented
