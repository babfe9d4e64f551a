"""The model before unlearning: its greedy answers, begun answers, and that it is asked as it was before."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div, nll_loss

from pmc_rl import original
from pmc_rl.config import PMCConfig
from pmc_rl.likelihood import mean_log_probs
from pmc_rl.original import OriginalLogLikelihood, with_original_answers
from pmc_rl.prompts import name_tokens, visited_row
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
    again = with_original_answers(forget_prompts(2), None, tokenizer, args, saved=["ba cor", "den"])  # of a checkpoint
    given = forget_prompts(2).add_column("original_completion", ["ba cor", "den"])
    assert again.to_list() == with_original_answers(given, None, tokenizer, args).to_list() == given.to_list()


def test_original_answers_that_do_not_end_stop_the_run(tokenizer, args):
    model = build_llama(tokenizer)  # never ends by itself
    [line] = errors_of(with_original_answers, forget_prompts(), model, tokenizer, args)
    assert line.startswith("7 of 7 original answers hit max_completion_length = 40")
    args.allow_unfinished = True
    assert len(with_original_answers(forget_prompts(), model, tokenizer, args)) == 7


def visits(row: dict, share: float, count: int = 400, seed: int = 0, start: str = " ") -> list[dict]:
    return [visited_row(row, visit, share, seed, 10, start) for visit in range(count)]


@pytest.mark.parametrize("start", [" ", ""])
def test_rows_that_begin_within_an_answer(start):
    asked = [{"role": "user", "content": "C?"}]
    row = {"prompt": "Q: A?", "pmc_id": 4, "original_completion": "She was  born.", "topic": "x"}
    seen = {new["pmc_id"]: new for new in visits(row, 0.5, start=start)}
    assert seen == {
        4: row,
        14: row | {"prompt": f"Q: A?{start}She", "pmc_id": 14, "original_completion": "was  born."},
        24: row | {"prompt": f"Q: A?{start}She was", "pmc_id": 24, "original_completion": "born."},
    }
    row = {"prompt": asked, "pmc_id": 2, "original_completion": "In Rome"}
    begun = {"prompt": [*asked, {"role": "assistant", "content": "In"}], "pmc_id": 12, "original_completion": "Rome"}
    assert {new["pmc_id"]: new for new in visits(row, 0.5, start=start)} == {2: row, 12: begun}
    for short in ("Lima", "Lima !", ""):
        assert visits(row | {"original_completion": short}, 0.9, 20) == [row | {"original_completion": short}] * 20


@given(st.floats(0, 0.99), st.integers(0, 99), st.integers(0, 9), st.integers(1, 30))
@settings(max_examples=50)
def test_a_share_of_the_visits_evenly_spread(share, seed, row_id, count):
    row = {"prompt": "Q: A?", "pmc_id": row_id, "original_completion": "a b c d e"}
    begun = sum(new["pmc_id"] != row_id for new in visits(row, share, count, seed))
    assert abs(begun - share * count) < 1


def test_every_cut_is_as_likely():
    row = {"prompt": "Q: A?", "pmc_id": 4, "original_completion": "one two three four five"}
    cuts = [new["pmc_id"] // 10 for new in visits(row, 0.5, 4000) if new["pmc_id"] != 4]
    assert [cuts.count(cut) / 2000 for cut in range(1, 5)] == pytest.approx([0.25] * 4, abs=0.04)
    other = row | {"pmc_id": 5}
    assert [new["prompt"] for new in visits(other, 0.5)] != [new["prompt"] for new in visits(row, 0.5)]
    assert [new["prompt"] for new in visits(row, 0.5, seed=1)] != [new["prompt"] for new in visits(row, 0.5)]


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
