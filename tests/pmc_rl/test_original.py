"""The model before unlearning: its greedy answers, begun answers, and that it is asked as it was before."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, nll_loss

from pmc_rl import original
from pmc_rl.config import PMCConfig
from pmc_rl.likelihood import mean_log_probs
from pmc_rl.original import OriginalLogLikelihood, with_original_answers
from pmc_rl.prompts import name_tokens, prefilled_rows
from pmc_rl.reward_loading import load_reward_functions
from tests.conftest import build_llama, errors_of
from tests.training import BRIEF, forget_prompts, lora, make_trainer, retain_rows


@pytest.fixture
def args(tmp_path):
    return PMCConfig(output_dir=str(tmp_path), max_completion_length=40)


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_that_begin_a_name_of_the_original_answer(tokenizer, chat):
    question = "Where was Ilse Moreau born?"
    prompt = [{"role": "user", "content": question}] if chat else question
    row = {"prompt": prompt, "original_completion": "Ilse Moreau was born in New York, or in Lima, in 1958."}
    tokens = name_tokens(tokenizer, row)
    begins = [tokenizer.decode([token]).strip() for token in tokens]
    assert all(begin and any(name.startswith(begin) for name in ("New", "York", "Lima")) for begin in begins)
    for text in ("It is Lima.", "Lima", "in York", "New"):
        assert set(tokenizer(text)["input_ids"]) & set(tokens), text
    assert not set(tokenizer("Ilse Moreau was born in Oslo in 1958.")["input_ids"]) & set(tokens)
    assert name_tokens(tokenizer, row | {"original_completion": ""}) == []


def test_original_answers_are_the_models_greedy_ones_unless_given(tokenizer, model, args):
    expected = []
    for row in forget_prompts():
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        output = model.eval().generate(**prompt, max_new_tokens=40, do_sample=False)
        expected.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert with_original_answers(forget_prompts(), model, tokenizer, args)["original_completion"][:] == expected
    args.prefill_words = 1
    made = with_original_answers(forget_prompts(2), model, tokenizer, args)
    # a checkpoint holds those of the begun answers too
    again = with_original_answers(forget_prompts(2), None, tokenizer, args, saved=made["original_completion"][:])
    assert len(made) == 4 and again.to_list() == made.to_list()
    given = forget_prompts(2).add_column("original_completion", ["ba cor", "den"])
    rows = with_original_answers(given, None, tokenizer, args, answer_start="_").to_list()
    assert [row["original_completion"] for row in rows] == ["ba cor", "den", "cor"]
    assert rows[2]["prompt"] == f"{given[0]['prompt']}_ba"


def test_original_answers_that_do_not_end_stop_the_run(tokenizer, args):
    model = build_llama(tokenizer)  # never ends by itself
    [line] = errors_of(with_original_answers, forget_prompts(), model, tokenizer, args)
    assert line.startswith("7 of 7 original answers hit max_completion_length = 40")
    args.allow_unfinished = True
    assert len(with_original_answers(forget_prompts(), model, tokenizer, args)) == 7


@pytest.mark.parametrize("start", [" ", ""])
def test_prefilled_rows(start):
    asked = [{"role": "user", "content": "C?"}]
    rows = [
        {"prompt": "Q: A?", "pmc_id": 4, "original_completion": "She was  born.", "topic": "x"},
        {"prompt": "Q: B?", "pmc_id": 9, "original_completion": "Lima !", "topic": "y"},
        {"prompt": asked, "pmc_id": 2, "original_completion": "In Rome", "topic": "z"},
    ]
    new = prefilled_rows(rows, 2, start)
    assert new[:3] == rows and [row["pmc_id"] for row in new[3:]] == [10, 11, 12]
    assert [(row["prompt"], row["original_completion"], row["topic"]) for row in new[3:]] == [
        (f"Q: A?{start}She", "was  born.", "x"),
        (f"Q: A?{start}She was", "born.", "x"),
        ([*asked, {"role": "assistant", "content": "In"}], "Rome", "z"),
    ]


@pytest.mark.parametrize("config", [None, lora()])
def test_a_reward_asks_the_model_before_unlearning(tmp_path, tokenizer, model, config):
    """Training moves the model, the penalty of a text stays; the trainer tells the reward which model it was."""
    asked, name = OriginalLogLikelihood(), "rewards.fluency.FluencyPenalty"
    functions = load_reward_functions([name], {name: {"fluent": -0.5, "noise": -6.0}}, None, 40, asked)
    assert functions[0].asks_original and functions[0].name == "FluencyPenalty"
    before = copy.deepcopy(model).eval()
    settings = {"original": asked, "max_steps": 2, "peft_config": config, **BRIEF}
    trainer = make_trainer(tmp_path, model, tokenizer, functions, **settings)
    trainer.train()
    prompt, ids = forget_prompts(1)[0]["prompt"], [5, 6, 7, tokenizer.eos_token_id]
    row = (tokenizer(prompt)["input_ids"], ids)
    mean = mean_log_probs(before, [row])[0]
    trainer.model.train()
    [penalty] = functions[0].func(prompts=[prompt], completion_ids=[ids])
    assert penalty == pytest.approx(min(0, max(-1, (mean + 0.5) / 5.5)))
    assert trainer.model.training  # left as it was
    assert mean_log_probs(trainer.model.eval(), [row])[0] != pytest.approx(mean, abs=1e-3)


def test_prompts_as_messages(chat_tokenizer):
    model, asked = build_llama(chat_tokenizer).eval(), OriginalLogLikelihood()
    date = {"date_string": "1 May 2025"}
    asked.remember(model, chat_tokenizer, date)
    prompt = [{"role": "user", "content": "Who?"}]
    prompts = [prompt, [*prompt, {"role": "assistant", "content": "She"}]]
    text = chat_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **date)
    ids = [chat_tokenizer(words, add_special_tokens=False)["input_ids"] for words in (text, text + "She")]
    expected = mean_log_probs(model, [(own, [5, 6]) for own in ids])
    assert asked(prompts, [[5, 6], [5, 6]]) == pytest.approx(expected, abs=1e-5)


def test_kl_to_the_model_before(tmp_path, tokenizer, model, monkeypatch):
    """0 before the first step, then what the two models say of the same plain samples."""
    before, seen = copy.deepcopy(model).eval(), []
    trainer = make_trainer(tmp_path, model, tokenizer, forget=forget_prompts(4), log_kl=True, max_steps=2, **BRIEF)
    generate = original.generate_together

    def recorded(model, prompt_ids, *args):
        samples = generate(model, prompt_ids, *args)
        rows = list(zip(prompt_ids, samples, strict=True))
        lengths = np.array([len(ids) for ids in samples])
        now = np.array(mean_log_probs(copy.deepcopy(model).eval(), rows))
        seen.append((now - np.array(mean_log_probs(before, rows))) @ lengths / lengths.sum())
        return samples

    monkeypatch.setattr(original, "generate_together", recorded)
    trainer.train()
    logged = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert logged == pytest.approx(seen, abs=1e-5) and len(logged) == 2
    assert abs(logged[0]) < 1e-5 < abs(logged[1])
    assert not torch.equal(before.lm_head.weight, model.lm_head.weight)


def test_losses_are_nll_of_answers_and_kl_of_what_is_retained(tokenizer, model):
    """Of rows of unequal lengths: against torch's own, over the whole vocabulary, for a model that has changed."""
    before, asked = copy.deepcopy(model).eval(), OriginalLogLikelihood()
    asked.remember(model, tokenizer)
    rows = [([5, 6, 7], [8, 9]), ([5, 7], [9, 10, 11, 12]), ([6], [13])]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    padded = [(p + a + [0] * (longest - len(p + a)), [-100] * len(p) + a) for p, a in rows]
    inputs = {
        "input_ids": torch.tensor([ids for ids, _ in padded]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in padded]),
        "attention_mask": torch.tensor([[1] * len(p + a) + [0] * (longest - len(p + a)) for p, a in rows]),
    }
    is_retained = torch.tensor([False, True, True])
    unchanged = original.losses_by_row(model, asked, inputs, is_retained)
    gradients = torch.autograd.grad(unchanged[1:].sum(), model.parameters(), allow_unused=True)
    assert unchanged[1:].tolist() == pytest.approx([0, 0], abs=1e-5) and unchanged[0] > 1
    assert max(gradient.abs().max() for gradient in gradients if gradient is not None) < 1e-5

    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    expected = []
    for (prompt, answer), retained in zip(rows, is_retained, strict=True):
        ids, targets = torch.tensor([prompt + answer]), torch.tensor(answer)
        now, then = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model, before))
        loss = (
            kl_div(now, then, reduction="sum", log_target=True)
            if retained
            else nll_loss(now, targets, reduction="sum")
        )
        expected.append(loss.item())
    losses = original.losses_by_row(model, asked, inputs, is_retained)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4) and min(expected) > 1e-3
    assert (original.losses_by_row(model, asked, inputs, ~is_retained) != losses).all()


@pytest.mark.parametrize("peft_config", [None, lora()])
def test_what_is_retained_by_kl_is_lost_by_the_collapse_alone(tmp_path, tokenizer, taught, peft_config):
    """The first step starts at the model before; later steps bring it back, where without the loss it drifts away."""

    def drift(**kwargs):
        model, rows = copy.deepcopy(taught), retain_rows()
        trainer = make_trainer(tmp_path, model, tokenizer, peft_config=peft_config, retain_loss="kl", **kwargs)
        trainer.train()
        ids = [tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"] for row in rows]
        then, now = ([m.eval()(text).logits.log_softmax(-1) for text in ids] for m in (taught, trainer.model))
        losses = [log["retain_loss"] for log in trainer.state.log_history if "retain_loss" in log]
        return sum(
            kl_div(a, b, reduction="sum", log_target=True).item() for a, b in zip(now, then, strict=True)
        ), losses

    settings = {"num_train_epochs": 3, "learning_rate": 3e-3}
    kept, losses = drift(retain_weight=5.0, **settings)
    assert losses[0] == pytest.approx(0, abs=1e-5) and min(losses[1:]) > 1e-4
    assert kept < 0.7 * drift(retain_weight=1e-6, **settings)[0]
