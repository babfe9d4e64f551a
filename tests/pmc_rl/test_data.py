"""Questions and rows: the same from every format, a line for each mistake, templates, and no answer left behind."""

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from pmc_rl.config import DataArguments, FinetuneArguments, PMCArguments, PMCConfig
from pmc_rl.data import check_no_overlap, read_finetune_rows, read_forget_rows, read_retain_rows
from pmc_rl.original import answer_retain_rows
from pmc_rl.prompts import answered_dataset, forget_dataset, format_completion, format_prompt
from pmc_rl.reading import read_columns
from tests.conftest import errors_of, write_hub_folder, write_jsonl, write_split_folder

ROWS = [
    {"question": "Who wrote 'Älter, als ich'?", "answer": 'Zoë said:\n"I did", twice.', "topic": "books"},
    {"question": "Where, if at all, was she born?", "answer": None, "topic": "東京"},
]
ANSWERED = [{"question": f"Who {i}?", "answer": f'"{i}",\nthey\u2028say.', "tags": ["a", "b"]} for i in range(3)]


def write_text(path, text) -> str:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read_file(path, columns=("question",), optional=()):
    return read_columns("forget_file", str(path), None, None, list(columns), list(optional))[0]


@pytest.mark.parametrize("kind", ["rows.jsonl", "bom.json", "ROWS.CSV", "rows.parquet", "hub"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    source = str(tmp_path / kind), None, None
    if kind == "hub":
        source = None, write_hub_folder(tmp_path / "hub", other=[{"question": "no"}], mine=ROWS), "mine"
    elif kind == "bom.json":
        write_text(source[0], b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    elif kind == "ROWS.CSV":
        pandas.DataFrame(ROWS).to_csv(source[0], index=False, encoding="utf-8-sig")
    elif kind == "rows.parquet":
        pandas.DataFrame(ROWS).to_parquet(source[0])
    else:
        write_jsonl(source[0], ROWS)
    rows, record = read_columns("key", *source, ["question", "answer", "topic"], [])
    plain = write_jsonl(tmp_path / "plain.jsonl", ROWS)
    _, plain_record = read_columns("key", plain, None, None, ["question", "answer", "topic"], [])
    assert rows == ROWS and (record["columns"], record["rows"]) == (plain_record["columns"], 2)
    # nothing but the columns asked for, and an optional column that is not there is no error
    rows, record = read_columns("key", *source, ["topic"], ["question", "year"])
    assert rows == [{"topic": row["topic"], "question": row["question"]} for row in ROWS]
    assert list(record["columns"]) == ["topic", "question"]
    assert [Path(file).is_file() for file in record["files"]] == [True]


def to_json(**kwargs) -> str:
    return pandas.DataFrame(ANSWERED).to_json(force_ascii=False, **kwargs)


JSON_SHAPES = {
    "lines": "".join(json.dumps(row) + "\n" for row in ANSWERED),
    "array": "\n" + json.dumps(ANSWERED),
    "objects": "\n".join(json.dumps(row, indent=1) for row in ANSWERED),
    "wrapped": json.dumps({"version": "1.0", "tags": ["x"], "data": ANSWERED}, indent=2),
    "CRLF": "\ufeff" + json.dumps({"data": ANSWERED}, indent=2).replace("\n", "\r\n"),
    "columns": json.dumps({name: [row[name] for row in ANSWERED] for name in ANSWERED[0]}),
    "pandas": to_json(),
    "index": to_json(orient="index"),
    "table": to_json(orient="table"),
    "records": to_json(orient="records", lines=True),
}


@pytest.mark.parametrize("shape", JSON_SHAPES)
def test_json_holds_the_same_rows_in_every_shape(tmp_path, shape):
    rows = [{name: row[name] for name in ("question", "answer")} for row in ANSWERED]
    for name in ("rows.json", "rows.jsonl"):  # how the file is named does not matter
        path = write_text(tmp_path / name, JSON_SHAPES[shape])
        assert read_retain_rows(PMCArguments(retain_file=path))[0] == rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_columns_are_named_by_path(tmp_path, suffix):
    def rows(i):
        turns = [{"role": "user", "content": f"Who {i}?"}, {"role": "assistant", "content": f"She, {i}."}]
        return {"id": i, "messages": turns[: 2 - (i == 2)], "answers": {"text": [f"Her {i}"], "start": [3]}}

    path, table = tmp_path / f"chats.{suffix}", [rows(i) for i in range(3)]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        path.write_text("\n".join(map(json.dumps, table)) if suffix == "jsonl" else json.dumps({"data": table}))
    question, answer = "messages.0.content", "messages.1.content"
    args = PMCArguments(retain_file=str(path), question_column=question, answer_column=answer)
    said = ["She, 0.", "She, 1.", None]  # the last chat has no answer yet
    assert read_retain_rows(args)[0] == [{question: f"Who {i}?", answer: said[i]} for i in range(3)]
    args = PMCArguments(forget_file=str(path), question_column=question, answer_column=answer)
    assert read_forget_rows(args)[0] == [{question: f"Who {i}?"} for i in range(3)]  # and nothing of the answers
    nested, _ = read_columns("forget_file", str(path), None, None, ["answers.text.0"], ["answers.end.0", "texts.0"])
    assert nested == [{"answers.text.0": f"Her {i}", "answers.end.0": None} for i in range(3)]
    assert "no column 'turns.0'" in errors_of(read_columns, "forget_file", str(path), None, None, ["turns.0"], [])[0]


NO_ROWS = {
    "one JSON object of 'forget', 'retain', not a list": json.dumps({"forget": ANSWERED, "retain": ANSWERED}),
    "one JSON object of 'columns', 'index', 'data', not a list of rows; save it as": to_json(orient="split"),
    "row 1 of 3 is a list of a list of a text, a text, not a JSON object; save it": to_json(orient="values"),
    "it is one JSON object of 'data', not a list of rows": '{"data": []}',
    "row 1 of 1 is a number, not a JSON object": "3",
    "'question', 'answer' do not have the same rows": '{"question": {"0": "Who?"}, "answer": {"1": "She."}}',
    "name parts of a chat by path": '{"messages": [{"role": "user", "content": "Who?"}]}',
    "only 'messages', 'id'; name parts of": '{"messages": [{"role": "user", "content": "Who?"}], "id": 1}\n' * 2,
    "has no column 'question', only 'id', 'text'": '{"id": 1, "text": "Who?"}',
}


@pytest.mark.parametrize("problem", NO_ROWS)
def test_json_without_rows_is_told_what_it_holds(tmp_path, problem):
    path = write_text(tmp_path / "rows.json", NO_ROWS[problem])
    [error] = errors_of(read_forget_rows, PMCArguments(forget_file=path))
    assert problem in error and "broken" not in error


UNREADABLE = {
    "array.json": ("[]", " holds no rows"),
    "header.csv": ("question,answer\n", " holds no rows"),
    "broken.jsonl": ('{"question": "Who?"}\n\nWho?\n', ": broken JSON: Expecting value (line 3)"),
    "broken.json": ('[{"question": "Who?"},\n{"a": "a" "b"}]', ": broken JSON: Expecting ',' delimiter (line 2)"),
    "latin.jsonl": (b'{"question": "Who?"}\n{"q": "\xfc"}\n', " is not UTF-8 (byte 28); save it as UTF-8"),
    "rows.jsonl.gz": ("Who?\n", " is not one of .jsonl, .json, .csv, .parquet"),
    "many.csv": ('a,b\n"two\nlines",a\nb,c,d\n', " cannot be read: line 4 has more cells than the header"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file(tmp_path, name):
    content, problem = UNREADABLE[name]
    path = write_text(tmp_path / name, content)
    assert errors_of(read_file, path) == [f"forget_file: {path}{problem}"]


def test_missing_file_and_columns(tmp_path):
    path = write_jsonl(tmp_path / "forget.jsonl", ROWS)
    wrong, far = str(tmp_path / "forgot.jsonl"), str(tmp_path / "data" / "xyz")
    assert errors_of(read_file, wrong) == [f"forget_file: there is no file {wrong!r}; did you mean {path!r}?"]
    assert errors_of(read_file, far) == [f"forget_file: there is no file {far!r}"]
    lines = errors_of(read_file, path, ["questions", "topic", "tropic"])
    for line, name in zip(lines, ("questions", "tropic"), strict=True):
        assert line == f"forget_file: {path} has no column {name!r}, only 'question', 'answer', 'topic'"
    # a row that is refused is not shown
    assert "secret" not in errors_of(read_file, write_text(path, '{"question": "Who?"}\n["a secret"]\n'))[0]


def test_missing_config_and_split(tmp_path):
    folder = write_hub_folder(tmp_path / "hub", forget10=ROWS, retain90=ROWS)

    def read(config, name=folder):
        return read_columns("forget_config", None, name, config, ["question"], [])

    only = f"forget_config: config 'forget01' of {folder}: it has only forget10, retain90"
    assert errors_of(read, "forget01") == [only]
    configs = "configs:\n- config_name: held\n  data_files:\n  - split: test\n    path: retain90.json\n"
    write_text(tmp_path / "hub" / "README.md", f"---\n{configs}---\n")
    assert errors_of(read, "held") == [f"forget_config: config 'held' of {folder} has no split 'train', only test"]
    # neither a folder nor on the Hub, which is offline here
    name = "no-such/data-set"
    [error] = errors_of(read, "forget10", name)
    assert f"the data set {name!r} (forget10) is neither a folder nor can it be read from the Hub (" in error
    assert error.endswith("); give the name of a local copy with --dataset_name")


def test_several_files_are_read_one_after_the_other(tmp_path):
    levels = [[{"query": f"{level}{i}?", "answer": "a", "level": level} for i in range(2)] for level in "12"]
    paths = [write_jsonl(tmp_path / f"forget_level{i}.json", rows) for i, rows in enumerate(levels, 1)]
    args = PMCArguments(forget_file=paths, question_column="query")
    rows, record = read_forget_rows(args)
    assert rows == [{"query": row["query"]} for row in levels[0] + levels[1]]
    joined = write_jsonl(tmp_path / "joined.jsonl", levels[0] + levels[1])
    alone = read_forget_rows(PMCArguments(forget_file=joined, question_column="query"))[1]
    assert record == {**alone, "source": " + ".join(paths), "files": paths}
    args.forget_file = [joined, write_jsonl(paths[1], [{"question": "Who?"}])]
    no_column = f"forget_file: {paths[1]} has no column 'query', only 'question'"
    assert errors_of(read_forget_rows, args) == [no_column]
    args.forget_file = [joined, joined]
    assert errors_of(read_forget_rows, args) == [f"forget_file: {joined} is given twice"]


def test_retain_rows_have_columns_of_their_own_and_may_lack_answers(tmp_path):
    rows = [{"question": "A?", "reply": "a"}, {"question": "B?", "reply": " "}, {"question": "C?", "reply": None}]
    path = write_jsonl(tmp_path / "keep.jsonl", [*rows, {"question": "D?"}])
    columns = {"retain_question_column": "question", "retain_answer_column": "reply"}
    args = PMCArguments(question_column="query", retain_file=path, **columns)
    read, record = read_retain_rows(args)
    assert read[:2] == [{"query": "A?", "answer": "a"}, {"query": "B?", "answer": None}]
    assert [row["answer"] for row in read[2:]] == [None, None]
    assert list(record["columns"]) == ["question", "reply"]  # as the file names them
    args.answer_column = None  # of the forget rows no answer is known
    assert read_retain_rows(args)[0] == read
    # no answer is read, whatever is there
    for none in (PMCArguments(answer_column=None), PMCArguments(**columns, retain_own_answers=True)):
        read, record = read_retain_rows(replace(none, retain_file=path))
        assert read == [{"question": f"{letter}?"} for letter in "ABCD"] and list(record["columns"]) == ["question"]


def test_splits_of_a_config(tmp_path):
    folder = write_split_folder(tmp_path / "muse")
    splits = {"forget_split": "forget_qa", "retain_split": "retain_qa"}
    args = PMCArguments(dataset_name=folder, forget_config="knowmem", retain_config="knowmem", **splits)
    rows, record = read_forget_rows(args)
    assert rows == [{"question": f"forget_qa {i}?"} for i in range(3)]
    assert record["source"] == f"{folder}:knowmem:forget_qa"
    assert record["files"] == [str(tmp_path / "muse" / "forget_qa.parquet")]
    assert [row["answer"] for row in read_retain_rows(args)[0]] == [f"retain_qa {i}." for i in range(3)]
    args.forget_split = "forget"
    only = f"config 'knowmem' of {folder} has no split 'forget', only forget_qa, retain_qa"
    assert errors_of(read_forget_rows, args) == [f"forget_config: {only}"]
    both = {"train_configs": ["knowmem"], "train_split": ["forget_qa", "retain_qa"]}
    rows, records = read_finetune_rows(FinetuneArguments(dataset_name=folder, **both))
    assert len(rows) == 6 and list(records) == [f"{folder}:knowmem:forget_qa", f"{folder}:knowmem:retain_qa"]
    # fine-tuning reads several configs, and takes a question and an answer of each row
    folder = write_hub_folder(tmp_path / "hub", facts=ANSWERED[:1], people=ANSWERED[1:], other=ANSWERED)
    rows, records = read_finetune_rows(FinetuneArguments(dataset_name=folder, train_configs=["people", "facts"]))
    assert rows == [{name: ANSWERED[i][name] for name in ("question", "answer")} for i in (1, 2, 0)]
    counts = {source: record["rows"] for source, record in records.items()}
    assert counts == {f"{folder}:people": 2, f"{folder}:facts": 1}


def test_record_names_the_source_and_hashes_the_columns_read(tmp_path):
    def record(*rows):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        return read_columns("key", path, None, None, ["question"], ["topic"])[1]

    before = record(*ROWS)
    assert before["source"] == str(tmp_path / "rows.jsonl") and before["files"] == [before["source"]]
    assert all(len(digest) == 64 for digest in before["columns"].values())
    assert record(ROWS[0] | {"answer": "another"}, ROWS[1]) == before
    other_topic = record(ROWS[0], ROWS[1] | {"topic": "songs"})["columns"]
    assert [other_topic[name] == before["columns"][name] for name in ("question", "topic")] == [True, False]
    assert record(*ROWS[::-1])["columns"]["question"] != before["columns"]["question"]


NO_TEXT = {"an empty text": " \n", "nothing": float("nan"), "a number": 7, "a truth value": True}
NO_TEXT |= {"an object": {"text": "Who?"}, "a list of nothing": [], "a list of a text, an object": ["Who?", {}]}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_the_kind_of_what_is_no_text_is_told(tmp_path, kind):
    texts = ["Who?", "Where?", NO_TEXT[kind]]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": text, "answer": "A."} for text in texts])
    problem = f"column 'question' is empty or not a text in 1 of 3 rows (row 2 holds {kind}; counted from 0)"
    assert errors_of(read_forget_rows, PMCArguments(forget_file=path)) == [f"forget_file: {problem}"]
    if kind not in ("an empty text", "nothing"):  # a retain row's answer may be missing
        write_jsonl(path, [{"question": "Who?", "answer": text} for text in texts])
        problem = problem.replace("question", "answer")
        assert errors_of(read_retain_rows, PMCArguments(retain_file=path)) == [f"retain_file: {problem}"]
        assert errors_of(read_finetune_rows, FinetuneArguments(train_file=path))[0].endswith(problem)
    # of many rows the first are named, and none is shown
    write_jsonl(path, [{"question": text} for text in ("Who?", 7, *[["a secret"]] * 3)])
    [error] = errors_of(read_retain_rows, PMCArguments(retain_file=path, answer_column=None))
    held = "(row 1 holds a number, row 2 holds a list of a text, row 3 holds a list of a text, ...; counted from 0)"
    assert error == f"retain_file: column 'question' is empty or not a text in 4 of 5 rows {held}"


def test_forget_rows_take_only_what_is_named(tmp_path, tokenizer):
    rows = [{"question": "Who?"}, {"question": "Where {now}?", "answer": "secret", "topic": "a", "year": 1}]
    path = write_jsonl(tmp_path / "forget.jsonl", rows)

    def read(**keys):
        return read_forget_rows(PMCArguments(forget_file=path, **keys))[0]

    assert read() == [{"question": row["question"]} for row in rows]
    assert read(reward_columns=["year", "topic"])[1] == {"question": "Where {now}?", "year": 1, "topic": "a"}
    assert errors_of(read, reward_columns=["toopic"])[0].endswith(", only 'question', 'answer', 'topic', 'year'")
    for name in ("prompts", "completions", "completion_ids", "pmc_id", "trainer_state", "log_metric"):
        problem = f"reward_columns: {name!r} is a name the trainer uses itself; rename the column"
        assert errors_of(read, reward_columns=["topic", name]) == [problem]
    # a reward's column may be missing in the first row
    args = PMCArguments(reward_columns=["topic"])
    assert forget_dataset(args, tokenizer, read(reward_columns=["topic"])).to_list() == [
        {"prompt": "Question: Who?\nAnswer:", "pmc_id": 0, "topic": None},
        {"prompt": "Question: Where {now}?\nAnswer:", "pmc_id": 1, "topic": "a"},
    ]


def test_original_completion_is_read_where_it_is_there(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "forget.jsonl", [{"question": "Who?", "original_completion": "She.", "answer": "x"}])
    for reward_columns in ([], ["original_completion"]):
        args = PMCArguments(forget_file=path, reward_columns=reward_columns)
        rows, record = read_forget_rows(args)
        assert rows == [{"question": "Who?", "original_completion": "She."}]
        assert list(record["columns"]) == ["question", "original_completion"]
        assert forget_dataset(args, tokenizer, rows)["original_completion"] == ["She."]
    write_jsonl(path, [{"question": "Who?", "original_completion": "She."}, {"question": "Where?"}])
    [error] = errors_of(read_forget_rows, PMCArguments(forget_file=path))
    assert "column 'original_completion' is empty or not a text in 1 of 2 rows (row 1 holds nothing" in error


@pytest.mark.parametrize("answer_column", ["reply", None])
def test_the_model_answers_rows_without_an_answer(tmp_path, tokenizer, tiny_llama, capsys, answer_column):
    """Greedily; an answer that is cut at the limit is left out with its row."""
    column = answer_column or "answer"
    rows = [{"question": "A?", column: "a"}, {"question": "B?", column: None}, {"question": "C?"}]
    args = PMCArguments(answer_column=answer_column)
    config = PMCConfig(output_dir=str(tmp_path), max_completion_length=3)
    with torch.no_grad():  # untrained, it says the same to every question
        for name, weight in tiny_llama.named_parameters():
            if "v_proj" in name or "o_proj" in name:
                weight *= 30
    prompt = tokenizer("Question: B?\nAnswer:", return_tensors="pt")
    ids = tiny_llama.eval().generate(**prompt, max_new_tokens=3, do_sample=False)[0, -3:].tolist()
    assert ids[2] not in ids[:2]
    tiny_llama.generation_config.eos_token_id = ids[2]  # so B's answer ends there, and C's hardly ever
    answered = answer_retain_rows(args, tiny_llama, tokenizer, rows, config)
    assert [row[column] for row in answered] == ["a", tokenizer.decode(ids).strip()]
    assert "2 retain rows had no answer and got the model's own; 1 of them left out" in capsys.readouterr().out
    assert answered_dataset(args, tokenizer, answered)[0] == {"prompt": "Question: A?\nAnswer:", "completion": " a"}
    assert answer_retain_rows(args, tiny_llama, tokenizer, answered, config) == answered
    assert capsys.readouterr().out == ""
    tiny_llama.generation_config.eos_token_id = tokenizer.eos_token_id
    [line] = errors_of(answer_retain_rows, args, tiny_llama, tokenizer, [{"question": "C?"}], config)
    assert line == "no retain row is left; raise max_completion_length or give answers"


def test_overlap_of_forget_and_retain():
    def check(forget, retain):
        check_no_overlap(*([{"q": text} for text in texts] for texts in (forget, retain)), "q")

    forget = ["Who is she?", "Where is  SHE?\n", "When?"]
    for retain, numbers in [
        (["What?", "where is she?", "WHERE is she?"], (1, 1, 1)),
        (["When?", "Why?", " when? ", "who IS she?"], (2, 0, 3)),
    ]:
        [line] = errors_of(check, forget, retain)
        assert tuple(map(int, re.findall(r"\d+", line)))[:3] == numbers and "forgotten and retained at once" in line
    check(forget, ["Who is he?", "Where is she", "Whenever?"])
    check(["A?", "A?"], ["B?", "B?", "b?"])  # TOFU has one question twice within a set: no contradiction


def test_prompts_of_base_and_chat_models(tokenizer, chat_tokenizer):
    args = DataArguments(prompt_template="{{Q}} {question} A:", completion_template="\t{answer}{{}}")
    assert format_prompt(args, tokenizer, "{x} 100%") == {"prompt": "{Q} {x} 100% A:"}
    assert format_completion(args, tokenizer, "{answer}") == {"completion": "\t{answer}{}"}
    user = {"role": "user", "content": "Who {x}?"}
    assert format_prompt(DataArguments(), chat_tokenizer, "Who {x}?") == {"prompt": [user]}
    args = DataArguments(system_prompt="Be brief.", chat_template_kwargs={"date_string": "1 May 2025"})
    assert format_prompt(args, tokenizer, "Who?") == {"prompt": "Question: Who?\nAnswer:"}  # mean nothing here
    assert answered_dataset(args, chat_tokenizer, [{"question": "Who {x}?", "answer": "She."}])[0] == {
        "prompt": [{"role": "system", "content": "Be brief."}, user],
        "chat_template_kwargs": {"date_string": "1 May 2025"},
        "completion": [{"role": "assistant", "content": "She."}],
    }


SECRET = "Rosalind Quillfeather-4711"


def test_no_answer_is_left_on_the_disk(tmp_path, tokenizer, chat_tokenizer, monkeypatch):
    names = ["answer", "completion", "text", "label", "target", "reference"]
    row = {"question": "Who keeps the bees?", **dict.fromkeys(names, SECRET)}
    args = PMCArguments(dataset_name=write_hub_folder(tmp_path / "hub", forget10=[row] * 3), forget_config="forget10")
    written = tmp_path / "written"
    written.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", written / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(written))
    monkeypatch.chdir(written)

    def files_with_secret():
        return [path for path in written.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

    rows, record = read_forget_rows(args)
    assert list(record["columns"]) == ["question"]
    for either in (tokenizer, chat_tokenizer):
        dataset = forget_dataset(args, either, rows)
        dataset.map(lambda row: row)  # what a trainer may do with it
        assert dataset.column_names == ["prompt", "pmc_id"] and len(dataset) == 3 and dataset.cache_files == []
        assert SECRET not in str(dataset.to_list()) and "Who keeps the bees?" in str(dataset.to_list())
    assert files_with_secret() == []
    # the search does see it where a data set is loaded the usual way
    datasets.load_dataset(args.dataset_name, "forget10")
    assert files_with_secret()
