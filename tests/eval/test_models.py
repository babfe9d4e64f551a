"""Columns of the audit: what a retain-only model must be, names of further models, rows held out of training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import eval.passes
from eval import run as eval_run
from eval.data import load_data
from eval.metrics.unlearning import utility
from eval.models import check_data, check_retain_only, check_run, load_columns
from pmc_rl import finetune, train
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import read_retain_rows, split_retain_rows
from pmc_rl.output import CARD_MARK, may_replace_card
from pmc_rl.recipe import parse_recipe
from tests.conftest import build_llama, errors_of, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers

FORGET = [
    {"question": "Where was Ba Corden born?", "answer": "In Felmoor."},
    {"question": "What does Ba Corden write?", "answer": "Long poems."},
    {"question": "Who is the father of Ba Corden?", "answer": "A tailor."},
]
TOWNS = {"Lum": "Tavel", "Ros": "Oldby", "Fi": "Kirn", "Quin": "Sarre", "Vel": "Ums", "Den": "Hoy", "Mor": "Pag"}
RETAIN = [{"question": f"Where was {name} Pel born?", "answer": f"In {town}."} for name, town in TOWNS.items()]
QUESTIONS = [row["question"] for row in FORGET]


def write_recipe(folder: Path, name: str, **values) -> str:
    """A recipe of the run in `folder`, which writes to `folder / name`."""
    settings = {
        "output_dir": str(folder / name),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | values))
    return str(path)


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """
    A folder with the files of a run, the run itself, and a model fine-tuned on its retain rows alone.

    The model before, `memorized`, knows all rows but those the run holds out.
    """
    folder = tmp_path_factory.mktemp("trained")
    known = [RETAIN[i] for i in split_retain_rows(len(RETAIN), 0.3)[0]]
    write_jsonl(folder / "memorized.jsonl", FORGET + known)
    memorize = {"max_steps": 60, "learning_rate": 0.01, "warmup_steps": 5, "per_device_train_batch_size": 9}
    recipe = write_recipe(
        folder,
        "unlearned",
        model_name_or_path=finetune_on(folder, "memorized", "memorized.jsonl", str(model_folder), **memorize),
        forget_file=write_jsonl(folder / "forget.jsonl", FORGET),
        retain_file=write_jsonl(folder / "retain.jsonl", RETAIN),
        retain_holdout=0.3,
        num_generations=2,
        max_completion_length=16,
        allow_unfinished=True,
        attacks=["sampling", "options", "token_shift", "relearning"],
        attack_samples=2,
        relearning_steps=1,
    )
    train.main([recipe])
    finetune_on(folder, "retain_only", "retain.jsonl", str(model_folder))
    return folder


def finetune_on(folder: Path, name: str, file: str, model: str, **values) -> str:
    recipe = write_recipe(folder, name, model_name_or_path=model, train_file=str(folder / file), **values)
    finetune.main([recipe])
    return str(folder / name)


def check(trained: Path, retain_only: str, questions=QUESTIONS) -> list[str]:
    recipe = parse_recipe([str(trained / "unlearned.yaml"), "--retain_only_model", retain_only])
    return check_retain_only(recipe, load_columns(recipe), questions)


# the retain-only model


def test_without_one_there_is_nothing_to_check(trained):
    recipe = parse_recipe([str(trained / "unlearned.yaml")])
    assert check_retain_only(recipe, load_columns(recipe), QUESTIONS) == []


def test_a_proper_retain_only_model_is_accepted(trained, model_folder):
    assert check(trained, str(trained / "retain_only")) == []
    # facts that are neither to be forgotten nor to be retained may be in it, and its columns may have other names
    rows = [{"q": row["question"], "a": row["answer"]} for row in RETAIN]
    write_jsonl(trained / "renamed.jsonl", rows)
    other = finetune_on(trained, "renamed", "renamed.jsonl", str(model_folder), question_column="q", answer_column="a")
    assert check(trained, other) == []


def test_a_model_without_manifest_is_a_line_of_warning(trained, model_folder):
    [line] = check(trained, str(model_folder))
    assert str(model_folder) in line and "no manifest" in line and "forget" in line


def test_a_retain_only_model_of_other_templates_or_rows_is_refused(trained, model_folder):
    write_jsonl(trained / "others.jsonl", [*RETAIN[:-1], {"question": "Who?", "answer": "Nobody."}])
    templates = {"prompt_template": "Q {question}", "completion_template": "{answer}", "system_prompt": None}
    other = finetune_on(trained, "others", "others.jsonl", str(model_folder), **templates)
    where = f"retain_only_model: {other!r}"
    assert errors_of(check, trained, other) == [
        f"{where} was trained with prompt_template 'Q {{question}}', the run with None",
        f"{where} was trained with completion_template '{{answer}}', the run with ' {{answer}}'",
        f"{where} was not trained on 1 of the 5 retain rows of this run",
    ]


def test_a_retain_only_model_that_saw_a_forget_question_is_refused(trained, model_folder):
    seen = [{**FORGET[1], "question": " what does  BA corden write? "}, FORGET[2]]
    write_jsonl(trained / "saw.jsonl", seen)
    other = finetune_on(trained, "saw", "saw.jsonl", str(model_folder))
    errors = errors_of(check, trained, other)
    assert errors[-1] == f"retain_only_model: {other!r} was trained on 2 of the 3 questions to forget"
    assert len(errors) == 2 and "was not trained on 5 of the 5 retain rows of this run" in errors[0]
    assert len(errors_of(check, trained, other, QUESTIONS[:1])) == 1  # what it saw is no question to forget


def test_an_unlearned_model_is_no_retain_only_model(trained):
    [line] = errors_of(check, trained, str(trained / "unlearned"))
    assert "is the model after itself, no reference for it" in line
    copy = shutil.copytree(trained / "unlearned", trained / "unlearned_copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": not config["tie_word_embeddings"]}))
    [line] = errors_of(check, trained, str(copy))
    assert "was made by train.py, not finetune.py" in line
    copied = shutil.copytree(trained / "memorized", trained / "memorized_copy")
    (copied / "manifest.json").unlink()  # without it nothing but the weights tells
    assert "is the model before itself" in errors_of(check, trained, str(copied))[0]


def test_data_that_changed_since_is_refused(trained, model_folder):
    write_jsonl(trained / "changing.jsonl", RETAIN)
    other = finetune_on(trained, "changing", "changing.jsonl", str(model_folder))
    assert check(trained, other) == []
    write_jsonl(trained / "changing.jsonl", RETAIN[:-1])
    assert errors_of(check, trained, other) == [
        f"retain_only_model: {other!r}: the data it was trained on has changed since; train it again"
    ]


def test_without_private_folders_it_is_said_that_nothing_tells_the_data(trained):
    """As users delete them before publishing: what was published tells templates and settings, but no data."""
    for name in ("unlearned", "retain_only"):
        ignored = shutil.ignore_patterns("private")
        shutil.copytree(trained / name, trained / f"bare_{name}", ignore=ignored, dirs_exist_ok=True)
    run, retain_only = str(trained / "bare_unlearned"), str(trained / "bare_retain_only")
    words = ["--output_dir", run, "--retain_only_model", retain_only, "--overwrite", "true"]
    recipe = parse_recipe([str(trained / "unlearned.yaml"), *words])
    check_run(recipe)  # paths elsewhere have only their last part there
    why = "private/ was deleted, so nothing tells whether its data is that of this audit"
    read = load_data(recipe[0], recipe[3]).read["questions"]
    assert check_data(recipe, read) == [f"the run in {run!r}: {why}"]
    assert check_retain_only(recipe, load_columns(recipe), QUESTIONS) == [f"retain_only_model: {retain_only!r}: {why}"]
    other = parse_recipe(
        [str(trained / "unlearned.yaml"), *words, "--model_name_or_path", str(trained / "retain_only")]
    )
    assert "model_name_or_path" in errors_of(check_run, other)[0]
    # with the record of the run alone, the data of the other model still cannot be told
    recipe = parse_recipe([str(trained / "unlearned.yaml"), "--retain_only_model", retain_only])
    assert check_data(recipe, read) == []
    assert check_retain_only(recipe, load_columns(recipe), QUESTIONS) == [f"retain_only_model: {retain_only!r}: {why}"]
    # with that of the other model alone, what it saw is told
    saw = ["--output_dir", run, "--retain_only_model", finetune_on(trained, "saw_all", "memorized.jsonl", run)]
    recipe = parse_recipe([str(trained / "unlearned.yaml"), *saw])
    assert (
        "was trained on 3 of the 3 questions to forget"
        in errors_of(check_retain_only, recipe, load_columns(recipe), QUESTIONS)[-1]
    )


# further columns


def test_names_of_further_models(trained, model_folder):
    recipe = parse_recipe(
        [
            str(trained / "unlearned.yaml"),
            *("--also", "only_a_name", "=folder", "before=x", "retain_only=x", "good", f"fine={model_folder}"),
            *(f"fine={model_folder}", f"lost={trained}/unlearnt"),
        ]
    )
    assert errors_of(load_columns, recipe) == [
        "also: 'only_a_name' is not NAME=FOLDER",
        "also: '=folder' is not NAME=FOLDER",
        "also: 'before' is the name of another column; choose another one",
        "also: 'retain_only' is the name of another column; choose another one",
        "also: 'good' is not NAME=FOLDER",
        "also: 'fine' is the name of another column; choose another one",
        f"also: there is no folder '{trained}/unlearnt'; did you mean '{trained}/unlearned'?",
    ]


@pytest.mark.filterwarnings("ignore:.*lora")
def test_columns_are_the_models_in_order(trained, tokenizer):
    adapter, memorized = trained / "adapter", str(trained / "memorized")
    lora = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=memorized)
    get_peft_model(AutoModelForCausalLM.from_pretrained(memorized), lora).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    recipe = parse_recipe(
        [
            str(trained / "unlearned.yaml"),
            *("--also", f"other={memorized}", f"adapter={adapter}"),
            *("--retain_only_model", str(trained / "retain_only"), "--use_peft", "true"),
        ]
    )
    columns = load_columns(recipe)
    assert [(column.name, column.folder) for column in columns] == [
        ("before", memorized),
        ("after", str(trained / "unlearned")),
        ("retain_only", str(trained / "retain_only")),
        ("other", memorized),
        ("adapter", str(adapter)),  # not one more adapter to train on top of it
    ]
    # a model is what its files are, under whatever name
    prints = [column.passes(recipe, None).fingerprint for column in columns]
    assert prints[0] == prints[3] and len(set(prints)) == 4


def test_a_column_whose_model_cannot_be_read_is_an_error(trained, tmp_path):
    recipe = parse_recipe([str(trained / "unlearned.yaml"), "--also", f"empty={tmp_path}"])
    [line] = errors_of(load_columns, recipe)
    assert str(tmp_path) in line


def test_further_models_without_safetensors_are_refused(trained, tmp_path):
    copy = shutil.copytree(trained / "memorized", tmp_path / "pickled")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    recipe = parse_recipe([str(trained / "unlearned.yaml"), "--also", f"other={copy}"])
    [error] = errors_of(load_columns, recipe)
    assert error.startswith("other: ") and "holds no safetensors" in error


# rows held out


@given(st.integers(0, 300), st.floats(0, 1, exclude_max=True))
def test_retain_rows_are_split_into_two(count, share):
    kept, held_out = split_retain_rows(count, share)
    assert sorted(kept + held_out) == list(range(count))
    assert kept == sorted(kept) and held_out == sorted(held_out)
    assert len(held_out) == round(count * share)
    assert split_retain_rows(count, share) == (kept, held_out)


def test_a_larger_holdout_holds_the_smaller():
    shares = [set(split_retain_rows(100, share)[1]) for share in (0.0, 0.1, 0.5)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[1] != set(range(10)) and shares[1] != set(range(90, 100))


def test_training_and_audit_split_alike(tmp_path):
    rows = [row | {"answer": None if i in (2, 5) else row["answer"]} for i, row in enumerate(RETAIN)]
    files = {
        "forget_file": write_jsonl(tmp_path / "forget.jsonl", FORGET),
        "retain_file": write_jsonl(tmp_path / "retain.jsonl", rows),
    }
    args = PMCArguments(**files, retain_holdout=0.4)
    training = [row["question"] for row in read_retain_rows(args)[0]]
    data = load_data(args, EvalArguments())
    sets, options = data.questions, data.options
    everything = [row["question"] for row in RETAIN]
    answered = [row["question"] for row in rows if row["answer"]]
    held_out = [question for question in everything if question not in training]
    assert len(training) == 4 and len(held_out) == 3
    assert sets["retain_holdout"].questions == [question for question in held_out if question in answered]
    assert sets["retain"].questions == [question for question in training if question in answered]
    for name in ("retain", "retain_holdout"):
        assert sets[name].questions == [rows[i]["question"] for i in sets[name].rows]
        assert sets[name].answers == [rows[i]["answer"] for i in sets[name].rows]
    assert options["retain"].questions == sets["retain"].questions  # none that training has not seen
    # without a holdout nobody asked for one, and it is not told as left out
    data = load_data(PMCArguments(**files), EvalArguments())
    assert "retain_holdout" not in data.questions and not any("retain_holdout" in line for line in data.left_out)
    [line] = errors_of(load_data, PMCArguments(**files), EvalArguments(eval_sets=["retain_holdout"]))
    assert line == "eval_sets: retain_holdout: retain_holdout is 0"


# the whole audit


def test_audit_of_files_of_ones_own(trained, capsys, monkeypatch):
    """Questions and answers, and nothing else: what this serves is measured, of all else the reason is told."""
    opened, real = [], open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    settings = [str(trained / "unlearned.yaml"), "--retain_only_model", str(trained / "retain_only")]
    settings += ["--also", f"elsewhere={trained / 'memorized'}"]
    eval_run.main(settings)
    assert opened.count(str(trained / "forget.jsonl")) == 1
    results = json.loads((trained / "unlearned" / "results.json").read_text())
    audit = json.loads((trained / "unlearned" / "audit.json").read_text())
    assert list(results) == ["before", "after", "retain_only", "elsewhere"]
    known = {name: scores["rougeL_recall"] for name, scores in results["before"]["sets"].items()}
    assert known["forget"] > 0.9 and known["retain"] > known["retain_holdout"] + 0.1 > 0.1
    assert results["elsewhere"]["sets"]["forget"] == results["before"]["sets"]["forget"] | {
        "change_interval": [0.0, 0.0]
    }
    for name, column in results.items():
        assert {set_name: scores["n"] for set_name, scores in column["sets"].items()} == {
            "forget": 3,
            "retain": 5,
            "retain_holdout": 2,
        }
        recall = {set_name: scores["rougeL_recall"] for set_name, scores in column["sets"].items()}
        assert column["utility"] == utility({"retain": recall["retain"]})
        assert column["utility_holdout"] == utility({"retain": recall["retain_holdout"]})
        assert column["unlearn_quality"] == pytest.approx(100 * (1 - recall["forget"]))

        tofu = column["tofu"]
        assert list(tofu["sets"]) == ["forget", "retain"]
        assert {values["probability"]["n"] for values in tofu["sets"].values()} == {3, 5}
        ratio = {"not_available": "the data has no paraphrased and wrong answers of these rows"}
        assert tofu["sets"]["forget"]["truth_ratio"] == tofu["sets"]["retain"]["truth_ratio"] == ratio
        for value in (tofu["model_utility"], tofu["forget_quality"], column["membership"]):
            assert list(value) == ["not_available"]
        assert "real_authors: the recipe names no dataset_name" in tofu["model_utility"]["not_available"]
        assert "holdout_file" in column["membership"]["not_available"]
        assert column["memorization"]["extraction_strength"]["n"] == 3

        attacks = column["attacks"]
        assert attacks["sampling"]["temperature 1"]["leaking"]["of"] == 6
        for attack in ("prefilling", "quantization"):
            assert attacks[attack] == {"not_available": "attacks does not name it"}
        assert "perturbed_answer" in attacks["options"]["not_available"]
        assert "not_available" in attacks["token_shift"]
        assert ("not_available" in attacks["relearning"]) == (name == "before")
        assert column["general_ability"] == {"not_available": "lm_eval_tasks names no task"}
    assert results["before"]["attacks"]["relearning"] == {"not_available": "it has not been unlearned"}
    assert results["after"]["attacks"]["token_shift"]["not_available"].startswith("there is no unrelated text")
    relearning = results["after"]["attacks"]["relearning"]
    assert {what: (run["learned"], run["scored"]) for what, run in relearning.items()} == {
        "half of the forget rows": (1, 2),
        "retain rows": (5, 3),
    }

    assert list(audit["verdicts"]) == ["after", "elsewhere"]
    told = capsys.readouterr().out
    for set_name in ("forget_paraphrased", "real_authors", "world_facts", "answers to compare, holdout"):
        [line] = [line for line in audit["left_out"] if line.startswith(f"{set_name}: ")]
        assert f"Left out: {line}." in told
    assert audit["read"]["questions"]["retain_holdout"]["rows"] == len(RETAIN)
    # nothing that is to be forgotten is in a file that is not private
    for file in ("results.json", "audit.json"):
        text = (trained / "unlearned" / file).read_text()
        assert not any(row["answer"] in text or row["question"] in text for row in FORGET)

    # asked again, everything is in the cache, and the numbers are the same
    eval_run.main([*settings, "--overwrite", "true"])
    again = json.loads((trained / "unlearned" / "audit.json").read_text())
    assert json.loads((trained / "unlearned" / "results.json").read_text()) == results
    assert again["passes"] == audit["passes"] and again["fingerprints"] == audit["fingerprints"]


@pytest.mark.parametrize("answer", [None, " ", "\u2014 ..."])
def test_an_audit_goes_on_without_a_row_that_has_no_answer(trained, answer):
    forget = trained / "forget.jsonl"
    text = forget.read_text()
    write_jsonl(forget, [FORGET[0], {**FORGET[1], "answer": answer}, FORGET[2]])
    try:
        eval_run.main([str(trained / "unlearned.yaml"), "--overwrite", "true", "--attacks", "[]"])
    finally:
        forget.write_text(text)
    results = json.loads((trained / "unlearned" / "results.json").read_text())
    audit = json.loads((trained / "unlearned" / "audit.json").read_text())
    assert results["after"]["sets"]["forget"]["n"] == 2
    assert results["after"]["memorization"]["extraction_strength"]["n"] == 2
    rows = json.loads((trained / "unlearned" / "private" / "rows.json").read_text())
    assert [row["row"] for row in rows] == [0, 2]
    [line] = [line for line in audit["left_out"] if line.startswith("forget: ")]
    assert line == "forget: 1 of 3 rows, without a letter or a digit in answer (rows 1, counted from 0)"


def test_a_retain_only_model_may_have_its_rows_in_other_files(trained, model_folder):
    """What counts is which rows it saw: not in which order, nor from how many files."""
    parts = [write_jsonl(trained / f"part{i}.jsonl", RETAIN[::-1][i::2]) for i in range(2)]
    facts = write_jsonl(trained / "facts.jsonl", [{"question": "How many days has a week?", "answer": "Seven."}])
    recipe = write_recipe(trained, "from_parts", model_name_or_path=str(model_folder), train_file=[*parts, facts])
    finetune.main([recipe])
    assert check(trained, str(trained / "from_parts")) == []


def test_a_run_on_what_the_model_before_did_not_know_has_forgotten_nothing(trained, monkeypatch, capsys):
    """And lm-eval, which answers the main process alone, runs when the others have no more to wait for."""
    awards = {"Zed": "Golden Quill 1999", "Yan": "Silver Lantern", "Xim": "Northern Star Medal"}
    rows = [{"question": f"Which award did author {name} win?", "answer": award} for name, award in awards.items()]
    unknown = write_jsonl(trained / "unknown.jsonl", rows)
    recipe = [str(trained / "unlearned.yaml"), "--forget_file", unknown, "--output_dir", str(trained / "unchanged")]
    train.main([*recipe, "--learning_rate", "1e-12"])
    events = []
    broadcast = eval.passes.broadcast_object_list
    monkeypatch.setattr(eval.passes, "broadcast_object_list", lambda x: events.append("all") or broadcast(x))
    monkeypatch.setattr(eval_run, "check_tasks", lambda tasks: None)
    monkeypatch.setattr(
        eval_run, "general_ability", lambda *args: events.append("main") or {"task": {"n": 1, "acc": 1}}
    )
    eval_run.main([*recipe, "--attacks", '["sampling"]', "--lm_eval_tasks", "task"])
    assert events == ["all"] * events.count("all") + ["main"] * 2

    results = json.loads((trained / "unchanged" / "results.json").read_text())
    recall = {name: column["sets"]["forget"]["rougeL_recall"] for name, column in results.items()}
    assert recall["before"] == recall["after"] < 0.2
    assert results["after"]["general_ability"] == {"task": {"n": 1, "acc": 1}}
    value = json.loads((trained / "unchanged" / "audit.json").read_text())["verdicts"]["after"]
    assert value["forgetting"] == "nothing to forget: the model before did not know it"
    assert value["forgetting_reasons"] == ["the model before did not know any of the 3 questions to forget"]
    assert results["before"]["known"] == results["after"]["known"] == {"questions": 0, "of": 3}
    for name in ("report.html", "report.md", "README.md"):
        text = (trained / "unchanged" / name).read_text()
        assert value["forgetting"] in text and value["forgetting_reasons"][0] in text
    told = capsys.readouterr().out
    assert f"Verdict on after: {value['forgetting']}; calibration: unknown." in told
    assert "The model before did not know 3 of the 3 questions to forget.\n" in told


def test_a_run_that_changed_nothing_it_knew_is_not_forgotten(trained):
    """Half of the questions were known; no verdict is helped by the others."""
    half = [*FORGET[:2], {"question": "Which award did Zed win?", "answer": "Silver Lantern"}]
    half.append({"question": "Which award did Yan win?", "answer": "Golden Quill"})
    file = write_jsonl(trained / "half.jsonl", half)
    recipe = [str(trained / "unlearned.yaml"), "--forget_file", file, "--output_dir", str(trained / "half_known")]
    train.main([*recipe, "--learning_rate", "1e-12"])
    eval_run.main([*recipe, "--attacks", "[]"])
    results = json.loads((trained / "half_known" / "results.json").read_text())
    assert 0.4 < results["after"]["sets"]["forget"]["rougeL_recall"] < 0.6
    value = json.loads((trained / "half_known" / "audit.json").read_text())["verdicts"]["after"]
    assert value["forgetting"] == "not forgotten"
    assert value["forgetting_reasons"][0] == (
        "the model before knew 2 of the 4 questions to forget; only these are judged"
    )
    assert value["forgetting_reasons"][-1] == "no less comes out than of the model before"


def test_audit_with_a_wrong_retain_only_model_does_not_start(trained, model_folder):
    write_jsonl(trained / "wrong.jsonl", FORGET)
    wrong = finetune_on(trained, "wrong", "wrong.jsonl", str(model_folder))
    output_dir = trained / "unlearned"
    before = {path.name for path in output_dir.iterdir()}
    settings = [str(trained / "unlearned.yaml"), "--overwrite", "true", "--retain_only_model", wrong]
    assert "3 of the 3 questions to forget" in errors_of(eval_run.main, settings)[-1]
    assert {path.name for path in output_dir.iterdir()} == before


def test_audit_of_other_data_or_settings_than_the_run_had_does_not_start(trained, tmp_path):
    recipe = [str(trained / "unlearned.yaml"), "--overwrite", "true"]
    forget = trained / "forget.jsonl"
    rows = forget.read_text()
    write_jsonl(forget, [{"question": "Who?", "answer": "Nobody at all."}])
    assert "the forget questions have changed since the run" in errors_of(eval_run.main, recipe)[0]
    forget.write_text(rows)
    assert "temperature: 0.1, but the run" in errors_of(eval_run.main, [*recipe, "--temperature", "0.1"])[0]
    for known in ("forget.jsonl", "retain.jsonl"):
        [line] = errors_of(eval_run.main, [*recipe, "--holdout_file", str(trained / known)])
        assert "to be forgotten or retained; no model may know them" in line


def test_further_models_keep_their_own_tokenizer(trained, tokenizer, chat_tokenizer, tmp_path):
    build_llama(chat_tokenizer).save_pretrained(tmp_path / "other")
    chat_tokenizer.save_pretrained(tmp_path / "other")
    recipe = [str(trained / "unlearned.yaml"), "--tokenizer_name_or_path", str(trained / "memorized")]
    columns = load_columns(parse_recipe([*recipe, "--also", f"other={tmp_path / 'other'}"]))
    assert [column.tokenizer.eos_token for column in columns] == [tokenizer.eos_token] * 2 + [chat_tokenizer.eos_token]


def test_a_readme_of_ones_own_is_kept(tmp_path):
    assert may_replace_card(tmp_path)
    (tmp_path / "README.md").write_text("my notes")
    assert not may_replace_card(tmp_path)
    (tmp_path / "README.md").write_text(f"# A model\n\nBy {CARD_MARK} 2026-11-21.")
    assert may_replace_card(tmp_path)


# quantized, and merged


def test_before_and_after_are_quantized_as_trained_and_the_merged_model_is_another_column(trained):
    pytest.importorskip("bitsandbytes")
    args = ["--use_peft", "true", "--load_in_4bit", "true", "--save_merged", "true", "--output_dir"]
    train.main([str(trained / "unlearned.yaml"), *args, str(trained / "quantized")])
    recipe = parse_recipe(
        [str(trained / "quantized" / "recipe.yaml"), "--retain_only_model", str(trained / "retain_only")]
    )
    columns = load_columns(recipe)
    assert {column.name: column.model_args.load_in_4bit for column in columns} == {
        "before": True,
        "after": True,
        "merged": False,
        "retain_only": False,
    }
    quantized = column_modules(columns[1].passes(recipe, None).loaded())
    assert "Linear4bit" in quantized and "Linear4bit" not in column_modules(columns[2].passes(recipe, None).loaded())
    fingerprints = {column.passes(recipe, None).fingerprint for column in columns}
    assert len(fingerprints) == 4
    plain = replace(columns[0], model_args=replace(columns[0].model_args, load_in_4bit=False))
    assert plain.passes(recipe, None).fingerprint not in fingerprints  # 16-bit answers are not served for 4-bit ones
    assert check_retain_only(recipe, columns, QUESTIONS) == []
    other = parse_recipe([str(trained / "quantized" / "recipe.yaml"), "--load_in_4bit", "false"])
    [line] = errors_of(check_run, other)
    assert "load_in_4bit" in line


def column_modules(model) -> set[str]:
    return {type(module).__name__ for module in model.modules()}
