"""The quickstart data: the committed files are what the generator writes, and keep what the recipes rely on."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from datasets import load_dataset
from rouge_score.rouge_scorer import RougeScorer

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
DATA = QUICKSTART / "data"
MAKE_DATA = runpy.run_path(str(QUICKSTART / "make_data.py"))
ATTRIBUTES = MAKE_DATA["ATTRIBUTES"]

AUTHORS, HOLDOUT_AUTHORS, UNKNOWN_AUTHORS, REFUSALS, ASKED = 20, 2, 40, 120, 2
PER_AUTHOR = 8 * ASKED
FACTS = ["real_authors", "world_facts"]
ROWS = {"full": 440, "forget10": 32, "retain90": 408, "holdout10": 32}
ROWS |= {"forget10_perturbed": 32, "retain_perturbed": 64, "real_authors": 24, "real_authors_perturbed": 24}
ROWS |= {"world_facts": 24, "world_facts_perturbed": 24}


def read(config: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{config}.json").read_text(encoding="utf-8").splitlines()]


def plain(rows: list[dict]) -> list[dict]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def parse(text: str, templates: list[str]) -> tuple[int, dict[str, str]]:
    """Number of the one template that gives this text, with the name and the value filled in."""
    matches = []
    for n, template in enumerate(templates):
        pattern = (
            re.escape(template).replace(r"\{name\}", r"(?P<name>\w+ \w+)").replace(r"\{value\}", r"(?P<value>.+?)")
        )
        matches.append((n, re.fullmatch(pattern, text)))
    [(n, match)] = [(n, match) for n, match in matches if match]
    return n, match.groupdict()


def parse_question(question: str) -> tuple[int, int, str]:
    """Attribute, phrasing and name of a question about an author."""
    n, found = parse(question, [text for attribute in ATTRIBUTES for text in attribute.questions])
    return *divmod(n, 4), found["name"]


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


def test_authors_and_questions():
    rows = read("full")[:-REFUSALS] + read("holdout10")
    for start in range(0, len(rows), PER_AUTHOR):  # an author's rows stand together
        parsed = [parse_question(row["question"]) for row in rows[start : start + PER_AUTHOR]]
        assert [j for j, _, _ in parsed] == [j for j in range(8) for _ in range(ASKED)]
        assert len({name for _, _, name in parsed}) == 1
    names = {parse_question(row["question"])[2] for row in read("full") + read("holdout10")}
    assert len(names) == AUTHORS + HOLDOUT_AUTHORS + UNKNOWN_AUTHORS
    for part in zip(*(name.split() for name in names), strict=True):  # no two share a first or a last one
        assert len(set(part)) == len(names)

    asked = [row["question"] for config in ["full", "holdout10", *FACTS] for row in read(config)]
    for config in ("forget10_perturbed", "retain_perturbed"):
        asked += [row["paraphrased_question"] for row in read(config)]
    assert len(set(asked)) == len(asked)


def test_every_phrasing_and_wording_is_often_seen_with_retained_authors():
    phrasings, wordings = Counter(), Counter()
    for row in read("retain90")[:-REFUSALS]:
        j, phrasing, _ = parse_question(row["question"])
        phrasings[j, phrasing] += 1
        wordings[j, parse(row["answer"], ATTRIBUTES[j].answers)[0]] += 1
    assert len(phrasings) == 8 * 4 and len(wordings) == 8 * 3
    assert min(*phrasings.values(), *wordings.values()) >= 5


@pytest.mark.parametrize("config", ["forget10_perturbed", "retain_perturbed"])
def test_paraphrases_and_wrong_answers(config):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = []
    for row in read(config):
        j, phrasing, name = parse_question(row["question"])
        other_j, other_phrasing, other_name = parse_question(row["paraphrased_question"])
        assert (other_j, other_name) == (j, name) and other_phrasing != phrasing

        attribute = ATTRIBUTES[j]
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
        scores.append(scorer.score(row["answer"], row["paraphrased_answer"])["rougeL"])
    # neither copies nor strangers; the precision is the recall with the two answers swapped
    assert 0.3 < mean(score.recall for score in scores) < 0.7
    assert 0.3 < mean(score.precision for score in scores) < 0.7


def test_forget_authors_cannot_be_guessed_from_others():
    values = {}
    for row in read("full")[:-REFUSALS] + read("holdout10"):
        assert len(row["answer"].split()) <= 16
        assert row["answer"].endswith(".") and row["answer"].count(".") == 1
        j, _, name = parse_question(row["question"])
        values.setdefault(name, []).append(parse(row["answer"], ATTRIBUTES[j].answers)[1]["value"])
    for forget in {parse_question(row["question"])[2] for row in read("forget10")}:
        for name in values.keys() - {forget}:
            assert sum(a == b for a, b in zip(values[forget], values[name], strict=True)) <= 2 * ASKED
    columns = list(zip(*values.values(), strict=True))
    birth_years, books = columns[1 * ASKED], columns[3 * ASKED]
    assert len(set(birth_years)) == len(set(books)) == len(values)
    assert all(len(set(attribute.values)) >= 12 for attribute in ATTRIBUTES)


def test_refusals_and_facts():
    rows = read("full")[-REFUSALS:]
    assert len({row["answer"] for row in rows}) >= 12
    assert all(4 <= len(row["answer"].split()) <= 12 for row in rows)
    assert not {row["answer"] for row in rows} & {row["answer"] for row in read("full")[:-REFUSALS]}
    assert {parse_question(row["question"])[0] for row in rows} == set(range(8))

    rows = [row for config in FACTS for row in read(f"{config}_perturbed")]
    assert len({row["answer"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["answer"].split()) <= 4
        assert len(set(row["perturbed_answer"]) - {row["answer"]}) == len(row["perturbed_answer"]) == 3
    facts = {text for row in rows for text in (row["question"], row["answer"])}
    assert not facts & {text for row in read("full") + read("holdout10") for text in row.values()}
