"""Models of the audit: what a retain-only model must be, names of further models, rows held out, whole audits."""

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
from eval.attacks.run import ATTACKS
from eval.data import load_data
from eval.metrics.unlearning import utility
from eval.models import check_data, check_retain_only, check_run, load_columns
from pmc_rl import finetune, train
from pmc_rl.config import EvalArguments, FinetuneArguments, PMCArguments
from pmc_rl.data import read_finetune_rows, read_retain_rows, split_retain_rows
from pmc_rl.errors import RecipeError
from pmc_rl.output import CARD_MARK, may_replace_card, private_record, published_recipe, write_private
from pmc_rl.recipe import parse_recipe
from tests.conftest import build_llama, errors_of, write_jsonl
from tests.training import save_model, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers

FORGET = [
    {"question": "Where was Ba Corden born?", "answer": "In Felmoor."},
    {"question": "What does Ba Corden write?", "answer": "Long poems."},
    {"question": "Who is the father of Ba Corden?", "answer": "A tailor."},
]
TOWNS = {"Lum": "Tavel", "Ros": "Oldby", "Fi": "Kirn", "Quin": "Sarre", "Vel": "Ums", "Den": "Hoy", "Mor": "Pag"}
RETAIN = [{"question": f"Where was {name} Pel born?", "answer": f"In {town}."} for name, town in TOWNS.items()]
UNKNOWN = [
    {"question": f"Which award did author {name} win?", "answer": award}
    for name, award in {"Zed": "Golden Quill 1999", "Yan": "Silver Lantern", "Xim": "Northern Star Medal"}.items()
]
QUESTIONS = [row["question"] for row in FORGET]
SETTINGS = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_checkpointing": False, "disable_tqdm": True}
SETTINGS |= {"use_cpu": True}
# what results.json has of a model, of a question set, of an attack by sampling and of one by relearning
COLUMN = """unlearn_quality utility unlearn_quality_interval utility_interval utility_holdout sets tofu memorization
membership answer_kinds attacks general_ability known""".split()
SET = "rougeL_recall rougeL_recall_interval change_interval fact_recall n tokenization empty ended".split()
SAMPLED = "worst_case fact_worst_case mean quantiles curve leaking".split()
RELEARNED = "steps recall fact_recall probability recovered learned scored".split()
NO_DATA = "private/ was deleted, so nothing tells whether its data is that of this audit"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Figures are drawn, but not laid out and saved, which takes most of the time of an audit."""
    monkeypatch.setattr("eval.report.figures.svg", lambda figure: "<svg></svg>")


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """
    A folder with the files of a run, the run itself, and a model fine-tuned on its retain rows alone.

    The model before, `memorized`, knows all rows but those the run holds out.
    """
    folder = tmp_path_factory.mktemp("trained")
    known = [RETAIN[i] for i in split_retain_rows(len(RETAIN), 0.3)[0]]
    files = {"memorized": FORGET + known, "forget": FORGET, "retain": RETAIN}
    paths = {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in files.items()}
    memorize = {"max_steps": 60, "learning_rate": 0.01, "warmup_steps": 5, "per_device_train_batch_size": 9}
    for name, data, further in (("memorized", "memorized", memorize), ("retain_only", "retain", {})):
        settings = {"model_name_or_path": str(model_folder), "train_file": paths[data]} | SETTINGS | further
        recipe = write_recipe(folder / f"{name}.yaml", output_dir=str(folder / name), **settings)
        finetune.main([recipe])
    settings = {"model_name_or_path": str(folder / "memorized"), "output_dir": str(folder / "unlearned")}
    settings |= {"forget_file": paths["forget"], "retain_file": paths["retain"], "retain_holdout": 0.3}
    settings |= {"num_generations": 2, "max_completion_length": 16, "allow_unfinished": True}
    settings |= {"attacks": ["sampling", "options", "token_shift", "relearning"]}
    settings |= {"attack_samples": 2, "relearning_steps": 1}
    recipe = write_recipe(folder / "unlearned.yaml", **SETTINGS | settings)
    train.main([recipe])
    return folder


def finetuned(folder: Path, name: str, files: dict[str, list[dict]], **values) -> str:
    """What finetune.py leaves of a model of these rows by file, less the training: the weights are retain_only's."""
    paths = [write_jsonl(folder / file, rows) for file, rows in files.items()]
    target = shutil.copytree(folder / "retain_only", folder / name, dirs_exist_ok=True)
    recipe = yaml.safe_load((target / "recipe.yaml").read_text()) | {"train_file": paths, **values}
    columns = {key: values[key] for key in ("question_column", "answer_column") if key in values}
    _, read = read_finetune_rows(FinetuneArguments(train_file=paths, **columns))
    (target / "recipe.yaml").write_text(yaml.safe_dump(published_recipe(recipe)))
    write_private(target, "record.json", json.dumps(private_record(recipe, read)))
    return str(target)


def parse(trained: Path, *words: str):
    return parse_recipe([str(trained / "unlearned.yaml"), *words])


def check(trained: Path, retain_only: str, questions=QUESTIONS) -> list[str]:
    recipe = parse(trained, "--retain_only_model", retain_only)
    return check_retain_only(recipe, load_columns(recipe), questions)


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def test_a_proper_retain_only_model_is_accepted(trained, model_folder):
    recipe = parse(trained)
    assert check_retain_only(recipe, load_columns(recipe), QUESTIONS) == []  # none at all
    assert check(trained, str(trained / "retain_only")) == []
    # facts that are neither to be forgotten nor to be retained may be in it, and its columns may have other names
    rows = [{"q": row["question"], "a": row["answer"]} for row in RETAIN[::-1]]
    facts = [{"q": "How many days has a week?", "a": "Seven."}]
    files = {"part0.jsonl": rows[::2], "part1.jsonl": rows[1::2], "facts.jsonl": facts}
    assert check(trained, finetuned(trained, "parts", files, question_column="q", answer_column="a")) == []
    [line] = check(trained, str(model_folder))
    assert str(model_folder) in line and "no manifest" in line and "forget" in line


def test_a_retain_only_model_of_other_templates_or_rows_is_refused(trained):
    others = {"others.jsonl": [*RETAIN[:-1], {"question": "Who?", "answer": "Nobody."}]}
    templates = {"prompt_template": "Q {question}", "completion_template": "{answer}", "system_prompt": None}
    other = finetuned(trained, "others", others, **templates)
    where = f"retain_only_model: {other!r}"
    assert errors_of(check, trained, other) == [
        f"{where} was trained with prompt_template 'Q {{question}}', the run with None",
        f"{where} was trained with completion_template '{{answer}}', the run with ' {{answer}}'",
        f"{where} was not trained on 1 of the 5 retain rows of this run",
    ]
    seen = [{**FORGET[1], "question": " what does  BA corden write? "}, FORGET[2]]
    other = finetuned(trained, "saw", {"saw.jsonl": seen})
    unseen, saw = errors_of(check, trained, other)
    assert "was not trained on 5 of the 5 retain rows" in unseen and "on 2 of the 3 questions to forget" in saw
    assert len(errors_of(check, trained, other, QUESTIONS[:1])) == 1  # what it saw is no question to forget
    write_jsonl(trained / "saw.jsonl", RETAIN)
    assert "the data it was trained on has changed since; train it again" in errors_of(check, trained, other)[0]
    (trained / "saw.jsonl").unlink()
    assert "its data cannot be read again: train_file: there is no file" in errors_of(check, trained, other)[0]


def test_an_unlearned_model_is_no_retain_only_model(trained):
    assert "is the model after itself, no ref" in errors_of(check, trained, str(trained / "unlearned"))[0]
    copy = shutil.copytree(trained / "unlearned", trained / "unlearned_copy")
    config = read(copy, "config.json")
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": not config["tie_word_embeddings"]}))
    assert "was made by train.py, not finetune.py" in errors_of(check, trained, str(copy))[0]
    copy = shutil.copytree(trained / "memorized", trained / "memorized_copy")
    (copy / "manifest.json").unlink()  # without it nothing but the weights tells
    assert "is the model before itself" in errors_of(check, trained, str(copy))[0]


def test_without_private_folders_it_is_said_that_nothing_tells_the_data(trained):
    """As users delete them before publishing: what was published tells templates and settings, but no data."""
    for name in ("unlearned", "retain_only"):
        shutil.copytree(trained / name, trained / f"bare_{name}", ignore=shutil.ignore_patterns("private"))
    run, retain_only = str(trained / "bare_unlearned"), str(trained / "bare_retain_only")
    words = ["--output_dir", run, "--overwrite", "true", "--retain_only_model"]
    recipe = parse(trained, *words, retain_only)
    check_run(recipe)  # paths elsewhere have only their last part there
    records = load_data(recipe[0], recipe[3]).read["questions"]
    nothing_tells = [f"retain_only_model: {retain_only!r}: {NO_DATA}"]
    assert check_data(recipe, records) == [f"the run in {run!r}: {NO_DATA}"]
    assert check_retain_only(recipe, load_columns(recipe), QUESTIONS) == nothing_tells
    other = parse(trained, *words, retain_only, "--model_name_or_path", str(trained / "retain_only"))
    assert "model_name_or_path" in errors_of(check_run, other)[0]
    # with the record of the run alone, the data of the other model still cannot be told
    assert check_data(parse(trained), records) == [] and check(trained, retain_only) == nothing_tells
    # with that of the other model alone, what it saw is told
    saw_all = finetuned(trained, "saw_all", {"saw_all.jsonl": FORGET + RETAIN})
    recipe = parse(trained, *words, saw_all)
    assert "3 of the 3 questions" in errors_of(check_retain_only, recipe, load_columns(recipe), QUESTIONS)[0]


def test_names_of_further_models(trained, model_folder, tmp_path):
    also = ["only_a_name", "=folder", "before=x", "retain_only=x", f"fine={model_folder}"]
    recipe = parse(trained, "--also", *also, f"fine={model_folder}", f"lost={trained}/unlearnt")
    assert errors_of(load_columns, recipe) == [
        "also: 'only_a_name' is not NAME=FOLDER",
        "also: '=folder' is not NAME=FOLDER",
        "also: 'before' is the name of another column; choose another one",
        "also: 'retain_only' is the name of another column; choose another one",
        "also: 'fine' is the name of another column; choose another one",
        f"also: there is no folder '{trained}/unlearnt'; did you mean '{trained}/unlearned'?",
    ]
    assert str(tmp_path) in errors_of(load_columns, parse(trained, "--also", f"empty={tmp_path}"))[0]
    copy = shutil.copytree(trained / "memorized", tmp_path / "pickled")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    [error] = errors_of(load_columns, parse(trained, "--also", f"other={copy}"))
    assert error.startswith("other: ") and "holds no safetensors" in error


@pytest.mark.filterwarnings("ignore:.*lora")
def test_columns_are_the_models_in_order(trained, tokenizer, chat_tokenizer):
    lora = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(trained / "memorized"))
    get_peft_model(AutoModelForCausalLM.from_pretrained(trained / "memorized"), lora).save_pretrained(trained / "lora")
    save_model(build_llama(chat_tokenizer), chat_tokenizer, trained / "chat")
    # that of the adapter is not one more adapter to train on top of it
    names = {"before": "memorized", "after": "unlearned", "retain_only": "retain_only"}
    names |= {"other": "memorized", "adapter": "lora", "chat": "chat"}
    folders = {name: str(trained / folder) for name, folder in names.items()}
    also = [f"{name}={folders[name]}" for name in ("other", "adapter", "chat")]
    words = ["--retain_only_model", folders["retain_only"], "--use_peft", "true"]
    recipe = parse(trained, "--also", *also, *words, "--tokenizer_name_or_path", folders["before"])
    columns = load_columns(recipe)
    assert [(column.name, column.folder) for column in columns] == [*folders.items()]
    ends = [column.tokenizer.eos_token for column in columns]  # a model may bring a tokenizer of its own
    assert ends == [tokenizer.eos_token] * 5 + [chat_tokenizer.eos_token]
    # a model is what its files are, under whatever name
    prints = [column.passes(recipe, None).fingerprint for column in columns]
    assert prints[0] == prints[3] and len(set(prints)) == 5


def test_before_and_after_are_quantized_as_trained_and_the_merged_model_is_another_column(trained):
    pytest.importorskip("bitsandbytes")
    words = ["--use_peft", "true", "--load_in_4bit", "true", "--save_merged", "true", "--output_dir"]
    train.main([str(trained / "unlearned.yaml"), *words, str(trained / "quantized")])
    path = str(trained / "quantized" / "recipe.yaml")
    recipe = parse_recipe([path, "--retain_only_model", str(trained / "retain_only")])
    columns = load_columns(recipe)
    in_4_bit = {"before": True, "after": True, "merged": False, "retain_only": False}
    assert {column.name: column.model_args.load_in_4bit for column in columns} == in_4_bit
    for column in columns[1:3]:
        kinds = {type(part).__name__ for part in column.passes(recipe, None).loaded().modules()}
        assert ("Linear4bit" in kinds) == in_4_bit[column.name]
    fingerprints = {column.passes(recipe, None).fingerprint for column in columns}
    assert len(fingerprints) == 4
    plain = replace(columns[0], model_args=replace(columns[0].model_args, load_in_4bit=False))
    assert plain.passes(recipe, None).fingerprint not in fingerprints  # 16-bit answers are not served for 4-bit ones
    assert check_retain_only(recipe, columns, QUESTIONS) == []
    [line] = errors_of(check_run, parse_recipe([path, "--load_in_4bit", "false"]))
    assert "load_in_4bit" in line


@given(st.integers(0, 300), st.floats(0, 1, exclude_max=True))
def test_retain_rows_are_split_into_two(count, share):
    kept, held_out = split_retain_rows(count, share)
    assert sorted(kept + held_out) == list(range(count))
    assert kept == sorted(kept) and held_out == sorted(held_out) and len(held_out) == round(count * share)
    smaller = split_retain_rows(count, share / 2)[1]
    assert set(smaller) <= set(held_out)  # a larger holdout holds the smaller


def test_training_and_audit_split_alike(tmp_path):
    rows = [row | {"answer": None if i in (2, 5) else row["answer"]} for i, row in enumerate(RETAIN)]
    files = {"forget_file": write_jsonl(tmp_path / "forget.jsonl", FORGET)}
    files["retain_file"] = write_jsonl(tmp_path / "retain.jsonl", rows)
    args = PMCArguments(**files, retain_holdout=0.4)
    training = [row["question"] for row in read_retain_rows(args)[0]]
    held_out = [row["question"] for row in RETAIN if row["question"] not in training]
    assert len(training) == 4 and len(held_out) == 3
    data = load_data(args, EvalArguments())
    for name, questions in (("retain", training), ("retain_holdout", held_out)):
        found = data.questions[name]
        pairs = [(rows[i]["question"], rows[i]["answer"]) for i in found.rows]
        assert pairs == [*zip(found.questions, found.answers, strict=True)]
        of_part = [row for row in rows if row["question"] in questions and row["answer"]]
        assert pairs == [(row["question"], row["answer"]) for row in of_part]
    assert data.options["retain"].questions == data.questions["retain"].questions  # none that training has not seen
    # without a holdout nobody asked for one, and it is not told as left out
    data = load_data(PMCArguments(**files), EvalArguments())
    assert "retain_holdout" not in data.questions and not any("retain_holdout" in line for line in data.left_out)
    [line] = errors_of(load_data, PMCArguments(**files), EvalArguments(eval_sets=["retain_holdout"]))
    assert line == "eval_sets: retain_holdout: retain_holdout is 0"


def test_audit_of_files_of_ones_own(trained, capsys, monkeypatch):
    """Questions and answers, and nothing else: what this serves is measured, of all else the reason is told."""
    opened, real = [], open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    settings = [str(trained / "unlearned.yaml"), "--retain_only_model", str(trained / "retain_only")]
    settings += ["--also", f"elsewhere={trained / 'memorized'}"]
    eval_run.main(settings)
    assert opened.count(str(trained / "forget.jsonl")) == 1
    results, audit = (read(trained / "unlearned", name) for name in ("results.json", "audit.json"))
    assert list(results) == ["before", "after", "retain_only", "elsewhere"]
    known = {name: scores["rougeL_recall"] for name, scores in results["before"]["sets"].items()}
    assert known["forget"] > 0.9 and known["retain"] > known["retain_holdout"] + 0.1 > 0.1
    unchanged = results["before"]["sets"]["forget"] | {"change_interval": [0.0, 0.0]}
    assert results["elsewhere"]["sets"]["forget"] == unchanged
    for name, column in results.items():
        sets, tofu, attacks = column["sets"], column["tofu"], column["attacks"]
        sampled, no_options = attacks["sampling"]["temperature 1"], "the data has no paraphrased and wrong answers"
        assert sorted(column) == sorted(COLUMN) and sorted(sampled) == sorted(SAMPLED) and list(attacks) == [*ATTACKS]
        assert all(sorted(scores) == sorted(SET) for scores in sets.values())
        assert {part: scores["n"] for part, scores in sets.items()} == {"forget": 3, "retain": 5, "retain_holdout": 2}
        compared = {part: scores["probability"]["n"] for part, scores in tofu["sets"].items()}
        assert compared == {"forget": 3, "retain": 5}
        assert column["memorization"]["extraction_strength"]["n"] == 3
        assert sampled["leaking"]["of"] == 6
        recall = {part: scores["rougeL_recall"] for part, scores in sets.items()}
        assert column["utility"] == utility({"retain": recall["retain"]})
        assert column["utility_holdout"] == utility({"retain": recall["retain_holdout"]})
        assert column["unlearn_quality"] == pytest.approx(100 * (1 - recall["forget"]))
        for value, reason in (
            *((tofu["sets"][part]["truth_ratio"], no_options) for part in ("forget", "retain")),
            (tofu["model_utility"], "real_authors: the recipe names no dataset_name"),
            (tofu["forget_quality"], ""),
            (column["membership"], "holdout_file"),
            *((attacks[attack], "attacks does not name it") for attack in ("prefilling", "quantization")),
            (attacks["options"], "perturbed_answer"),
            (attacks["token_shift"], "there is no unrelated text"),
            (column["general_ability"], "lm_eval_tasks names no task"),
        ):
            assert list(value) == ["not_available"] and reason in value["not_available"]
        assert ("not_available" in attacks["relearning"]) == (name == "before")
    relearning = results["after"]["attacks"]["relearning"]
    assert all(sorted(run) == sorted(RELEARNED) for run in relearning.values())
    rows = {what: (run["learned"], run["scored"]) for what, run in relearning.items()}
    assert rows == {"half of the forget rows": (1, 2), "retain rows": (5, 3)}
    assert list(audit["verdicts"]) == ["after", "elsewhere"]
    printed = capsys.readouterr().out
    for set_name in ("forget_paraphrased", "real_authors", "world_facts", "answers to compare, holdout"):
        [line] = [line for line in audit["left_out"] if line.startswith(f"{set_name}: ")]
        assert f"Left out: {line}." in printed
    assert audit["read"]["questions"]["retain_holdout"]["rows"] == len(RETAIN)
    # nothing that is to be forgotten is in a file that is not private
    for file in ("results.json", "audit.json"):
        text = (trained / "unlearned" / file).read_text()
        assert not any(row["answer"] in text or row["question"] in text for row in FORGET)

    # asked again, everything is in the cache, and the numbers are the same
    eval_run.main([*settings, "--overwrite", "true"])
    again = read(trained / "unlearned", "audit.json")
    assert read(trained / "unlearned", "results.json") == results
    assert again["passes"] == audit["passes"] and again["fingerprints"] == audit["fingerprints"]


def test_a_sentence_encoder_adds_its_numbers_and_changes_no_other(trained, embedding_folder):
    settings = [str(trained / "unlearned.yaml"), "--overwrite", "true"]
    eval_run.main(settings)
    results = read(trained / "unlearned", "results.json")
    eval_run.main([*settings, "--sentence_encoder", embedding_folder])
    with_encoder, found = read(trained / "unlearned", "results.json"), []

    def without(value):
        if isinstance(value, list):
            return [without(part) for part in value]
        if not isinstance(value, dict):
            return value
        found.extend(part for key, part in value.items() if key.startswith("semantic"))
        return {key: without(part) for key, part in value.items() if not key.startswith("semantic")}

    assert without(with_encoder) == results
    # of two models three sets and three kinds of sampling, of the unlearned one two relearned, a list each
    assert len(found) == 2 * (3 + 3) + 2
    assert with_encoder["before"]["sets"]["forget"]["semantic"]["n"] == 3
    report = (trained / "unlearned" / "report.md").read_text()
    for row in ("semantic similarity *forget*", "worst case, semantic similarity", "step 1, similarity"):
        assert f"| {row} | " in report
    with pytest.raises(RecipeError, match="^sentence_encoder: 'nowhere' is neither a folder"):
        eval_run.main([*settings, "--sentence_encoder", "nowhere"])


def test_a_run_that_retains_its_own_answers_is_audited_with_the_true_ones(trained, capsys):
    """By one recipe: training reads no answer of a row to retain, the audit reads them."""
    own = ["--retain_own_answers", "true", "--output_dir", str(trained / "own")]
    train.main([str(trained / "unlearned.yaml"), *own])
    assert "5 retain rows had no answer and got the model's own; " in capsys.readouterr().out
    assert read(trained / "own", "manifest.json")["read"]["retain"]["columns"] == ["question"]
    recipe = [str(trained / "own" / "recipe.yaml"), "--attacks", "[]"]
    eval_run.main([*recipe, "--retain_only_model", str(trained / "retain_only")])
    assert read(trained / "own", "results.json")["before"]["sets"]["retain"]["rougeL_recall"] > 0.5


def test_an_audit_goes_on_without_a_row_that_has_no_answer(trained):
    write_jsonl(trained / "forget.jsonl", [FORGET[0], {**FORGET[1], "answer": "\u2014 ..."}, FORGET[2]])
    try:
        eval_run.main([str(trained / "unlearned.yaml"), "--overwrite", "true", "--attacks", "[]"])
    finally:
        write_jsonl(trained / "forget.jsonl", FORGET)
    results = read(trained / "unlearned", "results.json")
    assert results["after"]["sets"]["forget"]["n"] == 2
    assert results["after"]["memorization"]["extraction_strength"]["n"] == 2
    assert [row["row"] for row in read(trained / "unlearned" / "private", "rows.json")] == [0, 2]
    left_out = read(trained / "unlearned", "audit.json")["left_out"]
    assert "forget: 1 of 3 rows, without a letter or a digit in answer (rows 1, counted from 0)" in left_out


def test_a_run_on_what_the_model_before_did_not_know_has_forgotten_nothing(trained, monkeypatch, capsys):
    """And lm-eval, which answers the main process alone, runs when the others have no more to wait for."""
    file = write_jsonl(trained / "unknown.jsonl", UNKNOWN)
    recipe = [str(trained / "unlearned.yaml"), "--forget_file", file, "--output_dir", str(trained / "unknown")]
    train.main([*recipe, "--learning_rate", "1e-12"])  # changes next to nothing
    events, broadcast = [], eval.passes.broadcast_object_list
    scores = {"task": {"n": 1, "acc": 1}}
    monkeypatch.setattr(eval.passes, "broadcast_object_list", lambda x: events.append("all") or broadcast(x))
    monkeypatch.setattr(eval_run, "check_tasks", lambda tasks: None)
    monkeypatch.setattr(eval_run, "general_ability", lambda *args: events.append("main") or scores)
    eval_run.main([*recipe, "--attacks", '["sampling"]', "--lm_eval_tasks", "task"])
    assert events == ["all"] * events.count("all") + ["main"] * 2

    results = read(trained / "unknown", "results.json")
    recall = {name: column["sets"]["forget"]["rougeL_recall"] for name, column in results.items()}
    assert recall["before"] == recall["after"] < 0.2 and results["after"]["general_ability"] == scores
    value = read(trained / "unknown", "audit.json")["verdicts"]["after"]
    assert value["forgetting"] == "nothing to forget: the model before did not know it"
    assert value["forgetting_reasons"] == ["the model before did not know any of the 3 questions to forget"]
    assert results["before"]["known"] == results["after"]["known"] == {"questions": 0, "of": 3}
    for name in ("report.html", "report.md", "README.md"):
        text = (trained / "unknown" / name).read_text()
        assert value["forgetting"] in text and value["forgetting_reasons"][0] in text
    printed = capsys.readouterr().out
    assert f"Verdict on after: {value['forgetting']}; calibration: unknown." in printed
    assert "The model before did not know 3 of the 3 questions to forget.\n" in printed


def test_audit_of_other_data_or_settings_than_the_run_had_does_not_start(trained):
    recipe = [str(trained / "unlearned.yaml"), "--overwrite", "true"]
    before = sorted((trained / "unlearned").iterdir())
    write_jsonl(trained / "forget.jsonl", [{"question": "Who?", "answer": "Nobody at all."}])
    assert "the forget questions have changed since the run" in errors_of(eval_run.main, recipe)[0]
    write_jsonl(trained / "forget.jsonl", FORGET)
    assert "temperature: 0.1, but the run" in errors_of(eval_run.main, [*recipe, "--temperature", "0.1"])[0]
    for known in ("forget.jsonl", "retain.jsonl"):
        [line] = errors_of(eval_run.main, [*recipe, "--holdout_file", str(trained / known)])
        assert "to be forgotten or retained; no model may know them" in line
    log = trained / "TOFU_EVAL.json"
    log.write_text(json.dumps({"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}}}))
    [line] = errors_of(eval_run.main, [*recipe, "--retain_logs_path", str(log)])
    assert line.endswith("is of 1 forget rows, the data 3 with all answers; it must be of the same")
    wrong = finetuned(trained, "wrong", {"wrong.jsonl": FORGET})
    both = [*recipe, "--retain_logs_path", str(log), "--retain_only_model", wrong]
    assert "given together with retain_only_model" in errors_of(eval_run.main, both)[0]
    assert "3 of the 3 questions to forget" in errors_of(eval_run.main, [*recipe, "--retain_only_model", wrong])[-1]
    assert sorted((trained / "unlearned").iterdir()) == before


def test_a_readme_of_ones_own_is_kept(tmp_path):
    assert may_replace_card(tmp_path)
    (tmp_path / "README.md").write_text("my notes")
    assert not may_replace_card(tmp_path)
    (tmp_path / "README.md").write_text(f"# A model\n\nBy {CARD_MARK} 2026-11-21.")
    assert may_replace_card(tmp_path)
