"""PMCTrainer: one step against plain torch, invariance to accumulation, and what must stop a run."""

import asyncio
import copy
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from pmc_rl import progress
from pmc_rl.data import retain_rows_at
from pmc_rl.scoring import RewardFunction
from pmc_rl.trainer import PMCTrainer
from tests.conftest import errors_of
from tests.training import BRIEF, ROUGE, forget_prompts, lora, make_trainer, retain_rows, weights

brief_trainer = partial(make_trainer, **BRIEF)


def reward_of(function, max_reward=None, name="r") -> RewardFunction:
    return RewardFunction(name, function, 1.0, max_reward, True)


def test_one_step_equals_plain_torch(tmp_path, tokenizer, model):
    """Recorded samples in; rewards by rouge_score, picks, loss and SGD step by hand; the same weights out. Rewards get
    what TRL promises."""
    plain, calls, scorer = copy.deepcopy(model), [], RougeScorer(["rougeL"], use_stemmer=True)

    def dissimilarity(prompts, completions, completion_ids, **columns):
        calls.append((prompts, completions, completion_ids, columns))
        pairs = zip(columns["original_completion"], completions, strict=True)
        return [1 - scorer.score(*pair)["rougeL"].recall for pair in pairs]

    forget = forget_prompts(4).add_column("topic", ["a", "b", "c", "d"])
    settings = {"forget": forget, "max_steps": 1, "optim": "sgd"}
    trainer = make_trainer(tmp_path, model, tokenizer, [reward_of(dissimilarity)], **settings)
    trainer.train()
    prompts, completions, completion_ids, columns = calls[-1]
    originals = columns["original_completion"]
    assert len(prompts) == len(completions) == len(completion_ids) == 16
    assert [prompts[i] for i in range(0, 16, 4)] == [prompts[i + 3] for i in range(0, 16, 4)]  # prompt-major
    assert {columns["pmc_id"][i]: columns["topic"][i] for i in range(16)} == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert completions == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completion_ids]
    assert columns["trainer_state"] is trainer.state
    assert callable(columns["log_extra"]) and callable(columns["log_metric"])
    assert "answer" not in columns and "completion" not in columns

    nll, spread = {"collapse": [], "retain": []}, []
    for start in range(0, 16, 4):
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids[start : start + 4]]
        assert len(set(texts)) > 1
        rewards = [1 - scorer.score(originals[start], text)["rougeL"].recall for text in texts]
        spread.append(max(rewards) - min(rewards))
        ids = completion_ids[start + int(np.argmax(rewards))]
        nll["collapse"].append((tokenizer(prompts[start])["input_ids"], ids))
    for i in retain_rows_at(0, 4, 5, seed=0):
        row = retain_rows()[i]
        answer = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        nll["retain"].append((tokenizer(row["prompt"])["input_ids"], answer))
    terms = {}
    for name, rows in nll.items():
        losses = []
        for prompt, answer in rows:
            log_probs = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            losses += [-log_probs[len(prompt) + i - 1, token] for i, token in enumerate(answer)]
        terms[name] = torch.stack(losses).mean()
    loss = terms["collapse"] + 1.7 * terms["retain"]
    loss.backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 1e-2 * parameter.grad

    logged = trainer.state.log_history[0]
    wanted = """
    loss reward reward_std rewards/r/mean reward_selected collapse_loss retain_loss frac_sampled frac_solved
    completions/mean_length completions/clipped_ratio time/generation time/rewards time/update
    """
    assert set(wanted.split()) <= set(logged) and logged["reward_selected"] >= logged["reward"]
    assert max(spread) > 0 and len({len(ids) for _, ids in nll["collapse"]}) > 1
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["collapse_loss"] == pytest.approx(terms["collapse"].item(), rel=1e-5)
    assert logged["retain_loss"] == pytest.approx(terms["retain"].item(), rel=1e-5)
    assert torch.allclose(weights(model), weights(plain), atol=1e-6)


def test_accumulation_and_checkpointing_do_not_matter_but_the_seed_does(tmp_path, tokenizer, taught):
    """7 questions in windows of 4: unequal rows, retain_weight 1.7, a short last window, several epochs."""

    def run(batch, accumulation, **kwargs):
        # Adam's division would turn a rounding error of a tiny gradient into a full step
        settings = {"optim": "sgd", "learning_rate": 1e-1, "max_grad_norm": 0.5}
        settings |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(tmp_path, copy.deepcopy(taught), tokenizer, **settings, **kwargs)
        trainer.train()
        return weights(trainer.model), [log for log in trainer.state.log_history if "loss" in log]

    whole, whole_logs = run(4, 1)
    split, split_logs = run(1, 4, gradient_checkpointing=True)
    assert len(whole_logs) == len(split_logs) == 4
    for a, b in zip(whole_logs, split_logs, strict=True):
        for key in ("loss", "grad_norm", "collapse_loss", "retain_loss", "reward", "reward_selected"):
            assert a[key] == pytest.approx(b[key], rel=2e-5), key
    assert torch.allclose(whole, split, atol=2e-6)
    first, [log] = run(4, 1, seed=1, max_steps=1)
    assert log["completions/mean_length"] != whole_logs[0]["completions/mean_length"]


def test_num_selected_rows_a_question_and_num_retained_to_retain(tmp_path, tokenizer, model):
    """Three different answers each, in the micro-batch of their question; the loss is the mean over their tokens."""
    longest = reward_of(lambda completion_ids, **kwargs: [len(ids) / 40 for ids in completion_ids])
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    settings |= {"forget": forget_prompts(4), "num_selected": 3, "num_generations": 8, "num_retained": 2}
    trainer = make_trainer(tmp_path, model, tokenizer, [longest], **settings)
    seen, select = [], trainer.select_completions
    trainer.select_completions = lambda rows: seen.append(select(rows)) or seen[-1]
    steps, build = [], trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: steps.append(build(*args)[0]) or (steps[-1], None)
    trainer.train()
    [answers], [batches] = seen, steps
    assert [len({tuple(ids) for ids in of_row}) for of_row in answers] == [3] * 4
    assert all(len(a) >= len(b) >= len(c) for a, b, c in answers)
    tokens = sum(len(ids) for of_row in answers for ids in of_row)
    for batch, of_batch in zip(batches, (answers[:2], answers[2:]), strict=True):
        assert len(batch["input_ids"]) == 2 * 3 + 2 * 2
        for labels, completion in zip(batch["labels"], sum(of_batch, []), strict=False):
            assert labels[labels != -100].tolist() == completion
        np.testing.assert_allclose(batch["row_weights"][0], [1 / tokens] * 6 + [0] * 4)
        assert (batch["row_weights"][1][:6] == 0).all() and (batch["row_weights"][1][6:] > 0).all()


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_a_question_without_an_answer_that_passes_is_not_learned(tmp_path, tokenizer, model, retain_loss):
    """Of four the gate lets two pass, then none; the others' rows to retain stay in the step."""
    gate = {0, 2}
    passes = reward_of(lambda pmc_id, **kwargs: [float(row_id in gate) for row_id in pmc_id])
    passes.floor = 1.0
    settings = {"forget": forget_prompts(4), "max_steps": 1, "retain_loss": retain_loss}
    trainer = make_trainer(tmp_path, copy.deepcopy(model), tokenizer, [passes], **settings)
    steps, build = [], trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: steps.append(build(*args)[0]) or (steps[-1], None)
    trainer.train()
    learned = [answer.completion_ids for _, best in trainer.window for answer in best]
    assert {row["pmc_id"] for row, best in trainer.window if best} == gate
    [[batch]], [log, _] = steps, trainer.state.log_history
    assert [labels[labels != -100].tolist() for labels in batch["labels"][:2]] == learned
    assert (batch["row_weights"] > 0).tolist() == [[True] * 2 + [False] * 4, [False] * 2 + [True] * 4]
    assert log["frac_passed"] == 0.5
    gate.clear()
    trainer = make_trainer(tmp_path, model, tokenizer, [passes], **settings)
    trainer.train()  # a divergence that is 0 at first is no reason to stop
    log = trainer.state.log_history[0]
    assert log["frac_passed"] == log["collapse_loss"] == 0 and (log["retain_loss"] > 1e-2) == (retain_loss == "nll")


def test_samples_that_teach_nothing_or_no_end_are_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr(progress, "logger", SimpleNamespace(warning_once=said.append))
    progress.warn_of_samples({"loss": 1.0})  # nothing was sampled: all is solved
    progress.warn_of_samples({"completions/clipped_ratio": 0.5, "frac_passed": 0.5})
    assert not said
    progress.warn_of_samples({"completions/clipped_ratio": 0.6, "frac_passed": 0.4})
    assert [line.partition(" hit")[0].partition(" had")[0] for line in said] == [
        "Over half of the samples",
        "Over half of the questions",
    ]


def test_total_collapse_needs_no_retain_rows(tmp_path, tokenizer, model):
    before = weights(model)
    trainer = brief_trainer(tmp_path, model, tokenizer, retain=False, retain_weight=0.0, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert not torch.equal(before, weights(model)) and "retain_loss" not in log
    assert log["loss"] == pytest.approx(log["collapse_loss"], rel=1e-6)
    with pytest.raises(ValueError, match="no retain_dataset"):
        brief_trainer(tmp_path, model, tokenizer, retain=False)


def test_lora_trains_the_adapter_only(tmp_path, tokenizer, model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = brief_trainer(tmp_path, model, tokenizer, peft_config=lora(), max_steps=2)
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved and all("lora_" in name for name in moved)
    assert all(parameter.abs().sum() > 0 for name, parameter in trainer.model.named_parameters() if "lora_B" in name)
    kept = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters()}
    for name, parameter in before.items():
        assert torch.equal(parameter, kept[name]), name


@pytest.mark.parametrize("peft_config", [None, lora()])
def test_trains_and_samples_under_bf16_autocast(tmp_path, tokenizer, model, peft_config):
    """What a GPU run does: float32 weights, or a bfloat16 base with float32 adapters, under bfloat16 autocast."""
    model = model.to(torch.bfloat16) if peft_config else model
    settings = {"peft_config": peft_config, "learning_rate": 1e-3, "autocast": True, "max_steps": 1}
    trainer = brief_trainer(tmp_path, model, tokenizer, **settings)
    trainer.train()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trainer.accelerator.mixed_precision == "bf16"
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    log = trainer.state.log_history[0]
    assert np.isfinite(log["loss"]) and log["reward_selected"] >= log["reward"]
    assert log["loss"] == pytest.approx(log["collapse_loss"] + 1.7 * log["retain_loss"], rel=1e-4)


def test_a_run_that_would_change_nothing_stops(tmp_path, tokenizer, model):
    no_effect = lora(lora_alpha=0)
    [line] = errors_of(brief_trainer(tmp_path, copy.deepcopy(model), tokenizer, peft_config=no_effect).train)
    assert line.startswith("no gradient reaches the weights that are trained")
    brief_trainer(tmp_path, model, tokenizer, learning_rate=1e-12, max_steps=1).train()  # small steps are steps
    [line] = errors_of(brief_trainer, tmp_path, model.requires_grad_(False), tokenizer)
    assert line.startswith("nothing to train: ")


def test_original_answers_that_no_reward_can_compare_are_all_named(tmp_path, tokenizer, model):
    answers = ["", "velba", " ", "她写了小说", "¿...?", "rosta", "velba"]
    forget = forget_prompts(7).add_column("original_completion", answers)
    before = weights(model)
    [line] = errors_of(make_trainer(tmp_path, model, tokenizer, forget=forget).train)
    assert "3 of 7 reference answers" in line and "rows 0, 2, 4." in line and "rouge_dissimilarity" in line
    assert "¿" not in line and torch.equal(before, weights(model))
    make = lambda **kwargs: PMCTrainer(**kwargs | {"train_dataset": forget_prompts()})  # noqa: E731
    with pytest.raises(ValueError, match="with_original_answers"):
        make_trainer(tmp_path, model, tokenizer, make=make).train()


def test_a_reward_that_raises_is_named_and_signals_are_given_back(tmp_path, tokenizer, model):
    handlers = []

    def breaks_later(completions, **kwargs):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return [0.0] * len(completions) if len(handlers) == 1 else 1 / 0

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError) as error:
        brief_trainer(tmp_path, model, tokenizer, [reward_of(breaks_later, name="broken")]).train()
    assert "broken" in error.value.__notes__[0]
    assert handlers[0] is before and handlers[1] is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_completions_table_shows_question_original_selected_and_reward(tmp_path, tokenizer, model, capsys):
    forget = forget_prompts(2).add_column("original_completion", ["[bold]ba cor[/bold]", "den fi"])
    brief_trainer(tmp_path, model, tokenizer, forget=forget, max_steps=1, log_completions=True).train()
    printed = capsys.readouterr().out
    assert "[bold]" in printed  # an answer is text, not markup
    assert "bacorden" in printed and "reward" in printed


@pytest.mark.parametrize("num_retained", [1, 3])
def test_every_retain_row_has_its_turn(tmp_path, tokenizer, model, num_retained):
    """Over epochs and short last windows the rows taken are one stream: permutation after permutation."""
    trainer = brief_trainer(tmp_path, model, tokenizer, num_train_epochs=3, num_retained=num_retained)
    taken, take = [], trainer._next_retain_rows
    trainer._next_retain_rows = lambda count: taken.append(take(count)) or taken[-1]
    trainer.train()
    stream = retain_rows_at(0, 21 * num_retained, 5, seed=0)
    assert [len(rows) for rows in taken] == [4 * num_retained, 3 * num_retained] * 3 and sum(taken, []) == stream
    passes = [stream[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(part) == list(range(5)) for part in passes) and len({tuple(part) for part in passes}) > 1
    assert retain_rows_at(7, 6, 5, seed=0) == stream[7:13] != retain_rows_at(7, 6, 5, seed=4)


def test_training_in_a_running_loop(tmp_path, model, tokenizer):
    """As in a notebook, with a reward that waits and one that does not."""

    async def brevity(completions, **kwargs):
        await asyncio.sleep(0)
        return [-float(len(text)) for text in completions]

    async def notebook():
        rewards = (ROUGE, RewardFunction("brevity", brevity, 0.01, 0.0, True))
        trainer = brief_trainer(tmp_path, model, tokenizer, rewards, max_steps=2)
        trainer.train()
        return trainer.state

    state = asyncio.run(notebook())
    assert state.global_step == 2 and all(log["rewards/brevity/mean"] < 0 for log in state.log_history[:2])


def test_training_again_goes_on(tmp_path, tokenizer, taught):
    """As in a notebook: the same prompts, from the weights and best answers there are, also behind a resumed run."""
    short = reward_of(lambda completions, **kwargs: [-float(len(text)) for text in completions])  # never solved
    settings = {"forget": forget_prompts(3), "prefill_share": 0.5, "num_train_epochs": 4, "save_strategy": "steps"}
    settings["save_steps"] = 3

    def trainer():
        made = brief_trainer(tmp_path, copy.deepcopy(taught), tokenizer, [short], **settings)
        made.visited, select = [], made.select_completions
        made.select_completions = lambda rows: made.visited.append(sorted(r["pmc_id"] for r in rows)) or select(rows)
        return made

    whole = trainer()
    whole.train()
    visited, once = list(whole.visited), weights(whole.model)
    best = {row_id: answers[0].reward for row_id, answers in whole.sampler.pool.items()}
    samples = whole.sampler.num_samples
    whole.train()
    assert any(i >= 3 for ids in visited for i in ids)  # begun answers
    assert len(visited) == 4 and whole.visited == visited + visited
    assert whole.sampler.num_samples > samples and not torch.equal(weights(whole.model), once)
    assert all(answers[0].reward >= best[row_id] for row_id, answers in whole.sampler.pool.items())

    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert again.visited == visited[3:]
    again.train()
    assert again.visited == visited[3:] + visited


def test_a_trainer_that_was_stopped_goes_on_when_it_is_called_again(tmp_path, tokenizer, model):
    trainer = brief_trainer(tmp_path, model, tokenizer, max_steps=2)
    stop = trainer.checkpoints.on_step_end

    def stopped_once(args, state, *rest, **kwargs):
        if state.global_step == 1 and not (tmp_path / "out" / "checkpoint-1").exists():
            trainer.checkpoints.stopped_by = 15
        return stop(args, state, *rest, **kwargs)

    trainer.checkpoints.on_step_end = stopped_once
    trainer.train()
    assert trainer.state.global_step == 1
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert trainer.state.global_step == 2 and trainer.checkpoints.stopped_by is None
    assert trainer.args.save_total_limit == 2
