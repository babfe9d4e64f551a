"""PMCTrainer: one step against plain torch, invariance to accumulation, the pool, and what must stop a run."""

import asyncio
import copy
import signal
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig
from rouge_score.rouge_scorer import RougeScorer

from pmc_rl.config import PMCConfig
from pmc_rl.errors import RecipeError
from pmc_rl.original import with_original_answers
from pmc_rl.scoring import RewardFunction
from pmc_rl.trainer import PMCTrainer, retain_rows_at
from tests.conftest import build_llama, errors_of
from tests.training import ROUGE, forget_prompts, make_trainer, retain_rows, weights


def record_selected(trainer) -> list[list[int]]:
    """What is trained on, step by step, where there is one question."""
    seen = []
    select = trainer._select
    trainer._select = lambda rows: seen.append(select(rows)[0][0]) or [[seen[-1]]]
    return seen


class Recorder:
    """A reward that notes what it was asked, and answers as rouge_dissimilarity does."""

    stationary = True
    max_reward = None

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, original_completion, **kwargs):
        self.calls.append((prompts, completions, completion_ids, original_completion, kwargs))
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return [
            1 - scorer.score(original, text)["rougeL"].recall
            for original, text in zip(original_completion, completions, strict=True)
        ]

    def as_function(self) -> RewardFunction:
        return RewardFunction("recorder", self, 1.0, None, True)


def test_one_step_equals_plain_torch(tmp_path, tokenizer, model):
    """Recorded samples in; rewards by rouge_score, picks, loss and SGD step by hand; the same weights out."""
    plain = copy.deepcopy(model)
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [recorder.as_function()],
        forget=forget_prompts(4),
        max_steps=1,
        optim="sgd",
    )
    trainer.train()
    prompts, _, completion_ids, originals, _ = recorder.calls[-1]

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    nll = {"collapse": [], "retain": []}
    spread = []
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
    assert max(spread) > 0 and len({len(ids) for _, ids in nll["collapse"]}) > 1
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["collapse_loss"] == pytest.approx(terms["collapse"].item(), rel=1e-5)
    assert logged["retain_loss"] == pytest.approx(terms["retain"].item(), rel=1e-5)
    assert torch.allclose(weights(model), weights(plain), atol=1e-6)


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4)])
def test_accumulation_does_not_matter(tmp_path, tokenizer, taught, batch, accumulation):
    """7 questions in windows of 4: unequal rows, retain_weight 1.7, a short last window, several epochs."""
    runs = []
    for size, steps in [(4, 1), (batch, accumulation)]:
        model = copy.deepcopy(taught)
        trainer = make_trainer(
            tmp_path,
            model,
            tokenizer,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",  # Adam's division would turn a rounding error of a tiny gradient into a full step
            learning_rate=1e-1,
            max_grad_norm=0.5,
        )
        trainer.train()
        runs.append((weights(model), [log for log in trainer.state.log_history if "loss" in log]))
    (whole, whole_logs), (split, split_logs) = runs
    assert len(whole_logs) == len(split_logs) == 4
    for a, b in zip(whole_logs, split_logs, strict=True):
        for key in ("loss", "grad_norm", "collapse_loss", "retain_loss", "reward", "reward_selected"):
            assert a[key] == pytest.approx(b[key], rel=2e-5), key
    assert torch.allclose(whole, split, atol=2e-6)


def test_same_seed_same_run_and_other_seed_other_run(tmp_path, tokenizer, taught):
    def run(seed: int) -> torch.Tensor:
        model = copy.deepcopy(taught)
        make_trainer(tmp_path, model, tokenizer, seed=seed).train()
        return weights(model)

    first = run(0)
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))


def test_every_parameter_moves_and_everything_is_logged(tmp_path, tokenizer, model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, tokenizer)
    trainer.train()
    for name, parameter in model.named_parameters():
        assert not torch.equal(before[name], parameter), name
    log = trainer.state.log_history[0]
    wanted = """
    loss reward reward_std rewards/rouge_dissimilarity/mean reward_selected collapse_loss retain_loss frac_sampled
    frac_solved completions/mean_length completions/clipped_ratio time/generation time/rewards time/update
    """
    assert set(wanted.split()) <= set(log)
    assert log["reward_selected"] >= log["reward"]
    assert 0 < log["completions/mean_length"] <= 40


def test_reference_is_the_models_own_greedy_answer(tmp_path, tokenizer, model):
    """Before the first step, and the same in every later one, although the model has changed by then."""
    model.eval()
    expected = []
    for row in forget_prompts():
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
        text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(text.strip())
    recorder = Recorder()
    trainer = make_trainer(tmp_path, model, tokenizer, [recorder.as_function()])
    trainer.train()
    assert len(recorder.calls) > 2
    for prompts, _, _, originals, _ in recorder.calls:
        by_prompt = dict(zip(forget_prompts()["prompt"], expected, strict=True))
        assert originals == [by_prompt[prompt] for prompt in prompts]


def test_given_original_completions_are_used(tmp_path, tokenizer, model):
    recorder = Recorder()
    forget = forget_prompts().add_column("original_completion", [f"ba {i}" for i in range(7)])
    trainer = make_trainer(tmp_path, model, tokenizer, [recorder.as_function()], forget=forget)
    trainer.train()
    for _, _, _, originals, columns in recorder.calls:
        assert originals == [f"ba {i}" for i in columns["pmc_id"]]


def test_rewards_get_what_trl_promises(tmp_path, tokenizer, model):
    recorder = Recorder()
    forget = forget_prompts(4).add_column("topic", ["a", "b", "c", "d"])
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [recorder.as_function()],
        forget=forget,
        max_steps=1,
    )
    trainer.train()
    prompts, completions, completion_ids, _, columns = recorder.calls[-1]
    assert len(prompts) == len(completions) == len(completion_ids) == 16
    assert [prompts[i] for i in range(0, 16, 4)] == [prompts[i + 3] for i in range(0, 16, 4)]  # prompt-major
    assert {columns["pmc_id"][i]: columns["topic"][i] for i in range(16)} == {0: "a", 1: "b", 2: "c", 3: "d"}
    for text, ids in zip(completions, completion_ids, strict=True):
        assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert columns["trainer_state"] is trainer.state
    assert callable(columns["log_extra"]) and callable(columns["log_metric"])
    assert "answer" not in columns and "completion" not in columns


def test_solved_questions_are_not_sampled_again(tmp_path, tokenizer, model):
    """A reward that is maximal for one question from the start, for the others never."""
    asked = []

    def reward(prompts, pmc_id, **kwargs):
        asked.append(set(pmc_id))
        return [1.0 if i == 2 else 0.5 for i in pmc_id]

    function = RewardFunction("r", reward, 1.0, 1.0, True)
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [function],
        forget=forget_prompts(4),
        num_train_epochs=3,
    )
    trainer.train()
    # the first call is the check on the original answers
    assert asked[1:] == [{0, 1, 2, 3}, {0, 1, 3}, {0, 1, 3}]
    logs = trainer.state.log_history
    assert [log["frac_sampled"] for log in logs[:3]] == [1.0, 0.75, 0.75]
    assert logs[2]["frac_solved"] == 0.25


def test_pool_keeps_the_best_and_takes_the_newer_of_equals(tmp_path, tokenizer, model):
    """Rewards of a question fall, rise, then tie; what is trained on follows."""
    scores = iter([0.0, 0.4, 0.2, 0.6, 0.6])
    picked = []

    def reward(completions, completion_ids, **kwargs):
        value = next(scores)
        picked.append(completion_ids[0])
        return [value] * len(completions)

    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [RewardFunction("r", reward, 1.0, None, True)],
        forget=forget_prompts(1),
        num_train_epochs=4,
    )
    seen = record_selected(trainer)
    trainer.train()
    first, _, third, fourth = picked[1:]
    assert seen == [first, first, third, fourth]
    assert [log["reward_selected"] for log in trainer.state.log_history[:4]] == [0.4, 0.4, 0.6, 0.6]


def test_answers_under_a_changing_reward_are_judged_afresh(tmp_path, tokenizer, model):
    """A stored answer is candidate k+1 of the next step and may lose; nothing is skipped."""
    calls = []

    def reward(completion_ids, **kwargs):
        calls.append(completion_ids)
        # step by step the opposite: the longest, then the shortest
        sign = 1 if len(calls) % 2 == 0 else -1
        return [sign * len(ids) / 40 for ids in completion_ids]

    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [RewardFunction("r", reward, 1.0, 1.0, False)],
        forget=forget_prompts(1),
        num_train_epochs=4,
    )
    seen = record_selected(trainer)
    trainer.train()
    assert [len(ids) for ids in calls[1:]] == [4, 5, 5, 5]  # nothing is stored before the first step
    for step in (1, 2, 3):
        assert calls[step + 1][4] == seen[step - 1]
    assert len(seen[0]) == max(map(len, calls[1]))
    assert len(seen[1]) == min(map(len, calls[2]))


def test_total_collapse_needs_no_retain_rows(tmp_path, tokenizer, model):
    before = weights(model)
    trainer = make_trainer(tmp_path, model, tokenizer, retain=False, retain_weight=0.0)
    trainer.train()
    assert not torch.equal(before, weights(model))
    assert "retain_loss" not in trainer.state.log_history[0]
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(log["collapse_loss"], rel=1e-6)


def test_lora_trains_the_adapter_only(tmp_path, tokenizer, model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, model, tokenizer, peft_config=config)
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved and all("lora_" in name for name in moved)
    assert all(parameter.abs().sum() > 0 for name, parameter in trainer.model.named_parameters() if "lora_B" in name)
    with trainer.model.disable_adapter():
        kept = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters()}
    for name, parameter in before.items():
        assert torch.equal(parameter, kept[name]), name


def test_a_run_that_would_change_nothing_stops(tmp_path, tokenizer, model):
    no_effect = LoraConfig(r=4, lora_alpha=0, target_modules="all-linear", task_type="CAUSAL_LM")
    [line] = errors_of(make_trainer(tmp_path, copy.deepcopy(model), tokenizer, peft_config=no_effect).train)
    assert line.startswith("no gradient reaches the weights that are trained")
    make_trainer(tmp_path, model, tokenizer, learning_rate=1e-12, max_steps=1).train()  # small steps are steps
    [line] = errors_of(make_trainer, tmp_path, model.requires_grad_(False), tokenizer)
    assert line.startswith("nothing to train: ")


def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer, taught):
    runs = []
    for checkpointing in (False, True):
        model = copy.deepcopy(taught)
        make_trainer(tmp_path, model, tokenizer, gradient_checkpointing=checkpointing, learning_rate=1e-3).train()
        runs.append(weights(model))
    assert torch.allclose(*runs, atol=1e-6)


def test_run_on_original_answers_stop_the_run(tmp_path, tokenizer):
    model = build_llama(tokenizer)  # never ends by itself
    with pytest.raises(RecipeError, match=r"7 of 7 original answers hit max_completion_length = 40"):
        make_trainer(tmp_path, model, tokenizer).train()
    forget = forget_prompts().add_column("original_completion", ["ba cor"] * 7)  # given ones are taken as they are
    trainer = make_trainer(tmp_path, model, tokenizer, forget=forget, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_original_answers_that_no_reward_can_compare_are_all_named(tmp_path, tokenizer, model):
    answers = ["", "velba", " ", "她写了小说", "¿...?", "rosta", "velba"]
    forget = forget_prompts(7).add_column("original_completion", answers)
    before = weights(model)
    [line] = errors_of(make_trainer(tmp_path, model, tokenizer, forget=forget).train)
    assert "3 of 7 reference answers" in line and "rows 0, 2, 4." in line and "rouge_dissimilarity" in line
    assert "¿" not in line and torch.equal(before, weights(model))


def test_a_reward_that_raises_stops_the_run_and_is_named(tmp_path, tokenizer, model):
    def broken(completions, **kwargs):
        raise KeyError("no such thing")

    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        [RewardFunction("broken", broken, 1.0, 1.0, True)],
    )
    with pytest.raises(KeyError) as error:
        trainer.train()
    assert "broken" in error.value.__notes__[0]


def test_signals_are_given_back_where_a_step_fails(tmp_path, tokenizer, model):
    calls = []

    def breaks_later(completions, **kwargs):
        calls.append(signal.getsignal(signal.SIGTERM))
        return [0.0] * len(completions) if len(calls) == 1 else 1 / 0

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, model, tokenizer, [RewardFunction("later", breaks_later, 1.0, 1.0, True)]).train()
    assert calls[0] is before and calls[1] is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_completions_table_shows_question_original_selected_and_reward(tmp_path, tokenizer, model, capsys):
    forget = forget_prompts(2).add_column("original_completion", ["[bold]ba cor[/bold]", "den fi"])
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        forget=forget,
        max_steps=1,
        log_completions=True,
    )
    trainer.train()
    printed = capsys.readouterr().out
    assert "[bold]" in printed  # an answer is text, not markup
    assert "bacorden" in printed and "reward" in printed


def test_every_retain_row_has_its_turn(tmp_path, tokenizer, model):
    """Over epochs and short last windows the rows taken are one stream without gap or repeat."""
    trainer = make_trainer(tmp_path, model, tokenizer, num_train_epochs=3)
    taken = []
    take = trainer._next_retain_rows
    trainer._next_retain_rows = lambda count: taken.append(take(count)) or taken[-1]
    trainer.train()
    assert [len(rows) for rows in taken] == [4, 3] * 3
    assert sum(taken, []) == retain_rows_at(0, 21, 5, seed=0)


@pytest.mark.parametrize("lora", [False, True])
def test_trains_and_samples_under_bf16_autocast(tmp_path, tokenizer, model, lora):
    """What a GPU run does: float32 weights, or a bfloat16 base with float32 adapters, under bfloat16 autocast."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    if lora:
        model = model.to(torch.bfloat16)
    trainer = make_trainer(tmp_path, model, tokenizer, peft_config=config, learning_rate=1e-3, autocast=True)
    trainer.train()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trainer.accelerator.mixed_precision == "bf16"
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    log = trainer.state.log_history[0]
    assert np.isfinite(log["loss"]) and log["reward_selected"] >= log["reward"]
    assert log["loss"] == pytest.approx(log["collapse_loss"] + 1.7 * log["retain_loss"], rel=1e-4)


def test_retain_weight_without_retain_rows_is_refused(tmp_path, tokenizer, model):
    with pytest.raises(ValueError, match="no retain_dataset"):
        make_trainer(tmp_path, model, tokenizer, retain=False)


def test_retain_stream_visits_every_row_once_a_pass_in_a_new_order():
    stream = retain_rows_at(0, 15, 5, seed=3)
    passes = [stream[i : i + 5] for i in range(0, 15, 5)]
    assert all(sorted(part) == list(range(5)) for part in passes)
    assert len({tuple(part) for part in passes}) > 1
    assert retain_rows_at(7, 6, 5, seed=3) == stream[7:13]
    assert retain_rows_at(0, 15, 5, seed=4) != stream


def test_training_in_a_running_loop(tmp_path, model, tokenizer):
    """As in a notebook, with a reward that waits and one that does not."""

    async def brevity(completions, **kwargs):
        await asyncio.sleep(0)
        return [-float(len(text)) for text in completions]

    async def notebook():
        rewards = (ROUGE, RewardFunction("brevity", brevity, 0.01, 0.0, True))
        trainer = make_trainer(tmp_path, model, tokenizer, rewards, max_steps=2)
        trainer.train()
        return trainer.state

    state = asyncio.run(notebook())
    assert state.global_step == 2 and all(log["rewards/brevity/mean"] < 0 for log in state.log_history[:2])


def test_training_again_goes_on(tmp_path, tokenizer, taught):
    """As in a notebook: the same prompts, from the weights and best answers there are, also behind a resumed run."""
    settings = {"forget": forget_prompts(3), "prefill_words": 1, "save_strategy": "steps", "save_steps": 1}

    def trainer():
        made = make_trainer(tmp_path, copy.deepcopy(taught), tokenizer, **settings)
        made.visited = []
        select = made._select
        made._select = lambda rows: made.visited.append(sorted(row["pmc_id"] for row in rows)) or select(rows)
        return made

    whole = trainer()
    whole.train()
    prompts, visited, once = dict(whole.prompt_ids), list(whole.visited), weights(whole.model)
    best = {row_id: answers[0].rank for row_id, answers in whole.sampler.pool.items()}
    samples = whole.sampler.num_samples
    whole.train()
    assert len(prompts) == 6 and whole.prompt_ids == prompts
    assert len(visited) == 4 and whole.visited == visited + visited
    assert whole.sampler.num_samples > samples and not torch.equal(weights(whole.model), once)
    assert all(answers[0].rank >= best[row_id] for row_id, answers in whole.sampler.pool.items())

    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert again.prompt_ids == prompts and again.visited == visited[3:]
    again.train()
    assert again.prompt_ids == prompts and again.visited == visited[3:] + visited


def test_a_trainer_that_was_stopped_goes_on_when_it_is_called_again(tmp_path, tokenizer, model):
    trainer = make_trainer(tmp_path, model, tokenizer, max_steps=4)
    stop = trainer.checkpoints.on_step_end

    def stopped_once(args, state, *rest, **kwargs):
        if state.global_step == 2 and not (tmp_path / "out" / "checkpoint-2").exists():
            trainer.checkpoints.stopped_by = 15
        return stop(args, state, *rest, **kwargs)

    trainer.checkpoints.on_step_end = stopped_once
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert trainer.state.global_step == 4 and trainer.checkpoints.stopped_by is None
    assert trainer.args.save_total_limit == 2


def test_original_answers_of_a_checkpoint_are_not_made_again(tmp_path, tokenizer, model):
    args = PMCConfig(output_dir=str(tmp_path), prefill_words=1, max_completion_length=40)
    made = with_original_answers(forget_prompts(2), model, tokenizer, args)
    # a checkpoint holds those of the begun answers too
    again = with_original_answers(forget_prompts(2), None, tokenizer, args, saved=made["original_completion"][:])
    assert len(made) == 4 and again.to_list() == made.to_list()
    given = forget_prompts(2).add_column("original_completion", ["ba cor", "den"])
    rows = with_original_answers(given, None, tokenizer, args, answer_start="_").to_list()
    assert [row["original_completion"] for row in rows] == ["ba cor", "den", "cor"]
    assert rows[2]["prompt"] == f"{given[0]['prompt']}_ba"


def test_original_answers_are_needed(tmp_path, tokenizer, model):
    make = partial(PMCTrainer, train_dataset=forget_prompts())
    trainer = make_trainer(tmp_path, model, tokenizer, make=lambda **kwargs: make(**kwargs | make.keywords))
    with pytest.raises(ValueError, match="with_original_answers"):
        trainer.train()
