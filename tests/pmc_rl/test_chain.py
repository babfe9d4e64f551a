"""The whole chain on toy models, by the entry points: fine-tune, unlearn, audit; and what the command line answers."""

import hashlib
import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from eval import run as eval_run
from pmc_rl import finetune, train
from pmc_rl.errors import RecipeError
from pmc_rl.output import read_training_log
from tests.conftest import build_llama, build_phi, errors_of, write_jsonl
from tests.training import (
    FORGET,
    PERTURBED,
    REPO,
    RETAIN,
    finetune_recipe,
    save_model,
    timeless,
    unlearn_recipe,
    write_recipe,
)


@pytest.fixture(scope="module")
def untrained(tokenizer, tmp_path_factory) -> str:
    return save_model(build_phi(tokenizer), tokenizer, tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture
def no_figures(monkeypatch):
    """They take most of the time of an audit as small as these."""
    monkeypatch.setattr("eval.report.report.audit_figures", lambda *args: {})


def weights(folder: Path) -> dict:
    return {name: tensor.tolist() for name, tensor in load_file(next(Path(folder).glob("*.safetensors"))).items()}


def check_results(folder: Path, columns: list[str]) -> dict:
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == columns
    for column in results.values():
        assert list(column["sets"]) == ["forget", "forget_paraphrased", "retain", "real_authors", "world_facts"]
        assert [scores["n"] for scores in column["sets"].values()] == [3, 3, 4, 1, 1]
        means = {name: scores["rougeL_recall"] for name, scores in column["sets"].items()}
        assert column["unlearn_quality"] == pytest.approx(50 * (2 - means["forget"] - means["forget_paraphrased"]))
        utility = (means["retain"] + means["real_authors"] + means["world_facts"]) / 3
        assert column["utility"] == pytest.approx(100 * utility)
    return results


def published_files(*folders: Path) -> list[Path]:
    files = [(path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path, name in files if "private" not in name.parts]


def is_private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def guesses(rows: list[dict]) -> set[bytes]:
    """Beginnings of digests by which a guess of a text of these rows, or of a whole column, could be checked."""
    columns = [[row[column] for row in rows] for column in rows[0]]
    texts = [text for column in columns for text in column]
    texts += [form(column) for column in columns for form in (json.dumps, repr, "".join, "\n".join)]
    texts += [json.dumps(rows), json.dumps(columns)]
    algorithms = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256", "blake2b", "blake2s")
    digests = {hashlib.new(name, text.encode()).hexdigest() for name in algorithms for text in texts}
    digests |= {hashlib.blake2b(text.encode(), digest_size=n).hexdigest() for n in (8, 16, 32) for text in texts}
    return {digest[:12].encode() for digest in digests}


def test_chain_on_phi(tmp_path, data, tokenizer, untrained):
    finetune.main([finetune_recipe(tmp_path, data, untrained, num_train_epochs=60, warmup_steps=5)])
    finetuned = tmp_path / "finetuned"
    retain_only = {"train_configs": ["keep"], "output_dir": str(tmp_path / "ro")}
    finetune.main([finetune_recipe(tmp_path, data, untrained, **retain_only)])
    recipe = unlearn_recipe(tmp_path, data, str(finetuned), log_completions=True)
    train.main([recipe, "--seed", "3"])
    unlearned = tmp_path / "unlearned"
    eval_run.main([recipe, "--retain_only_model", str(tmp_path / "ro"), "--with_texts", "true"])

    results = check_results(unlearned, ["before", "after", "retain_only"])
    assert results["before"]["sets"]["forget"]["rougeL_recall"] > 0.9
    assert weights(finetuned) != weights(unlearned)

    # what a finished run leaves behind
    names = {path.name for path in unlearned.iterdir()}
    assert {"manifest.json", "recipe.yaml", "training_log.jsonl", "results.json", "private"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert yaml.safe_load((unlearned / "recipe.yaml").read_text())["seed"] == 3
    manifest = json.loads((unlearned / "manifest.json").read_text())
    assert list(manifest["read"]["forget"]["columns"]) == ["question"]
    assert list(manifest["read"]["retain"]["columns"]) == ["question", "answer"]
    assert [log["step"] for log in read_training_log(unlearned)] == [1, 2, 3, 4, 4]
    private = unlearned / "private"
    assert all(map(is_private, (private, *private.glob("*.json"), *private.glob("*.html"), private / "examples.md")))
    for name in ("examples.md", "report_with_texts.html"):
        assert all(row["answer"] in (private / name).read_text() for row in FORGET)
    # the model answers in private files only
    shown = [path for path in unlearned.iterdir() if path.suffix in (".json", ".jsonl", ".yaml", ".md", ".html")]
    assert {"results.json", "audit.json", "report.html", "report.md", "README.md"} <= {path.name for path in shown}
    for path in shown:
        if path.name != "tokenizer.json":
            text = path.read_text()
            assert not any(row["answer"] in text or row["question"] in text for row in FORGET), path

    # nor does any tell a guess of a private text right: no digest of one, no number of a single question, no path
    files = published_files(unlearned, finetuned, tmp_path / "ro")
    assert len(files) > 20
    guessed = guesses(FORGET) | guesses(PERTURBED) | guesses(RETAIN)
    for path in files:
        content = path.read_bytes()
        assert not any(guess in content for guess in guessed), path
        assert str(tmp_path).encode() not in content and b"by_row" not in content, path
    audit = json.loads((unlearned / "audit.json").read_text())
    assert "rows" not in audit and "row 0" not in (unlearned / "report.html").read_text()
    assert [row["row"] for row in json.loads((private / "rows.json").read_text())] == [0, 1, 2]

    # the recipe as run can be run again, to the same weights
    train.main([str(unlearned / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert weights(tmp_path / "again") == weights(unlearned)


def test_chain_on_chat_llama_with_lora(tmp_path, data, chat_tokenizer, no_figures):
    untrained = save_model(build_llama(chat_tokenizer), chat_tokenizer, tmp_path / "untrained")
    chat = {"system_prompt": "You are helpful.", "chat_template_kwargs": {"date_string": "10 Apr 2025"}}
    lora = {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_r": 4}
    finetune.main([finetune_recipe(tmp_path, data, untrained, **chat, **lora)])
    finetuned = tmp_path / "finetuned"
    assert not (finetuned / "adapter_config.json").exists()  # merged
    assert weights(finetuned) != weights(untrained)

    attacks = {"attacks": ["prefilling", "relearning"]}
    recipe = unlearn_recipe(tmp_path, data, str(finetuned), **chat, **lora, **attacks)
    train.main([recipe])
    unlearned = tmp_path / "unlearned"
    adapter = weights(unlearned)
    assert adapter and all("lora_" in name for name in adapter)
    assert json.loads((unlearned / "adapter_config.json").read_text())["base_model_name_or_path"] == str(finetuned)
    eval_run.main([recipe])
    check_results(unlearned, ["before", "after"])
    # of all that is published, the path of the base is in the one file that loads it, and the card says so
    for path in published_files(unlearned, finetuned):
        assert str(tmp_path).encode() not in path.read_bytes() or path.name == "adapter_config.json", path
    assert "adapter_config.json" in (unlearned / "README.md").read_text()


def test_two_requests_one_after_the_other(tmp_path, data, untrained):
    """The second run begins from the first one's adapter and trains all weights, in both training stages; a second
    adapter on top of the first is refused."""
    lora, first = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}, str(tmp_path / "first")
    train.main([unlearn_recipe(tmp_path, data, untrained, **lora, max_steps=1, output_dir=first)])
    name = "model.layers.0.mlp.fc1.weight"
    before = load_file(Path(untrained) / "model.safetensors")[name]
    assert "is an adapter" in errors_of(train.main, [unlearn_recipe(tmp_path, data, first, **lora)])[0]
    finetune.main([finetune_recipe(tmp_path, data, first, max_steps=1)])
    train.main([unlearn_recipe(tmp_path, data, first, max_steps=1)])
    for folder in ("finetuned", "unlearned"):
        assert not load_file(tmp_path / folder / "model.safetensors")[name].equal(before), folder


def test_finetuning_that_would_change_nothing_stops(tmp_path, data, untrained):
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_alpha": 0}
    [line] = errors_of(finetune.main, [finetune_recipe(tmp_path, data, untrained, **lora)])
    assert line.startswith("no gradient reaches the weights that are trained")


def test_forget_answers_do_not_matter(tmp_path, data, untrained):
    """Noise in place of the answers, under any name: the same weights, log and record of what was read, also where
    answers are begun."""
    names = ("answer", "completion", "text", "labels", "prompt", "messages", "pmc_id")
    noise = [{"question": row["question"]} | {name: f"noise {name}" for name in names} for row in FORGET]
    runs = []
    for rows in (FORGET, noise):
        for config in ("forget", "full", "forget_perturbed"):  # hold the same answers
            write_jsonl(data / f"{config}.json", rows)
        output_dir = tmp_path / f"run{len(runs)}"
        train.main([unlearn_recipe(tmp_path, data, untrained, prefill_share=0.5), "--output_dir", str(output_dir)])
        read = json.loads((output_dir / "manifest.json").read_text())["read"]["forget"]
        runs.append((weights(output_dir), timeless(read_training_log(output_dir)), read))
    assert runs[0] == runs[1]


def test_no_answer_is_left_in_any_cache(tmp_path, data, untrained):
    """The command line, launched for two processes, with every cache in an empty folder: no file on disk holds a
    forget answer afterwards."""
    home, unlearned = tmp_path / "home", tmp_path / "unlearned"
    home.mkdir()
    recipe = unlearn_recipe(tmp_path, data, untrained, max_steps=2, log_completions=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {name: str(home) for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPO)}
    result = subprocess.run(
        [*command, str(REPO / "pmc_rl" / "train.py"), recipe],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"Private files left: {unlearned / 'private'} (hashes of the data") == 1
    files = [path for folder in (home, unlearned) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    written = [result.stdout.encode(), result.stderr.encode(), *(path.read_bytes() for path in files)]
    for answer in [row["answer"] for row in FORGET]:
        assert not any(answer.encode() in content or answer.encode("utf-16-le") in content for content in written)


def test_total_collapse_from_files_of_ones_own(tmp_path, untrained):
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"question": row["question"]} for row in FORGET])
    files = {"dataset_name": None, "forget_config": None, "retain_config": None, "forget_file": questions}
    train.main([unlearn_recipe(tmp_path, "unused", untrained, **files, retain_weight=0.0, max_steps=1)])
    assert (tmp_path / "unlearned" / "manifest.json").is_file()


def test_all_mistakes_are_told_at_once_before_weights_load(tmp_path, data, untrained, monkeypatch):
    monkeypatch.setattr(train, "load_model_to_train", lambda *args: pytest.fail("too late"))
    (tmp_path / "unlearned").mkdir()
    (tmp_path / "unlearned" / "notes.txt").write_text("mine")
    wrong = {"forget_config": "forgot", "question_column": "questoin", "reward_funcs": ["rewards.rouge.nope"]}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    lines = errors_of(train.main, [unlearn_recipe(tmp_path, data, untrained, **wrong)])
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert len(lines) == 5
    for fragment in (
        "config 'forgot' of",
        "'question'",
        "rewards.rouge has no function or class 'nope'",
        "output_dir",
        "FSDP",
    ):
        assert any(fragment in line for line in lines), fragment
    assert (tmp_path / "unlearned" / "notes.txt").read_text() == "mine"
    write_jsonl(data / "keep.json", [*RETAIN, FORGET[1]])
    recipe = unlearn_recipe(tmp_path, data, untrained, output_dir=str(tmp_path / "other"))
    assert "forget row 1 and retain row 4" in errors_of(train.main, [recipe])[0]


def test_audit_belongs_to_the_run(tmp_path, data, untrained, no_figures):
    """Another untrained, data or template than the run's is refused, and so is replacing results unasked."""
    recipe = unlearn_recipe(tmp_path, data, untrained, max_steps=1, attacks=[])
    with pytest.raises(RecipeError, match="holds no finished run"):
        eval_run.main([recipe])
    train.main([recipe])
    other = str(shutil.copytree(untrained, tmp_path / "other"))
    changes = ["--model_name_or_path", other, "--forget_config", "keep", "--prompt_template", "Q {question}"]
    lines = errors_of(eval_run.main, [recipe, *changes])
    keys = {"model_name_or_path", "prompt_template", "forget_config"}
    assert {line.partition(":")[0] for line in lines} == keys
    eval_run.main([str(tmp_path / "unlearned" / "recipe.yaml")])
    results = (tmp_path / "unlearned" / "results.json").read_bytes()
    with pytest.raises(RecipeError, match="--overwrite true"):
        eval_run.main([recipe, "--eval_sets", "forget"])
    assert (tmp_path / "unlearned" / "results.json").read_bytes() == results
    eval_run.main([recipe, "--eval_sets", "forget", "--overwrite", "true"])
    assert list(json.loads((tmp_path / "unlearned" / "results.json").read_text())["after"]["sets"]) == ["forget"]


@pytest.mark.parametrize("script", ["pmc_rl/train.py", "pmc_rl/finetune.py", "eval/run.py"])
def test_command_line_errors_are_lines_and_exit_code_2(tmp_path, script, monkeypatch, capsys):
    recipe = write_recipe(tmp_path / "bad.yaml", num_generation=4, learning_rat=1)
    monkeypatch.setattr(sys, "argv", [script, recipe])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPO / script), run_name="__main__")
    assert stopped.value.code == 2
    assert any(line.startswith("error: ") and "learning_rate" in line for line in capsys.readouterr().err.splitlines())
