"""Question sets of the audit: what each holds, why one is left out, the retain draws, and who reads answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import run as eval_run
from eval.data import load_data
from eval.sets import QuestionSet
from pmc_rl import reading
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import read_retain_rows
from tests.conftest import errors_of, write_hub_folder, write_jsonl, write_split_folder
from tests.training import write_recipe

REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "recipes" / "quickstart" / "data"
NO_FACTS = [f"{name}: the recipe names no dataset_name" for name in ("real_authors", "world_facts")]


def load(args, eval_sets=None):
    return load_data(args, EvalArguments(eval_sets=eval_sets))


def left_out(data) -> list[str]:
    """What is said of question sets."""
    return [line for line in data.left_out if not line.startswith("answers to compare")]


def read_json(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbered(letter, count):
    return [{"question": f"{letter}{i}?", "answer": f"{letter}{i}."} for i in range(count)]


@pytest.fixture
def files(tmp_path):
    """Arguments of a recipe that has two files and nothing else."""
    return PMCArguments(
        forget_file=write_jsonl(tmp_path / "forget.jsonl", numbered("f", 3)),
        retain_file=write_jsonl(tmp_path / "retain.jsonl", numbered("r", 5)),
    )


def test_sets_of_the_quickstart():
    args = PMCArguments(dataset_name=str(DATA), forget_config="forget10", retain_config="retain90")
    data = load(args)
    configs = {"forget": "forget10", "forget_paraphrased": "forget10_perturbed", "retain": "retain90"}
    configs |= {"real_authors": "real_authors", "world_facts": "world_facts"}
    assert left_out(data) == [] and list(data.questions) == list(data.read["questions"]) == list(configs)
    for name, config in configs.items():
        rows, found, record = read_json(DATA / f"{config}.json"), data.questions[name], data.read["questions"][name]
        paraphrased = "paraphrased_" if name == "forget_paraphrased" else ""
        columns = [f"{paraphrased}question", f"{paraphrased}answer"]
        assert record["rows"] == len(rows) and list(record["columns"]) == columns
        assert len(found.rows) == min(len(rows), 400) >= 20
        assert [found.questions, found.answers] == [[rows[i][column] for i in found.rows] for column in columns]
    named = load(args, ["world_facts", "forget"])
    assert list(named.questions) == list(named.read["questions"]) == ["forget", "world_facts"]
    assert left_out(named) == [] and named.missing["retain"] == "eval_sets does not name it"


def test_sets_of_a_recipe_with_files(files):
    data = load(files)
    assert data.questions["forget"] == QuestionSet(["f0?", "f1?", "f2?"], ["f0.", "f1.", "f2."], [0, 1, 2])
    assert data.questions["retain"].answers == [f"r{i}." for i in range(5)]
    no_columns = f"forget_paraphrased: {files.forget_file} has no columns paraphrased_question and paraphrased_answer"
    assert left_out(data) == [no_columns, *NO_FACTS]
    asked = ["forget", "real_authors", "forget_paraphrased"]
    assert errors_of(load, files, asked) == [f"eval_sets: {line}" for line in (no_columns, NO_FACTS[0])]
    rows = [{**row, "paraphrased_question": f"Say, {row['question']}"} for row in numbered("f", 3)]
    write_jsonl(files.forget_file, rows)  # one of the two columns is not enough
    no_column = f"forget_paraphrased: {files.forget_file} has no column paraphrased_answer"
    assert left_out(load(files)) == [no_column, *NO_FACTS]
    write_jsonl(files.forget_file, [{**row, "paraphrased_answer": f"Well, {row['answer']}"} for row in rows])
    data = load(files)
    paraphrased = data.questions["forget_paraphrased"]
    assert (paraphrased.questions[2], paraphrased.answers[2]) == ("Say, f2?", "Well, f2.")
    assert data.questions["forget"].questions[2] == "f2?" and left_out(data) == NO_FACTS


def test_more_sets_are_asked_and_count_nowhere_else(files, tmp_path):
    own = write_jsonl(tmp_path / "own.jsonl", numbered("o", 2))
    data = load_data(files, EvalArguments(eval_sets=["forget"], more_sets={"own": own}))
    assert list(data.questions) == ["forget", "own"] and "own" not in data.options
    assert data.questions["own"] == QuestionSet(["o0?", "o1?"], ["o0.", "o1."], [0, 1])
    unusable = write_jsonl(tmp_path / "unusable.jsonl", [{"question": "o?", "answer": None}])
    sets = {"own": str(tmp_path / "absent.jsonl"), "none": unusable, "retain": own}
    errors = errors_of(load_data, files, EvalArguments(more_sets=sets))
    assert errors[0] == "more_sets: 'retain' is a set that every audit may have; choose another name"
    assert errors[1].startswith("more_sets, own: ") and errors[2:] == ["more_sets: none: no row has an answer"]


def test_of_several_right_answers_the_best_one_counts(files):
    """A row's first answer that says something is the one whose likelihood is told."""
    answers = [["In the UK.", "..."], [" ", "Her name is Ann.", "Annie Lum"], None, ["A poet."]]
    rows = [{"question": f"f{i}?", "said": {"text": texts}} for i, texts in enumerate(answers)]
    files.forget_file = write_jsonl(files.forget_file, rows)
    files.answer_column, files.retain_answer_column = "said.text", "answer"
    data = load(files)
    forget = data.questions["forget"]
    assert forget == QuestionSet(
        ["f0?", "f1?", "f3?"], ["In the UK.", "Her name is Ann.", "A poet."], [0, 1, 3], [[], ["Annie Lum"], []]
    )
    assert data.options["forget"].answers == forget.answers
    texts = ["in the UK", "It is Annie Lum", "A painter."]
    assert forget.recalls(texts) == [1.0, 1.0, 0.5] and forget.fact_recalls(texts) == [1.0, 1.0, None]
    assert forget.part(1, 3).recalls(texts[1:]) == [1.0, 0.5]
    assert QuestionSet(forget.questions, forget.answers, forget.rows).recalls(texts) == [1.0, 0.25, 0.5]


def test_why_a_set_is_left_out(files):
    files.answer_column = None
    [nothing] = errors_of(load, files)  # here no set is left at all
    for name in ("forget", "retain"):
        assert f"{name}: answer_column is null, so there are no true answers" in nothing
    files.answer_column = "answer"
    write_jsonl(files.retain_file, [{"question": "r?", "answer": None}])
    assert "retain: no row has an answer" in left_out(load(files))
    data = load(PMCArguments(dataset_name=str(DATA), forget_config="holdout10"))  # has no perturbed config
    assert list(data.questions) == ["forget", "real_authors", "world_facts"]
    no_config = f"forget_paraphrased: {DATA} has no config 'holdout10_perturbed'"
    assert left_out(data) == [no_config, "retain: the recipe retains nothing"]


def test_all_errors_at_once_and_each_once(files, tmp_path):
    write_jsonl(files.forget_file, [{"question": "secret?", "answer": ["f0."]}, {"question": "f1?", "answer": "f1."}])
    files.retain_file = str(tmp_path / "retained.jsonl")
    what = "column 'answer' is not a list of texts in 1 of 2 rows (row 1 holds a text; counted from 0)"
    advice = f"did you mean {str(tmp_path / 'retain.jsonl')!r}?"
    missing = f"retain_file: there is no file {files.retain_file!r}; {advice}"
    assert errors_of(load, files) == [f"forget_file: {what}", missing]


def test_unrelated_text_that_is_none(files, tmp_path):
    path = tmp_path / "text.txt"
    for content, problem in ((None, "cannot be read"), (b"\xff", "cannot be read as text"), (b" \n", "is empty")):
        if content is not None:
            path.write_bytes(content)
        [error] = errors_of(load_data, files, EvalArguments(unrelated_file=str(path)))
        assert error.startswith(f"unrelated_file: {str(path)!r} {problem}")


@pytest.mark.parametrize("count", [400, 401, 3600])
def test_retain_draws_of_the_paper(files, count):
    """They number the file, where rows without an answer are skipped."""
    rows = numbered("r", count)
    for i in range(0, count, 200):
        rows.insert(i, {"question": "none?", "answer": None})
    write_jsonl(files.retain_file, rows)
    retain = load(files).questions["retain"]
    answered = [i for i, row in enumerate(rows) if row["answer"]]
    draws = range(400) if count == 400 else np.random.default_rng(12345).integers(0, count, 400)
    numbers = [answered[i] for i in draws]
    texts = ([rows[i][key] for i in numbers] for key in ("question", "answer"))
    assert retain == QuestionSet(*texts, numbers)
    assert len(set(numbers)) == {400: 400, 401: 249, 3600: 370}[count]


@pytest.mark.parametrize("answer", [None, "", " \n", "-- ...", "\U0001f642", float("nan")])
def test_a_row_to_forget_without_an_answer_is_left_out_and_counted(files, answer):
    rows = numbered("f", 4)
    rows[1]["answer"], rows[2]["answer"] = answer, "\u4e0a\u6d77"
    rows[3].pop("answer")
    write_jsonl(files.forget_file, rows)
    data = load(files)
    assert data.questions["forget"] == QuestionSet(["f0?", "f2?"], ["f0.", "\u4e0a\u6d77"], [0, 2])
    assert data.options["forget"].questions == ["f0?", "f2?"]
    assert data.forget_questions == [f"f{i}?" for i in range(4)]
    assert data.read["questions"]["forget"]["rows"] == 4  # as training read it
    [line] = [line for line in data.left_out if "without a letter" in line]  # nothing is told twice
    assert line == "forget: 2 of 4 rows, without a letter or a digit in answer (rows 1, 3, counted from 0)"
    # what training takes for no answer the audit does too
    write_jsonl(files.retain_file, rows[:2])
    if not isinstance(answer, str) or not answer.strip():
        assert read_retain_rows(files)[0][1]["answer"] is None
    assert load(files).questions["retain"].rows == [0]


def test_rows_without_further_answers_are_left_out_of_the_comparison(files):
    rows = [{**row, "paraphrased_answer": "p", "perturbed_answer": ["x", "y"]} for row in numbered("f", 5)]
    rows[1]["paraphrased_answer"] = None
    rows[2]["perturbed_answer"] = []
    rows[4]["perturbed_answer"] = ["x", "?"]
    write_jsonl(files.forget_file, rows)
    data = load(files)
    assert data.questions["forget"].rows == [0, 1, 2, 3, 4]
    options = data.options["forget"]
    assert options.questions == ["f0?", "f3?"] and options.paraphrases == ["p"] * 2
    assert options.wrong == [["x", "y"]] * 2
    what = "without a letter or a digit in answer or paraphrased_answer or perturbed_answer"
    assert f"answers to compare, forget: 3 of 5 rows, {what} (rows 1, 2, 4, counted from 0)" in data.left_out
    rows[1]["perturbed_answer"] = "x"
    write_jsonl(files.forget_file, rows)
    [error] = errors_of(load, files)
    assert "column 'perturbed_answer' is not a list of texts in 1 of 5 rows (row 1 holds" in error


def test_a_dry_run_names_what_an_audit_would_leave_out(files, tmp_path, capsys):
    """Before there is any run: nothing is loaded, nothing is written."""
    write_jsonl(files.forget_file, [*numbered("f", 3), {"question": "f3?", "answer": "..."}])
    settings = {"model_name_or_path": "none", "output_dir": str(tmp_path / "out"), "dry_run": True}
    settings |= {"forget_file": files.forget_file, "retain_file": files.retain_file}
    recipe = write_recipe(tmp_path / "recipe.yaml", **settings)
    before = sorted(tmp_path.iterdir())
    eval_run.main([recipe])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["questions: forget 3, retain 5 rows", "answers to compare: forget 3, retain 5 rows"]
    assert "Left out: forget: 1 of 4 rows, without a letter or a digit in answer (rows 3, counted from 0)." in lines
    assert sorted(tmp_path.iterdir()) == before


def test_each_source_is_read_once(files, monkeypatch):
    opened, asked, real, names = [], [], open, reading.get_dataset_config_names
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    monkeypatch.setattr(reading, "get_dataset_config_names", lambda name: asked.append(name) or names(name))
    data = load(files)
    assert (opened.count(files.forget_file), opened.count(files.retain_file)) == (1, 1) and not asked
    assert data.questions["forget"].answers == data.options["forget"].answers == ["f0.", "f1.", "f2."]
    load(PMCArguments(dataset_name=str(DATA), forget_config="forget10", retain_config="retain90"))
    read = [path for path in opened if path.startswith(str(DATA)) and path.endswith(".json")]
    assert len(asked) == 1 and len(read) == len(set(read)) >= 6


def test_several_configs_and_their_companions(tmp_path):
    rows = {name: numbered(name, 2) for name in ("forget01", "forget05", "holdout01", "holdout05", "keep", "more")}
    for name in ("forget01", "forget05"):
        rewordings = [{f"paraphrased_{key}": f"p {row[key]}" for key in row} for row in rows[name]]
        rows[f"{name}_perturbed"] = [a | b for a, b in zip(rows[name], rewordings, strict=True)]
    folder = write_hub_folder(tmp_path / "hub", **rows)
    args = PMCArguments(dataset_name=folder, forget_config=["forget01", "forget05"], retain_config=["keep", "more"])
    data = load(args)
    both = [row["question"] for row in rows["forget01"] + rows["forget05"]]
    assert data.questions["forget"].questions == data.options["forget"].questions == both
    assert data.questions["forget_paraphrased"].questions == [f"p {question}" for question in both]
    assert data.questions["retain"].answers == [row["answer"] for row in rows["keep"] + rows["more"]]
    assert data.options["holdout"].questions == [row["question"] for row in rows["holdout01"] + rows["holdout05"]]
    assert data.read["questions"]["forget"]["source"] == f"{folder}:forget01 + {folder}:forget05"
    args.forget_config, args.retain_config = ["forget01", "keep"], None
    data = load(args)
    assert len(data.options["forget"].questions) == 4 and data.options["forget"].paraphrases is None
    assert data.missing["holdout"] == "give questions and answers that no model saw with holdout_file"
    assert f"forget_paraphrased: {folder} has no config 'keep_perturbed'" in data.left_out


def test_columns_and_splits_of_ones_own(files, tmp_path):
    write_jsonl(files.forget_file, [{"query": "q?", "answer": "q.", "level": "1"}])
    write_jsonl(files.retain_file, [{"question": "r?", "reply": "r."}])
    files.question_column, files.retain_question_column, files.retain_answer_column = "query", "question", "reply"
    data = load(files)
    assert (data.questions["forget"].questions, data.questions["forget"].answers) == (["q?"], ["q."])
    assert (data.questions["retain"].questions, data.options["retain"].answers) == (["r?"], ["r."])
    splits = {"forget_config": "knowmem", "forget_split": "forget_qa"}
    splits |= {"retain_config": "knowmem", "retain_split": "retain_qa"}
    data = load(PMCArguments(dataset_name=write_split_folder(tmp_path / "muse"), **splits))
    for name in ("forget", "retain"):
        assert data.questions[name].answers == data.options[name].answers == [f"{name}_qa {i}." for i in range(3)]


def test_files_of_others_by_their_keys(tmp_path):
    """The rows of the table in docs/data.md for which keys alone suffice."""
    turns = [{"role": "user", "content": "m?"}, {"role": "assistant", "content": "m."}]
    further = {"paraphrased_question": "p?", "paraphrased_answer": "p.", "perturbed_answer": ["w."]}
    own = {"question": "c?", "answer": "what a model said", "golden_answer": "c.", **further}
    neighbour = {"question": "n?", "answer": "n.", "golden_answer": "not kept"}
    made = {"chats": {"messages": turns}, "forget_perturbed": own, "neighbor": neighbour}
    paths = {name: write_jsonl(tmp_path / f"{name}.jsonl", [row]) for name, row in made.items()}
    path = {"question_column": "messages.0.content", "answer_column": "messages.1.content"}
    data = load(PMCArguments(forget_file=paths["chats"], retain_file=paths["chats"], **path))
    assert data.questions["forget"] == data.questions["retain"] == QuestionSet(["m?"], ["m."], [0])
    columns = {"answer_column": "golden_answer", "retain_answer_column": "answer"}
    data = load(PMCArguments(forget_file=paths["forget_perturbed"], retain_file=paths["neighbor"], **columns))
    assert (data.questions["forget"].answers, data.questions["forget_paraphrased"].questions) == (["c."], ["p?"])
    assert (data.options["forget"].wrong, data.options["retain"].answers) == ([["w."]], ["n."])

    muse = tmp_path / "muse"
    muse.mkdir()
    splits = {
        "verbmem": ("forget", {"prompt": "It was", "gt": "a day."}),
        "knowmem": ("retain_qa", numbered("k", 1)[0]),
    }
    entries = ""
    for config, (split, row) in splits.items():
        write_jsonl(muse / f"{config}.jsonl", [row])
        entries += f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}.jsonl\n"
    (muse / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    keys = {"forget_config": "verbmem", "forget_split": "forget", "question_column": "prompt", "answer_column": "gt"}
    keys |= {"retain_config": "knowmem", "retain_split": "retain_qa"}
    keys |= {"retain_question_column": "question", "retain_answer_column": "answer"}
    data = load(PMCArguments(dataset_name=str(muse), **keys))
    assert (data.questions["forget"].questions, data.questions["forget"].answers) == (["It was"], ["a day."])
    assert (data.questions["retain"].questions, data.questions["retain"].answers) == (["k0?"], ["k0."])
