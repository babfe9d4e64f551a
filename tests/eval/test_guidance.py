"""Guidance in the trainer: several answers a question, prefilled questions, KL, snapshots, and the two controls."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eval.study import control
from pmc_rl import train
from pmc_rl.likelihood import OriginalLogLikelihood, mean_log_probs
from pmc_rl.output import save_run
from pmc_rl.prompts import encode_prompt, prefilled_rows
from pmc_rl.recipe import parse_recipe
from pmc_rl.scoring import RewardFunction, load_reward_functions
from rewards.fluency import FluencyPenalty
from tests.conftest import errors_of, write_jsonl
from tests.training import forget_prompts, make_trainer, weights

LIMIT = 40
QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


@pytest.fixture
def model(taught):
    return copy.deepcopy(taught)


def longest() -> RewardFunction:
    return RewardFunction(
        "longest", lambda completion_ids, **kwargs: [len(ids) / 40 for ids in completion_ids], 1.0, None, True
    )


def test_num_selected_rows_a_question_and_one_to_retain(tmp_path, tokenizer, model):
    """Three different answers each, in the micro-batch of their question; the loss is the mean over their tokens."""
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [longest()],
        forget=forget_prompts(4),
        num_selected=3,
        num_generations=8,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    seen, select = [], trainer._select
    trainer._select = lambda rows: seen.append((rows, select(rows))) or seen[-1][1]
    batches, build = [], trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: batches.append(build(*args)) or batches[-1]
    trainer.train()
    [(rows, answers)] = seen
    assert [len({tuple(ids) for ids in own}) for own in answers] == [3] * 4
    assert all(len(own[0]) >= len(own[1]) >= len(own[2]) for own in answers)
    [(micro_batches, _)] = batches
    tokens = sum(len(ids) for own in answers for ids in own)
    for batch, own in zip(micro_batches, (answers[:2], answers[2:]), strict=True):
        assert len(batch["input_ids"]) == 2 * 3 + 2
        ids = [ids for answer in own for ids in answer]
        for labels, completion in zip(batch["labels"], ids, strict=False):
            assert labels[labels != -100].tolist() == completion
        np.testing.assert_allclose(batch["row_weights"][0], [1 / tokens] * 6 + [0, 0])
        assert (batch["row_weights"][1][:6] == 0).all() and (batch["row_weights"][1][6:] > 0).all()


@pytest.mark.parametrize("start", [" ", ""])
def test_prefilled_rows(start):
    rows = [
        {"prompt": "Q: A?", "pmc_id": 4, "original_completion": "She was  born.", "topic": "x"},
        {"prompt": "Q: B?", "pmc_id": 9, "original_completion": "Lima !", "topic": "y"},
        {"prompt": [{"role": "user", "content": "C?"}], "pmc_id": 2, "original_completion": "In Rome", "topic": "z"},
    ]
    new = prefilled_rows(rows, 2, start)
    assert new[:3] == rows and [row["pmc_id"] for row in new[3:]] == [10, 11, 12]
    assert [(row["prompt"], row["original_completion"], row["topic"]) for row in new[3:]] == [
        (f"Q: A?{start}She", "was  born.", "x"),
        (f"Q: A?{start}She was", "born.", "x"),
        ([{"role": "user", "content": "C?"}, {"role": "assistant", "content": "In"}], "Rome", "z"),
    ]


def test_a_begun_answer_ends_the_prompt(chat_tokenizer):
    asked = [{"role": "user", "content": "Who?"}]
    whole = encode_prompt(chat_tokenizer, {"prompt": asked})
    begun = encode_prompt(chat_tokenizer, {"prompt": [*asked, {"role": "assistant", "content": "She"}]})
    assert begun == whole + chat_tokenizer("She", add_special_tokens=False)["input_ids"]


def test_what_follows_the_first_words_is_collapsed_too(tmp_path, tokenizer, model):
    """Samples for the prefilled prompts, judged against the rest of the original answer; epochs count them."""
    calls = []

    def reward(prompts, original_completion, pmc_id, **kwargs):
        calls.append(list(zip(pmc_id, prompts, original_completion, strict=True)))
        return [0.5] * len(prompts)

    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [RewardFunction("r", reward, 1.0, None, True)],
        forget=forget_prompts(2),
        prefill_words=1,
        num_train_epochs=3,
    )
    trainer.train()
    originals = {row_id: (prompt, text) for row_id, prompt, text in calls[0]}
    assert len(originals) == 4 and trainer.state.global_step == 3
    for row_id in (0, 1):
        prompt, text = originals[row_id]
        first, _, rest = text.partition(" ")
        assert originals[row_id + 2] == (f"{prompt} {first}", " ".join(rest.split()))
    for call in calls[1:]:
        assert {row_id for row_id, _, _ in call} == {0, 1, 2, 3} and len(call) == 16
    assert trainer.prompt_ids[2] == tokenizer(originals[2][0])["input_ids"]


def test_kl_to_the_model_before(tmp_path, tokenizer, model):
    """0 before the first step, then what the two models say of the same plain samples."""
    before = copy.deepcopy(model).eval()
    trainer = make_trainer(tmp_path, model, tokenizer, [longest()], forget=forget_prompts(4), log_kl=True, max_steps=2)
    seen, generate = [], trainer._generate

    def recorded(prompt_ids, sampling):
        samples = generate(prompt_ids, sampling)
        if sampling.temperature == 1.0:
            rows = list(zip(prompt_ids, samples, strict=True))
            lengths = np.array([len(ids) for ids in samples])
            now = np.array(mean_log_probs(copy.deepcopy(trainer.model).eval(), rows))
            seen.append((now - np.array(mean_log_probs(before, rows))) @ lengths / lengths.sum())
        return samples

    trainer._generate = recorded
    trainer.train()
    logged = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert logged == pytest.approx(seen, abs=1e-5) and len(logged) == 2
    assert abs(logged[0]) < 1e-5 < abs(logged[1])


@pytest.mark.parametrize("lora", [False, True])
def test_fluency_asks_the_model_before_unlearning(tmp_path, tokenizer, model, lora):
    """Training moves the model, the penalty of a text stays; the trainer tells the reward which model it was."""
    from peft import LoraConfig

    original = OriginalLogLikelihood()
    name = "rewards.fluency.FluencyPenalty"
    functions = load_reward_functions([name], {name: {"fluent": -0.5, "noise": -6.0}}, None, LIMIT, original)
    assert functions[0].asks_original and functions[0].name == "FluencyPenalty"
    expected = copy.deepcopy(model).eval()
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        functions,
        original=original,
        max_steps=2,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    trainer.train()
    prompt, ids = forget_prompts(1)[0]["prompt"], [5, 6, 7, tokenizer.eos_token_id]
    mean = mean_log_probs(expected, [(tokenizer(prompt)["input_ids"], ids)])[0]
    assert functions[0].func(prompts=[prompt], completion_ids=[ids]) == [
        pytest.approx(min(0, max(-1, (mean + 0.5) / 5.5)))
    ]


def test_fluency_penalty_by_hand():
    means = [-0.2, -1.0, -2.5, -4.0, -9.0, float("nan")]
    penalty = FluencyPenalty(lambda prompts, completion_ids: means)
    assert penalty(prompts=[""] * 6, completion_ids=[[1]] * 6) == [0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="noise is -1, but it must be less than fluent, which is -1"):
        FluencyPenalty(lambda prompts, completion_ids: [], fluent=-1, noise=-1)


def test_snapshots_hold_the_weights_of_their_step(tmp_path, tokenizer, taught):
    def run(name, **kwargs):
        trainer = make_trainer(tmp_path / name, copy.deepcopy(taught), tokenizer, [longest()], **kwargs)
        trainer.train()
        return trainer

    run("all", max_steps=4, snapshot_steps=1)  # its snapshots must not stay, nor be in the way
    run("all", max_steps=5, snapshot_steps=2)
    short = run("short", max_steps=2)
    folder = tmp_path / "all" / "out" / "snapshots"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    record = [json.loads((folder / name / "snapshot.json").read_text()) for name in ("step-2", "step-4")]
    assert [entry["step"] for entry in record] == [2, 4] and 0 < record[0]["seconds"] < record[1]["seconds"]
    saved = type(taught).from_pretrained(folder / "step-2")
    torch.testing.assert_close(weights(saved), weights(short.model), rtol=0, atol=0)


def test_snapshots_of_a_run_that_goes_on(tmp_path, tokenizer, taught):
    """Killed behind its last checkpoint, it makes the later ones again and keeps the earlier ones."""

    def trainer():
        settings = {"max_steps": 8, "snapshot_steps": 1, "save_strategy": "steps", "save_steps": 4}
        return make_trainer(tmp_path, copy.deepcopy(taught), tokenizer, **settings)

    whole = trainer()
    whole.train()
    out = tmp_path / "out"
    shutil.rmtree(out / "checkpoint-8")
    for step in (4, 6):
        (out / "snapshots" / f"step-{step}" / "old").touch()
    (out / "snapshots" / "mine").mkdir()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert {path.name for path in (out / "snapshots").iterdir()} == {"mine", *(f"step-{i}" for i in range(1, 8))}
    assert (out / "snapshots" / "step-4" / "old").exists()
    assert not (out / "snapshots" / "step-6" / "old").exists()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_snapshots_of_a_replaced_run_go(tmp_path, run_folder):
    recipe = [str(run_folder / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), "--max_steps", "3"]
    recipe += ["--allow_unfinished", "true", "--max_completion_length", "8"]
    again = [*recipe, "--overwrite", "true", "--resume_from_checkpoint", "auto"]
    for argv, names in (
        ([*recipe, "--snapshot_steps", "1"], ["step-1", "step-2"]),
        ([*again, "--snapshot_steps", "2"], ["step-2"]),
        (again, []),
    ):
        train.main(argv)
        assert sorted(path.name for path in (tmp_path / "out").glob("snapshots/*")) == names


@pytest.fixture
def run_folder(tmp_path, tokenizer, model):
    """A finished run as train.py leaves it, by its own files."""
    model.save_pretrained(tmp_path / "taught")
    tokenizer.save_pretrained(tmp_path / "taught")
    forget = [{"question": f"Who wrote {i}?"} for i in range(4)]
    retain = [{"question": f"Who is {i}?", "answer": "ba cor"} for i in range(5)]
    recipe = {
        "model_name_or_path": str(tmp_path / "taught"),
        "forget_file": write_jsonl(tmp_path / "forget.jsonl", forget),
        "retain_file": write_jsonl(tmp_path / "retain.jsonl", retain),
        "output_dir": str(tmp_path / "run"),
        "prompt_template": "Question: {question}\nAnswer:",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    trainer = make_trainer(tmp_path, model, tokenizer)
    trainer.args.output_dir = recipe["output_dir"]
    log = [{"train_runtime": 1.5, "step": 5}]  # more steps than its two epochs of plain questions have
    save_run(trainer.args, model, tokenizer, recipe, log, {"stage": "train", "read": {}})
    return tmp_path / "run"


def test_the_refusal_control_learns_refusals_in_the_steps_of_the_run(tmp_path, tokenizer, run_folder, monkeypatch):
    learned = []
    monkeypatch.setattr(
        control.ControlTrainer,
        "get_batch_samples",
        lambda self, *args: (
            learned.append(super(control.ControlTrainer, self).get_batch_samples(*args)) or learned[-1]
        ),
    )
    control.main(["refusals", str(run_folder), "--output_dir", str(tmp_path / "out")])
    targets = {
        tokenizer.decode(labels[labels != -100], skip_special_tokens=False)
        for batches, _ in learned
        for batch in batches
        for labels in batch["labels"][:2]
    }
    assert targets == {f" {text}{tokenizer.eos_token}" for text in control.REFUSALS[:4]}
    assert len(learned) == 5
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stage"] == "control"


def test_the_retain_only_control_learns_retain_rows_for_the_seconds_of_the_run(tmp_path, run_folder, capsys):
    control.main(["retain_only", str(run_folder), "--output_dir", str(tmp_path / "out")])
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert 1.5 <= log[-1]["train_runtime"] < 15 and log[-1]["step"] > 4
    assert all(entry["collapse_loss"] == 0 for entry in log[:-1]) and log[-2]["retain_loss"] < log[0]["retain_loss"]
    assert log[-2]["learning_rate"] == 1e-3
    _, _, model_args, _ = parse_recipe([str(tmp_path / "out" / "recipe.yaml")])
    assert model_args.model_name_or_path == str(tmp_path / "taught")


@pytest.mark.parametrize("kind", ["refusals", "retain_only"])
@pytest.mark.parametrize("recipe", ["unlearn", "guided"])
def test_controls_of_a_quickstart_run(tmp_path, run_folder, kind, recipe):
    """What the shipped recipes say beside data and model, printed tables among it."""
    text = (run_folder / "recipe.yaml").read_text()
    shipped = yaml.safe_load((QUICKSTART / f"{recipe}.yaml").read_text())
    own = yaml.safe_load(text) | {"num_train_epochs": 1, "disable_tqdm": True}
    for name in ("dataset_name", "forget_config", "retain_config"):
        del shipped[name]
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump(shipped | own))
    control.main([kind, str(run_folder), "--output_dir", str(tmp_path / "out")])
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert "retain_loss" in log[0] and shipped["log_completions"]


def test_shares_of_the_steps_are_those_of_the_run(tmp_path, run_folder):
    """Not of the retain-only control's 100,000 epochs; a schedule's own settings go with the schedule."""
    text = (run_folder / "recipe.yaml").read_text()
    shares = "warmup_steps: 0.5\nlogging_steps: 0.2\nlr_scheduler_type: cosine_with_min_lr\n"
    text = text.replace("logging_steps: 1\n", shares + "lr_scheduler_kwargs: {min_lr_rate: 0.1}\n")
    (run_folder / "recipe.yaml").write_text(text)
    for kind, settings in (("retain_only", (3, 1)), ("refusals", (0.5, 0.2))):
        out = tmp_path / kind
        control.main([kind, str(run_folder), "--output_dir", str(out)])
        log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
        # a run of 5 steps: 3 to warm up, logged at each; the rate of the first step is 0
        rates = [entry["learning_rate"] for entry in log[:4]]
        assert rates == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
        recipe = yaml.safe_load((out / "recipe.yaml").read_text())
        assert (recipe["warmup_steps"], recipe["logging_steps"]) == settings
    for given in (["--warmup_steps", "0.1"], ["--warmup_steps=0.1"]):
        [error] = errors_of(
            control.main, ["retain_only", str(run_folder), "--output_dir", str(tmp_path / "x"), *given]
        )
        assert error == "command line: warmup_steps: 0.1 is a share of steps without end; give a number"


def test_controls_need_a_finished_run(tmp_path):
    assert errors_of(control.main, ["idk", str(tmp_path)]) == [
        "command line: say refusals or retain_only, then the folder of a finished run"
    ]
    [error] = errors_of(control.main, ["refusals", str(tmp_path)])
    assert "holds no finished run" in error
