"""Question sets of the audit: what each holds, why one is left out, the retain draws, and who reads answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import run as eval_run
from eval.data import QuestionSet, load_data
from pmc_rl import reading
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import check_no_overlap, read_forget_rows, read_retain_rows
from pmc_rl.recipe import parse_recipe
from tests.conftest import errors_of, write_hub_folder, write_jsonl, write_split_folder

REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "recipes" / "quickstart" / "data"
TOFU = REPO.parent / "shared" / "data" / "TOFU"

NO_NAME = "the recipe names no dataset_name"


def sets_of(args, eval_sets=None):
    data = load_data(args, EvalArguments(eval_sets=eval_sets))
    about_sets = [line for line in data.left_out if not line.startswith("answers to compare")]
    return data.questions, about_sets, data.read["questions"]


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


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sets_of_the_quickstart():
    args, _, _, eval_args = parse_recipe([str(DATA.parent / "unlearn.yaml"), "--dataset_name", str(DATA)])
    sets, left_out, records = sets_of(args, eval_args.eval_sets)
    files = {
        "forget": ("forget10", "question", "answer"),
        "forget_paraphrased": ("forget10_perturbed", "paraphrased_question", "paraphrased_answer"),
        "retain": ("retain90", "question", "answer"),
        "real_authors": ("real_authors", "question", "answer"),
        "world_facts": ("world_facts", "question", "answer"),
    }
    assert left_out == [] and list(sets) == list(records) == list(files)
    for name, (config, question_column, answer_column) in files.items():
        rows = read_json(DATA / f"{config}.json")
        assert records[name]["rows"] == len(rows)
        assert list(records[name]["columns"]) == [question_column, answer_column]
        if name == "retain" and len(rows) > 400:
            assert len(sets[name].rows) == 400
        else:
            assert sets[name].rows == list(range(len(rows)))
        assert sets[name].questions == [rows[i][question_column] for i in sets[name].rows]
        assert sets[name].answers == [rows[i][answer_column] for i in sets[name].rows]
    assert len(sets["forget"].rows) == len(sets["forget_paraphrased"].rows) >= 32


def test_only_the_sets_that_are_named():
    args = PMCArguments(dataset_name=str(DATA), forget_config="forget10", retain_config="retain90")
    sets, left_out, records = sets_of(args, ["world_facts", "forget"])
    assert list(sets) == list(records) == ["forget", "world_facts"] and left_out == []


def test_sets_of_a_recipe_with_files(files, tmp_path):
    sets, left_out, _ = sets_of(files)
    assert sets["forget"] == QuestionSet(["f0?", "f1?", "f2?"], ["f0.", "f1.", "f2."], [0, 1, 2])
    assert sets["retain"].answers == [f"r{i}." for i in range(5)]
    assert left_out == [
        f"forget_paraphrased: {files.forget_file} has no columns paraphrased_question and paraphrased_answer",
        f"real_authors: {NO_NAME}",
        f"world_facts: {NO_NAME}",
    ]
    rows = [{**row, "paraphrased_question": f"Say, {row['question']}"} for row in numbered("f", 3)]
    write_jsonl(files.forget_file, rows)
    one_column = f"forget_paraphrased: {files.forget_file} has no column paraphrased_answer"
    assert sets_of(files)[1] == [one_column, *left_out[1:]]  # one of the two columns is not enough
    write_jsonl(files.forget_file, [{**row, "paraphrased_answer": f"Well, {row['answer']}"} for row in rows])
    sets, left_out, _ = sets_of(files)
    assert (
        sets["forget_paraphrased"].questions[2] == "Say, f2?" and sets["forget_paraphrased"].answers[2] == "Well, f2."
    )
    assert sets["forget"].questions[2] == "f2?" and len(left_out) == 2


def test_why_a_set_is_left_out(files):
    files.answer_column = None
    [nothing] = errors_of(sets_of, files)  # here no set is left at all
    for name in ("forget", "retain"):
        assert f"{name}: answer_column is null, so there are no true answers" in nothing
    files.answer_column = "answer"
    write_jsonl(files.retain_file, [{"question": "r?", "answer": None}])
    assert "retain: no row has an answer" in sets_of(files)[1]
    files.retain_file = None
    assert "retain: the recipe retains nothing" in sets_of(files)[1]
    args = PMCArguments(dataset_name=str(DATA), forget_config="holdout10")  # has no perturbed config
    sets, left_out, _ = sets_of(args)
    assert list(sets) == ["forget", "real_authors", "world_facts"]
    assert left_out == [
        f"forget_paraphrased: {DATA} has no config 'holdout10_perturbed'",
        "retain: the recipe retains nothing",
    ]


def test_a_named_set_must_be_there(files):
    assert errors_of(sets_of, files, ["forget", "real_authors", "forget_paraphrased"]) == [
        f"eval_sets: forget_paraphrased: {files.forget_file} has no columns paraphrased_question and "
        "paraphrased_answer",
        f"eval_sets: real_authors: {NO_NAME}",
    ]


def test_all_errors_at_once(files, tmp_path):
    write_jsonl(files.forget_file, [{"question": "secret?", "answer": ["f0."]}, {"question": "f1?", "answer": "f1."}])
    files.retain_file = str(tmp_path / "retained.jsonl")
    assert errors_of(sets_of, files) == [
        "forget_file: column 'answer' is empty or not a text in 1 of 2 rows "
        "(row 0 holds a list of a text; counted from 0)",
        f"retain_file: there is no file {files.retain_file!r}; did you mean {str(tmp_path / 'retain.jsonl')!r}?",
    ]


def test_an_error_is_said_once(files, tmp_path):
    files.forget_file = str(tmp_path / "nothing.csv")
    assert len(errors_of(sets_of, files)) == 1


def test_data_that_cannot_be_reached():
    errors = errors_of(sets_of, PMCArguments(dataset_name="no-such/data-set", forget_config="forget10"))
    assert errors[0].startswith("forget_config: the data set 'no-such/data-set' (forget10) is neither a folder")


def test_retain_rows_without_answers_are_skipped(files):
    rows = numbered("r", 4)
    rows[1]["answer"] = None
    write_jsonl(files.retain_file, rows)
    assert sets_of(files)[0]["retain"] == QuestionSet(["r0?", "r2?", "r3?"], ["r0.", "r2.", "r3."], [0, 2, 3])


@pytest.mark.parametrize("row", [{"question": "r?"}, {"question": "r?", "answer": " "}])
def test_what_training_takes_for_no_answer_the_audit_does_too(files, row):
    write_jsonl(files.retain_file, [*numbered("r", 2), row])
    assert read_retain_rows(files)[0][2].get("answer") is None
    assert sets_of(files)[0]["retain"].rows == [0, 1]


def test_questions_without_answers_leave_the_other_sets(files):
    write_jsonl(files.forget_file, [{"question": "f?"}])
    sets, left_out, _ = sets_of(files)
    assert list(sets) == ["retain"] and left_out[0].startswith("forget: ")


@pytest.mark.parametrize("count", [400, 401, 3600])
def test_retain_draws_of_the_paper(files, count):
    rows = numbered("r", count)
    write_jsonl(files.retain_file, rows)
    retain = sets_of(files)[0]["retain"]
    expected = list(range(400)) if count == 400 else np.random.default_rng(12345).integers(0, count, 400).tolist()
    assert retain.rows == expected
    assert retain.questions == [rows[i]["question"] for i in expected]
    assert retain.answers == [rows[i]["answer"] for i in expected]
    assert len(set(retain.rows)) == {400: 400, 401: 249, 3600: 370}[count]


def test_retain_draws_number_the_file_where_rows_have_no_answer(files):
    rows = numbered("r", 500)
    for i in range(0, 500, 10):
        rows[i]["answer"] = None
    write_jsonl(files.retain_file, rows)
    retain = sets_of(files)[0]["retain"]
    answered = [i for i in range(500) if i % 10]
    assert retain.rows == [answered[i] for i in np.random.default_rng(12345).integers(0, 450, 400)]
    assert retain.answers == [f"r{i}." for i in retain.rows]


@pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU does not lie in ../shared/data/TOFU")
def test_tofu():
    args = PMCArguments(dataset_name=str(TOFU), forget_config="forget10", retain_config="retain90")
    sets, left_out, _ = sets_of(args)
    assert left_out == []
    assert {name: len(rows.rows) for name, rows in sets.items()} == {
        "forget": 400,
        "forget_paraphrased": 400,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert sets["retain"].rows == np.random.default_rng(12345).integers(0, 3600, 400).tolist()
    assert len(set(sets["retain"].rows)) == 370
    retain = read_json(TOFU / "retain90.json")
    assert sets["retain"].answers == [retain[i]["answer"] for i in sets["retain"].rows]
    # one question is there twice, within a set
    rows = read_json(TOFU / "full.json")
    assert len({row["question"] for row in rows}) == len(rows) - 1
    check_no_overlap(read_forget_rows(args)[0], read_retain_rows(args)[0], "question")


def test_answers_to_be_forgotten_are_read_here_only(files):
    assert sets_of(files)[0]["forget"].answers == ["f0.", "f1.", "f2."]
    rows, record = read_forget_rows(files)  # all that pmc_rl/train.py reads of them
    assert rows == [{"question": f"f{i}?"} for i in range(3)]
    assert list(record["columns"]) == ["question"]


# rows without an answer


@pytest.mark.parametrize("answer", [None, "", " \n", "-- ...", "\U0001f642", float("nan")])
def test_a_row_to_forget_without_an_answer_is_left_out_and_counted(files, answer):
    rows = numbered("f", 4)
    rows[1] = {"question": "f1?", "answer": answer}
    rows[2]["answer"] = "\u4e0a\u6d77"
    rows[3].pop("answer")
    write_jsonl(files.forget_file, rows)
    sets, left_out, records = sets_of(files)
    assert sets["forget"] == QuestionSet(["f0?", "f2?"], ["f0.", "\u4e0a\u6d77"], [0, 2])
    assert "forget: 2 of 4 rows, without a letter or a digit in answer (rows 1, 3, counted from 0)" in left_out
    assert records["forget"]["rows"] == 4  # as training read it
    data = load_data(files, EvalArguments())
    assert data.options["forget"].questions == ["f0?", "f2?"]
    assert data.forget_questions == [f"f{i}?" for i in range(4)]
    # nothing else is told twice
    assert len([line for line in data.left_out if "without a letter" in line]) == 1


def test_rows_without_further_answers_are_left_out_of_the_comparison(files):
    rows = [{**row, "paraphrased_answer": "p", "perturbed_answer": ["x", "y"]} for row in numbered("f", 5)]
    rows[1]["paraphrased_answer"] = None
    rows[2]["perturbed_answer"] = []
    rows[4]["perturbed_answer"] = ["x", "?"]
    write_jsonl(files.forget_file, rows)
    data = load_data(files, EvalArguments())
    assert data.questions["forget"].rows == [0, 1, 2, 3, 4]
    assert data.options["forget"].questions == ["f0?", "f3?"] and data.options["forget"].wrong == [["x", "y"]] * 2
    assert (
        "answers to compare, forget: 3 of 5 rows, without a letter or a digit in answer or paraphrased_answer or "
        "perturbed_answer (rows 1, 2, 4, counted from 0)"
    ) in data.left_out
    rows[1]["perturbed_answer"] = "x"
    write_jsonl(files.forget_file, rows)
    assert errors_of(load_data, files, EvalArguments()) == [
        "forget_file: column 'perturbed_answer' is not a list of texts in 1 of 5 rows (row 1 holds a text; "
        "counted from 0)"
    ]


def test_a_dry_run_names_what_an_audit_would_leave_out(files, tmp_path, capsys):
    """Before there is any run: nothing is loaded, nothing is written."""
    write_jsonl(files.forget_file, [*numbered("f", 3), {"question": "f3?", "answer": "..."}])
    recipe = tmp_path / "recipe.yaml"
    settings = {"model_name_or_path": "none", "output_dir": str(tmp_path / "out"), "dry_run": True}
    settings |= {"forget_file": files.forget_file, "retain_file": files.retain_file}
    recipe.write_text(json.dumps(settings))
    before = sorted(tmp_path.iterdir())
    eval_run.main([str(recipe)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "questions: forget 3, retain 5 rows"
    assert lines[1] == "answers to compare: forget 3, retain 5 rows"
    assert "Left out: forget: 1 of 4 rows, without a letter or a digit in answer (rows 3, counted from 0)." in lines
    assert sorted(tmp_path.iterdir()) == before


# each source once, and several


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_data_set_is_asked_for_its_configs_once(monkeypatch, tmp_path, capsys):
    asked, read = [], []
    names, read_table = reading.get_dataset_config_names, reading._read_files
    monkeypatch.setattr(reading, "get_dataset_config_names", lambda name: asked.append(name) or names(name))
    monkeypatch.setattr(
        reading, "_read_files", lambda key, paths, *a: read.extend(paths) or read_table(key, paths, *a)
    )
    recipe = [str(DATA.parent / "unlearn.yaml"), "--dataset_name", str(DATA), "--output_dir", str(tmp_path / "out")]
    eval_run.main([*recipe, "--dry_run", "true"])
    assert len(asked) == 1
    assert len(read) == len(set(read)) >= 6
    assert "forget 32" in capsys.readouterr().out


def test_an_audit_reads_a_file_once(files, monkeypatch):
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    data = load_data(files, EvalArguments())
    assert (opened.count(files.forget_file), opened.count(files.retain_file)) == (1, 1)
    assert data.questions["forget"].answers == data.options["forget"].answers == ["f0.", "f1.", "f2."]


def test_several_configs_and_their_companions(tmp_path):
    rows = {name: numbered(name, 2) for name in ("forget01", "forget05", "holdout01", "holdout05", "keep", "more")}
    for name in ("forget01", "forget05"):
        rows[f"{name}_perturbed"] = [
            {**row, "paraphrased_question": f"p {row['question']}", "paraphrased_answer": f"p {row['answer']}"}
            for row in rows[name]
        ]
    folder = write_hub_folder(tmp_path / "hub", **rows)
    args = PMCArguments(dataset_name=folder, forget_config=["forget01", "forget05"], retain_config=["keep", "more"])
    data = load_data(args, EvalArguments())
    both = [row["question"] for row in rows["forget01"] + rows["forget05"]]
    assert data.questions["forget"].questions == data.options["forget"].questions == both
    assert data.questions["forget_paraphrased"].questions == [f"p {question}" for question in both]
    assert data.questions["retain"].answers == [row["answer"] for row in rows["keep"] + rows["more"]]
    assert data.options["holdout"].questions == [row["question"] for row in rows["holdout01"] + rows["holdout05"]]
    assert data.read["questions"]["forget"]["source"] == f"{folder}:forget01 + {folder}:forget05"
    args.forget_config = ["forget01", "keep"]
    data = load_data(args, EvalArguments(eval_sets=["forget"]))
    assert len(data.options["forget"].questions) == 4 and data.options["forget"].paraphrases is None
    assert data.missing["holdout"] == "give questions and answers that no model saw with holdout_file"
    args.retain_config = None
    assert f"forget_paraphrased: {folder} has no config 'keep_perturbed'" in load_data(args, EvalArguments()).left_out


def test_an_audit_of_files_with_columns_of_their_own(files):
    rows = [{"query": "q?", "answer": "q.", "level": "1"}]
    write_jsonl(files.forget_file, rows)
    write_jsonl(files.retain_file, [{"question": "r?", "reply": "r."}])
    files.question_column, files.retain_question_column, files.retain_answer_column = "query", "question", "reply"
    data = load_data(files, EvalArguments())
    assert (data.questions["forget"].questions, data.questions["forget"].answers) == (["q?"], ["q."])
    assert (data.questions["retain"].questions, data.options["retain"].answers) == (["r?"], ["r."])


def test_an_audit_of_splits(tmp_path):
    args = PMCArguments(dataset_name=write_split_folder(tmp_path / "muse"), forget_config="knowmem")
    args.retain_config, args.forget_split, args.retain_split = "knowmem", "forget_qa", "retain_qa"
    data = load_data(args, EvalArguments())
    for name in ("forget", "retain"):
        assert data.questions[name].answers == data.options[name].answers == [f"{name}_qa {i}." for i in range(3)]
