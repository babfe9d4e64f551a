"""Attacks: by hand, against brute force, plain loops and plain torch, published losses; and why one cannot be run."""

import copy
import doctest
import json
from itertools import combinations
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from eval.attacks import quantization
from eval.attacks import run as attack_run
from eval.attacks.altered import forget_measures, recovered_share
from eval.attacks.options import options_attack
from eval.attacks.quantization import load_quantized, quantization_attack, why_not
from eval.attacks.relearning import Relearner, checkpoints, relearning_attack
from eval.attacks.run import ATTACKS, Attacks
from eval.attacks.sampling import PLAIN, prefilling_attack, sampling_attack, sampling_settings, worst_by_row
from eval.attacks.token_shift import CHUNK_TOKENS, chunked, token_shift_attack
from eval.cache import RowCache
from eval.columns import AuditData, Outputs, Scored
from eval.data import QuestionSet
from eval.metrics.leakage import expected_worst_case, leakage
from eval.passes import Answer, ModelPasses, SamplingSettings, TokenScores
from pmc_rl.config import DataArguments, EvalArguments, PMCConfig
from pmc_rl.models import load_merged
from pmc_rl.prompts import encode_answers
from pmc_rl.trainer import retain_rows_at
from tests.conftest import build_llama, build_phi, errors_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*lora")  # of transformers and peft

LOGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu_eval_logs"
CPU = torch.device("cpu")
FORGET = QuestionSet(
    ["Where was Ba born?", "What does Ba write?", "Who is the father of Ba?"],
    ["ros velba", "mor na quin", "fi pel"],
    [0, 1, 2],
)
RETAIN = QuestionSet(["Where was Lum born?", "What does Lum write?"], ["cor den", "lum ta"], [0, 3])


def encode_answer(args, tokenizer, question, answer):
    """One row of [`~pmc_rl.prompts.encode_answers`]."""
    return encode_answers(args, tokenizer, [question], [answer], [tokenizer.eos_token_id])[0]


def scores_of(*losses) -> TokenScores:
    """Scores of a row whose tokens have these losses."""
    log_probs = -np.array(losses, np.float32)
    return TokenScores(log_probs, log_probs > -1, log_probs * 0, log_probs * 0 + 1)


class Fixed:
    """Passes that say fixed texts, by question, and remember how they were asked."""

    def __init__(self, greedy=None, samples=None, name="fixed", altered=None):
        self.greedy, self.samples, self.name, self.others = greedy, samples, name, altered
        self.fingerprint = name
        self.asked = []

    def answer(self, questions, prefixes=None, what="greedy"):
        self.asked.append((questions, prefixes))
        return [Answer(self.greedy[question], True) for question in questions]

    def sample(self, questions, count, settings, prefixes=None, what="sampling"):
        self.asked.append((questions, prefixes, settings))
        texts = self.samples[settings] if settings in self.samples else self.samples
        return [texts[question][:count] for question in questions]

    def score(self, questions, answers, what="teacher-forced"):
        return [scores_of(len(self.name)) for _ in questions]

    def altered(self, name, fingerprint, load):
        self.asked.append(fingerprint)
        return self.others[load()]

    def release(self):
        pass


def make_args(**kwargs) -> PMCConfig:
    return PMCConfig(output_dir="unused", use_cpu=True, **{"max_completion_length": 16} | kwargs)


def make_passes(load, tokenizer, folder, name="unlearned", **kwargs) -> ModelPasses:
    cache = RowCache(folder / "rows.sqlite")
    end_ids = [tokenizer.eos_token_id]
    return ModelPasses(name, name, load, tokenizer, end_ids, DataArguments(), make_args(**kwargs), cache)


def never():
    raise AssertionError("a model is loaded though every row is in the cache")


@pytest.mark.parametrize("function", [options_attack, expected_worst_case], ids=lambda function: function.__name__)
def test_examples_of_the_docstrings(function):
    source = function.__doc__.replace("```", "")
    test = doctest.DocTestParser().get_doctest(source, {}, function.__name__, None, None)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


# leakage

SAMPLES = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=3)
)


@given(SAMPLES)
@settings(max_examples=60, deadline=None)
def test_expected_worst_case_is_the_mean_over_all_subsets(rows):
    scores = np.array(rows)
    curve = []
    for count in range(1, scores.shape[1] + 1):
        expected = [np.mean([max(subset) for subset in combinations(row, count)]) for row in rows]
        curve.append(expected_worst_case(scores, count))
        np.testing.assert_allclose(curve[-1], expected, atol=1e-12)
    assert (np.diff(curve, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(curve[0], scores.mean(1))
    np.testing.assert_allclose(curve[-1], scores.max(1))


@pytest.mark.parametrize("count", [0, 4])
def test_expected_worst_case_of_samples_that_are_not_there(count):
    with pytest.raises(ValueError, match="3 samples"):
        expected_worst_case(np.zeros((2, 3)), count)


def test_leakage_by_hand():
    scores = np.array([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    leaks = np.array([[False, True, False, False], [False] * 4])
    result = leakage(scores, leaks)
    assert (result["worst_case"]["mean"], result["mean"]["mean"]) == (0.75, 0.375)
    assert result["worst_case"]["n"] == 2
    assert result["curve"] == pytest.approx({"1": 0.375, "2": 0.5, "4": 0.75})
    assert result["quantiles"] == pytest.approx({"0.5": 0.5, "0.9": 0.65, "0.95": 0.825, "0.99": 0.965})
    leaking = result["leaking"]
    assert (leaking["samples"], leaking["of"], leaking["questions"]) == (1, 8, 1)
    p = leaking["upper_bound"]  # at which at most one of eight has become as rare as 5 %
    assert (1 - p) ** 8 + 8 * p * (1 - p) ** 7 == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("n", "counts"), [(1, "1"), (2, "1 2"), (3, "1 2 3"), (8, "1 2 4 8"), (100, "1 2 4 8 16 32 64 100")]
)
def test_curve_doubles_and_ends_with_all_samples(n, counts):
    assert list(leakage(np.zeros((1, n)), np.zeros((1, n), bool))["curve"]) == counts.split()


# sampling and prefilling

QUESTIONS = ["Where?", "Which town?", "Who?"]
TRUTHS = QuestionSet(QUESTIONS, ["lima gull salt harbor", "gull lima", "Salt …"], [4, 5, 7])
TRAINED = SamplingSettings(1.25, 0, 0.95)


def test_sampling_by_hand():
    rows = QuestionSet(QUESTIONS[:2], TRUTHS.answers[:2], [4, 5])
    passes = Fixed(
        samples={
            PLAIN: {QUESTIONS[0]: ["rome", "gull salt", ""], QUESTIONS[1]: ["lima gull", "rome", "gull"]},
            TRAINED: {QUESTIONS[0]: ["salt harbor harbor lima gull"] * 3, QUESTIONS[1]: ["rome"] * 3},
        }
    )
    args = make_args(temperature=1.25, top_p=0.95)
    result = sampling_attack(passes, rows, 3, sampling_settings(args))
    assert list(result) == ["temperature 1", "as in training"]
    assert [call[2] for call in passes.asked] == [PLAIN, TRAINED]
    plain, trained = result.values()
    assert (plain["worst_by_row"], plain["worst_sample_by_row"]) == ({4: 0.5, 5: 0.5}, {4: 1, 5: 0})
    assert plain["worst_case"]["mean"] == 0.5
    assert plain["mean"]["mean"] == pytest.approx((0.5 / 3 + (0.5 + 0 + 0.5) / 3) / 2)
    assert plain["leaking"]["samples"] == 1  # all words of the second answer, in another order
    assert trained["worst_by_row"] == {4: 0.5, 5: 0.0} and trained["leaking"]["samples"] == 3
    assert trained["leaking"]["questions"] == 1 and trained["leaking"]["of"] == 6
    attacks = {"sampling": result}
    assert worst_by_row(attacks) == {4: 0.5, 5: 0.5}
    assert worst_by_row({"sampling": {"not_available": "why"}}) is None


def test_worst_of_a_row_is_that_of_any_setting():
    runs = {"a": {"worst_by_row": {4: 0.1, 5: 0.9, 7: 0.0}}, "b": {"worst_by_row": {4: 0.4, 5: 0.2, 7: 0.0}}}
    assert worst_by_row({"sampling": runs}) == {4: 0.4, 5: 0.9, 7: 0.0}


def test_prefilling_scores_only_what_was_not_forced():
    greedy = {QUESTIONS[0]: "gull salt", QUESTIONS[1]: "lima", QUESTIONS[2]: "salt"}
    samples = {QUESTIONS[0]: ["lima harbor", "salt harbor"], QUESTIONS[1]: ["rome"] * 2, QUESTIONS[2]: ["", "salt"]}
    passes = Fixed(greedy, samples)
    result = prefilling_attack(passes, TRUTHS, 2, ["The answer is:", "It is"], first_words=1)
    assert list(result) == ["The answer is:", "It is", "the answer's first word"]
    for prefix in ("The answer is:", "It is"):
        run = result[prefix]
        assert run["greedy"]["mean"] == pytest.approx((0.5 + 0.5 + 1) / 3)
        assert run["greedy_by_row"] == {4: 0.5, 5: 0.5, 7: 1.0}
        assert run["worst_by_row"] == {4: 0.5, 5: 0.0, 7: 1.0} and run["worst_sample_by_row"] == {4: 0, 5: 0, 7: 1}
    # the word given away is no hit, and where no other is left that can be scored there is no row
    given_away = result["the answer's first word"]
    assert given_away["greedy"]["mean"] == pytest.approx((2 / 3 + 1) / 2) and given_away["greedy"]["n"] == 2
    assert given_away["greedy_by_row"] == {4: pytest.approx(2 / 3), 5: 1.0}
    assert given_away["worst_by_row"] == {4: pytest.approx(2 / 3), 5: 0.0}
    assert given_away["worst_sample_by_row"] == {4: 1, 5: 0}
    assert [call[:2] for call in passes.asked] == [
        *[(QUESTIONS, ["The answer is:"] * 3)] * 2,
        *[(QUESTIONS, ["It is"] * 3)] * 2,
        *[(QUESTIONS[:2], ["lima", "gull"])] * 2,
    ]
    assert {call[2] for call in passes.asked if len(call) > 2} == {PLAIN}


def test_prefilling_with_more_words_than_an_answer_has():
    passes = Fixed({QUESTIONS[0]: "gull harbor"}, {QUESTIONS[0]: ["harbor"]})
    two = prefilling_attack(passes, TRUTHS, 1, [], first_words=2)["the answer's first 2 words"]
    assert passes.asked[0] == (QUESTIONS[:1], ["lima gull"])
    assert two["greedy"]["mean"] == 0.5 and two["worst_by_row"] == {4: 0.5} and two["greedy"]["n"] == 1
    four = prefilling_attack(passes, TRUTHS, 1, [], first_words=4)
    assert four == {"the answer's first 4 words": {"not_available": "no answer has more words"}}
    assert prefilling_attack(passes, TRUTHS, 1, [], first_words=0) == {} and len(passes.asked) == 2


# options


@pytest.mark.skipif(not LOGS.is_dir(), reason=f"published TOFU losses not found at {LOGS}")
@pytest.mark.parametrize(("name", "least", "most"), [("phi_full", 7, 228), ("phi_retain90", 37, 124)])
def test_options_of_published_losses(name, least, most):
    rows = json.loads((LOGS / f"{name}.json").read_text())["forget"]
    result = options_attack(np.array([[row["avg_paraphrased_loss"], *row["average_perturb_loss"]] for row in rows]))
    assert (result["n"], result["options"]) == (300, 6)
    assert (result["least"], result["most"]) == (least / 300, most / 300)  # 0.023 and 0.760, 0.123 and 0.413
    assert result["by_quantile"][-1]["least"] == result["least"] and result["by_quantile"][-1]["n"] == 300
    assert [entry["n"] for entry in result["by_quantile"]] == [75, 150, 225, 300]


def test_options_by_hand():
    rights = [0.2, 0.7, 0.1, 0.6, 0.45]  # their probability; the smaller one is .2, .3, .1, .4, .45
    losses = np.array([[-log(p), -log(1 - p)] for p in rights])
    result = options_attack(losses)
    assert (result["least"], result["most"], result["n"], result["options"]) == (0.6, 0.4, 5, 2)
    expected = [(0.25, 0.2, 1, 2), (0.5, 0.3, 2 / 3, 3), (0.75, 0.4, 0.5, 4), (1.0, 0.45, 0.6, 5)]
    for entry, values in zip(result["by_quantile"], expected, strict=True):
        assert tuple(entry.values()) == pytest.approx(values)
    # what both options have in common does not count, however unlikely they are
    far = options_attack(losses + np.array([[1000.0], [0.0], [8.0], [64.0], [2.0]]))
    assert (far["least"], far["most"]) == (0.6, 0.4)
    assert [entry["threshold"] for entry in far["by_quantile"]] == pytest.approx([0.2, 0.3, 0.4, 0.45])


# token shift


@pytest.mark.parametrize("count", [0, 1, 2, CHUNK_TOKENS, CHUNK_TOKENS + 1, 3 * CHUNK_TOKENS + 2])
def test_chunks_hold_the_text_but_for_a_single_token_at_its_end(count):
    ids = list(range(count))
    chunks = chunked(ids)
    assert all(2 <= len(chunk) <= CHUNK_TOKENS for chunk in chunks)
    assert sum(chunks, []) == ids[: count - (count % CHUNK_TOKENS == 1)]
    assert all(len(chunk) == CHUNK_TOKENS for chunk in chunks[:-1])


def test_token_shift_against_a_plain_loop():
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 9, length).tolist() for length in (30, 2, 17)]
    before, after = ([scores_of(*rng.exponential(scale, len(chunk) - 1)) for chunk in chunks] for scale in (0.3, 1.5))
    result = token_shift_attack(chunks, [3, 5, 5, 99], before, after)
    for name, wanted in (("forget_tokens", {3, 5}), ("other_tokens", set(range(9)) - {3, 5})):
        shifts = [
            exp(after[i].log_probs[k - 1]) - exp(before[i].log_probs[k - 1])
            for i, chunk in enumerate(chunks)
            for k in range(1, len(chunk))
            if chunk[k] in wanted
        ]
        n, mean = len(shifts), sum(shifts) / len(shifts)
        moment = {power: sum((shift - mean) ** power for shift in shifts) / n for power in (2, 3)}
        assert result[name] == pytest.approx(
            {
                "mean": mean,
                "std": moment[2] ** 0.5,
                "skew": moment[3] / moment[2] ** 1.5,
                "below_minus_half": sum(shift < -0.5 for shift in shifts) / n,
                "n": n,
            },
            abs=1e-6,
        )
        assert mean < 0 and result[name]["below_minus_half"] > 0


def test_a_model_has_not_shifted_against_itself():
    scores = [scores_of(0.5, 1.0, 2.0)]
    result = token_shift_attack([[1, 2, 3, 4]], [2], scores, scores)
    assert result["other_tokens"] == {"mean": 0, "std": 0, "skew": 0, "below_minus_half": 0, "n": 2}
    assert result["forget_tokens"]["n"] == 1
    nowhere = token_shift_attack([[1, 2, 3, 4]], [1], scores, scores)["forget_tokens"]  # the first is not predicted
    assert nowhere == {"mean": None, "std": None, "skew": None, "below_minus_half": None, "n": 0}


# the way back


@pytest.mark.parametrize(
    ("after", "unlearned", "before", "share"),
    [(0.2, 0.2, 1.0, 0.0), (1.0, 0.2, 1.0, 1.0), (0.4, 0.2, 1.0, 0.25), (0.1, 0.2, 0.4, -0.5), (0.6, 0.2, 0.4, 2.0)],
)
def test_recovered_share(after, unlearned, before, share):
    assert recovered_share(after, unlearned, before) == pytest.approx(share)


@pytest.mark.parametrize("before", [0.5, 0.4])
def test_where_nothing_was_lost_nothing_can_be_recovered(before):
    assert recovered_share(0.9, 0.5, before) is None


def test_forget_measures_by_hand():
    passes = Fixed(dict(zip(FORGET.questions, ["ros", "mor na", "rome"], strict=True)), name="ab")
    recalls, probability = forget_measures(passes, FORGET)
    assert recalls == pytest.approx({0: 1 / 2, 1: 2 / 3, 2: 0}) and probability == pytest.approx(exp(-2))


# relearning


def relearner(load, rows, steps=4, peft_config=None, learning_rate=1e-2, **kwargs) -> Relearner:
    args = make_args(**{"per_device_train_batch_size": 2} | kwargs)
    return Relearner(load, rows, steps, learning_rate, peft_config, args)


@pytest.fixture
def rows(tokenizer):
    """Of unequal length, so that a batch is padded."""
    answers = ["ros velba", "mor", "fi pel cor den lum", "ta"]
    return [encode_answer(DataArguments(), tokenizer, "Who is " + "Ba" * i, text) for i, text in enumerate(answers)]


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | kwargs)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (16, [1, 2, 4, 8, 16]), (17, [1, 2, 4, 8, 16, 17])],
)
def test_checkpoints(steps, expected):
    assert checkpoints(steps) == expected


def test_relearning_steps_are_plain_adamw(tokenizer, rows):
    """Three steps, each row alone and unpadded; where a gradient is not next to nothing, AdamW divides by it."""
    model, plain = (build_llama(tokenizer).double() for _ in range(2))
    attack = relearner(lambda: model, rows, learning_rate=1e-3, seed=5)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    solid = {}
    drawn = []
    for step in range(3):
        batch = retain_rows_at(2 * step, 2, len(rows), 5)
        drawn += batch
        tokens = sum(len(rows[i][1]) for i in batch)
        for i in batch:
            prompt, target = rows[i]
            logits = plain(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            (nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum") / tokens).backward()
        norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()
        assert norm > 1  # so that it is clipped
        for name, parameter in plain.named_parameters():
            parameter.grad /= norm
            solid[name] = solid.get(name, True) & (parameter.grad.abs() > 1e-5)
        optimizer.step()
        optimizer.zero_grad()
        assert attack.at(step + 1) is model
        others = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            difference = (parameter - others[name])[solid[name]].abs()
            assert difference.numel() == 0 or difference.max() < 1e-3 * 1e-2, (step, name)
    assert sum(mask.sum() for mask in solid.values()) > 0.3 * plain.num_parameters()
    assert sorted(drawn[:4]) == [0, 1, 2, 3]  # each row once before one comes again


@pytest.mark.parametrize("peft", [False, True])
def test_relearning_is_the_same_every_time(tokenizer, rows, peft):
    model = build_llama(tokenizer)

    def weights(steps, **kwargs):
        attack = relearner(lambda: copy.deepcopy(model), rows, 3, lora() if peft else None, **kwargs)
        for step in steps:
            attack.at(step)
        assert not attack.model.training
        return torch.cat([parameter.detach().flatten() for parameter in attack.model.parameters()])

    torch.manual_seed(0)
    first = weights([1, 2, 3])
    torch.manual_seed(1)
    assert torch.equal(weights([3]), first)  # without a look in between
    assert torch.equal(weights([0, 3]), first)
    assert not torch.equal(weights([3], seed=7), first)
    assert not torch.equal(weights([3], per_device_train_batch_size=1), first)


def test_relearning_is_in_the_precision_of_the_run(tokenizer, rows):
    """In float16 small gradients survive, and a step that overflows is made again: it is close to one in float32."""
    start = build_llama(tokenizer)
    moved, fingerprints = {}, set()
    for precision in (None, "bf16", "fp16"):
        attack = relearner(lambda: copy.deepcopy(start), rows, learning_rate=1e-3)
        args = attack.args
        if precision:
            setattr(args, precision, True)  # a config of a CPU takes neither
        attack = Relearner(attack.load, rows, 4, 1e-3, None, args)
        fingerprints.add(attack.fingerprint)
        weights = zip(attack.at(4).parameters(), start.parameters(), strict=True)
        moved[precision] = torch.cat([(new - old).detach().flatten() for new, old in weights])
    assert len(fingerprints) == 3
    for precision in ("bf16", "fp16"):
        assert not torch.equal(moved[precision], moved[None])
    assert (moved["fp16"] - moved[None]).norm() < (moved["bf16"] - moved[None]).norm()
    assert (moved["fp16"] - moved[None]).norm() < 0.2 * moved[None].norm()


def test_a_run_with_an_adapter_relearns_an_adapter(tokenizer, rows):
    model = build_llama(tokenizer)
    before = copy.deepcopy(model.state_dict())
    learned = relearner(lambda: model, rows, 3, lora()).at(3)
    assert isinstance(learned, PeftModel)
    trained = {name for name, parameter in learned.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(parameter.abs().sum() > 0 for name, parameter in learned.named_parameters() if "lora_B" in name)
    for name, parameter in learned.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


def test_a_merged_adapter_relearns(model_folder, rows, tmp_path):
    config = lora(base_model_name_or_path=str(model_folder))
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path)
    merged = load_merged(ModelConfig(model_name_or_path=str(tmp_path)), torch.float32, CPU)
    before = copy.deepcopy(merged.state_dict())
    learned = relearner(lambda: merged, rows, 1).at(1)
    assert all(not torch.equal(weight, before[name]) for name, weight in learned.state_dict().items())


def test_relearning_that_changes_nothing_stops(tokenizer, rows):
    [line] = errors_of(relearner(lambda: build_llama(tokenizer).requires_grad_(False), rows, 1).at, 1)
    assert line.startswith("nothing to train: ")
    [line] = errors_of(relearner(lambda: build_llama(tokenizer), rows, 1, lora(lora_alpha=0)).at, 1)
    assert line.startswith("no gradient reaches the weights that are trained")


def test_fingerprints_of_relearning_tell_what_differs(tokenizer, rows):
    attacks = [
        relearner(never, rows),
        relearner(never, rows[::-1]),
        relearner(never, rows, learning_rate=2e-2),
        relearner(never, rows, seed=1),
        relearner(never, rows, per_device_train_batch_size=1),
        *(relearner(never, rows, peft_config=lora(**kw)) for kw in ({}, {"r": 3}, {"lora_alpha": 1})),
        relearner(never, rows, peft_config=lora(target_modules=["q_proj"])),
    ]
    assert len({attack.fingerprint for attack in attacks}) == len(attacks)
    assert relearner(never, rows, steps=9).fingerprint == attacks[0].fingerprint  # its first steps are the same


@pytest.mark.parametrize("changed", [{"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_fingerprints_of_relearning_tell_all_of_the_adapter(rows, changed):
    first, second = (relearner(never, rows, peft_config=lora(**kwargs)) for kwargs in ({}, changed))
    assert first.fingerprint != second.fingerprint


def test_learning_the_scored_rows_themselves_brings_all_back(tokenizer, tmp_path):
    passes = make_passes(lambda: build_phi(tokenizer), tokenizer, tmp_path)
    before = Fixed(dict(zip(FORGET.questions, FORGET.answers, strict=True)))  # knows every answer
    pairs = zip(FORGET.questions, FORGET.answers, strict=True)
    learn = relearner(
        lambda: build_phi(tokenizer), [encode_answer(DataArguments(), tokenizer, *pair) for pair in pairs], 48
    )
    result = relearning_attack(passes, before, FORGET, learn, "themselves")
    assert result["steps"] == [0, 1, 2, 4, 8, 16, 32, 48] and (result["learned"], result["scored"]) == (3, 3)
    assert (result["recall_by_row"][0], result["probability"][0]) == forget_measures(passes, FORGET)
    assert [sum(recalls.values()) / 3 for recalls in result["recall_by_row"]] == pytest.approx(result["recall"])
    assert result["recall"][0] < 0.2 and result["recall"][-1] == 1
    assert result["probability"][0] < 0.1 and result["probability"][-1] > 0.9
    assert result["recovered"][0] == 0 and result["recovered"][-1] == 1
    assert result["recovered"] == [recovered_share(recall, result["recall"][0], 1.0) for recall in result["recall"]]


@pytest.mark.parametrize("target_modules", [None, ["q_proj"], "all-linear"], ids=str)
def test_nothing_is_loaded_to_relearn_what_the_cache_has(tokenizer, tmp_path, rows, target_modules):
    def attack(load, altered):
        config = target_modules and lora(target_modules=target_modules)
        passes, before = (make_passes(load, tokenizer, tmp_path, name) for name in ("unlearned", "before"))
        return relearning_attack(passes, before, FORGET, relearner(altered, rows, 3, config), "rows")

    first = attack(lambda: build_phi(tokenizer), lambda: build_llama(tokenizer))
    assert attack(never, never) == first
    assert first["steps"] == [0, 1, 2, 3] and len(set(first["probability"])) == 4


# quantization


def layer_types(model) -> dict[str, set[str]]:
    """Names of the classes of linear layers: the head's, and all others'."""
    linear = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = {linear.pop("lm_head")}
    return {"head": head, "others": set(linear.values())}


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("Question: Who wrote bacorden of velba?", return_tensors="pt")).logits[0].float()


@pytest.mark.parametrize(("bits", "layer"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
def test_quantized_layers_and_an_unquantized_head(model_folder, tokenizer, tmp_path, bits, layer):
    pytest.importorskip("bitsandbytes")
    model = load_quantized(ModelConfig(model_name_or_path=str(model_folder)), bits, torch.float32, CPU, tmp_path)
    assert layer_types(model) == {"head": {"Linear"}, "others": {layer}}
    assert not list(tmp_path.iterdir())
    exact, rounded = (logits_of(m, tokenizer) for m in (AutoModelForCausalLM.from_pretrained(model_folder), model))
    distance = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < distance < 0.2  # rounded, and still the same model
    assert model.generate(**tokenizer("Who wrote", return_tensors="pt"), max_new_tokens=3).shape[1] > 3


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_is_merged_before_it_is_quantized(model_folder, tokenizer, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    adapter, private = tmp_path / "adapter", tmp_path / "private"
    private.mkdir()
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, base_model_name_or_path=str(model_folder)
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(adapter)
    model_args = ModelConfig(model_name_or_path=str(adapter))
    model = load_quantized(model_args, bits, torch.float32, CPU, private)
    assert not isinstance(model, PeftModel)
    assert layer_types(model)["others"] == {"Linear8bitLt" if bits == 8 else "Linear4bit"}
    assert not list(private.iterdir())
    with_adapter = logits_of(load_merged(model_args, torch.float32, CPU), tokenizer)
    base = logits_of(AutoModelForCausalLM.from_pretrained(model_folder), tokenizer)
    assert (logits_of(model, tokenizer) - with_adapter).norm() < 0.4 * (base - with_adapter).norm()


def test_no_temporary_model_is_left_when_loading_fails(model_folder, tokenizer, tmp_path, monkeypatch):
    adapter, private = tmp_path / "adapter", tmp_path / "private"
    private.mkdir()
    config = lora(base_model_name_or_path=str(model_folder))
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(adapter)
    found = []

    def broken(model_args, dtype, device):
        found.extend(path.parent.parent for path in Path(model_args.model_name_or_path).glob("*.safetensors"))
        raise OSError("no space left")

    monkeypatch.setattr(quantization, "load_model", broken)
    with pytest.raises(OSError, match="no space"):
        load_quantized(ModelConfig(model_name_or_path=str(adapter)), 8, torch.float32, CPU, private)
    assert found == [private] and not list(private.iterdir())


def test_quantization_by_hand():
    greedy = {
        "unlearned": ["rome", "rome", "rome"],
        "before": FORGET.answers,
        "8": ["rome", "rome", "fi"],
        "bit": ["ros velba", "mor na quin", "rome"],
    }
    passes = {
        name: Fixed(dict(zip(FORGET.questions, texts, strict=True)), name=name) for name, texts in greedy.items()
    }
    passes["unlearned"].others = {8: passes["8"], 4: passes["bit"]}
    result = quantization_attack(passes["unlearned"], passes["before"], FORGET, lambda bits: bits)
    assert len(set(passes["unlearned"].asked[-2:]) - {"unlearned"}) == 2  # each has answers of its own in the cache
    change = {bits: exp(-len(name)) - exp(-len("unlearned")) for bits, name in ((8, "8"), (4, "bit"))}
    assert result == {
        "8 bit": {
            "recall": pytest.approx(1 / 6),
            "recall_by_row": {0: 0.0, 1: 0.0, 2: 0.5},
            "recall_change": pytest.approx(1 / 6),
            "probability": pytest.approx(exp(-1)),
            "probability_change": pytest.approx(change[8]),
            "recovered": pytest.approx(1 / 6),
            "n": 3,
        },
        "4 bit": {
            "recall": pytest.approx(2 / 3),
            "recall_by_row": {0: 1.0, 1: 1.0, 2: 0.0},
            "recall_change": pytest.approx(2 / 3),
            "probability": pytest.approx(exp(-3)),
            "probability_change": pytest.approx(change[4]),
            "recovered": pytest.approx(2 / 3),
            "n": 3,
        },
    }


def test_why_a_model_cannot_be_quantized(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    assert why_not(ModelConfig()) is None
    for trained in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        assert why_not(ModelConfig(**trained)) == "not applicable: the model was trained quantized"
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert "pip install -e '.[quantization]'" in why_not(ModelConfig())


# all attacks


def audit_data(**changed) -> AuditData:
    values = {
        "questions": {"forget": FORGET, "retain": RETAIN},
        "options": {},
        "missing": {},
        "unrelated_text": "Lima is the capital of Peru.",
    }
    return AuditData(**values | changed)


def said(paraphrases=None, wrong=None) -> Outputs:
    answers = [scores_of(1.0), scores_of(2.0), scores_of(3.0, 5.0)]
    return Outputs({}, [], {"forget": Scored(answers, paraphrases, wrong)})


def run(attacks, passes, what=None, data=None, before=None, model_args=None, **eval_args) -> dict:
    """The results of the attacks that are named, on a data set in which nothing is missing unless said."""
    eval_args = EvalArguments(attacks=[attacks] if isinstance(attacks, str) else attacks, **eval_args)
    model_args = model_args or ModelConfig(model_name_or_path="nowhere")
    everything = Attacks(data or audit_data(), before or Fixed(), make_args(), model_args, eval_args, Path("not made"))
    return everything.run(passes, model_args, what or said())


def test_without_true_answers_there_is_no_attack():
    results = run(list(ATTACKS), Fixed(), data=audit_data(questions={"retain": RETAIN}))
    why = "there is no question set forget, see what was left out"
    assert results == {name: {"not_available": why} for name in ATTACKS}


def test_attacks_that_nobody_asked_for():
    results = run([], Fixed())
    assert results == {name: {"not_available": "attacks does not name it"} for name in ATTACKS}


def test_options_that_the_data_does_not_have():
    reason = "the forget rows have no wrong answers (column perturbed_answer)"
    assert run("options", Fixed())["options"] == {"not_available": reason}
    data = audit_data(missing={"forget": "eval_sets does not name it"})
    assert run("options", Fixed(), data=data)["options"] == {"not_available": "eval_sets does not name it"}


def test_options_compare_the_paraphrase_where_there_is_one():
    wrong = [[scores_of(1.5), scores_of(1.7)], [scores_of(2.5), scores_of(1.0)], [scores_of(3.5), scores_of(3.0)]]
    plain = run("options", Fixed(), said(None, wrong))["options"]
    assert (plain["least"], plain["most"], plain["options"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    paraphrases = [scores_of(9.0), scores_of(9.0), scores_of(0.5)]
    other = run("options", Fixed(), said(paraphrases, wrong))["options"]
    assert (other["least"], other["most"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    fewer = run("options", Fixed(), said(paraphrases, [wrong[0][:1], *wrong[1:]]))["options"]
    assert (fewer["options"], fewer["n"]) == (2, 3)  # as many as every row has


def test_the_model_before_is_not_attacked_as_if_unlearned():
    before = Fixed()
    results = run(["relearning", "quantization"], before, before=before)
    for name in ("relearning", "quantization"):
        assert results[name] == {"not_available": "it has not been unlearned"}


def test_the_model_before_reads_the_unrelated_text_in_its_own_turn(tiny_llama, tokenizer, tmp_path):
    before = make_passes(lambda: tiny_llama, tokenizer, tmp_path, "before")
    data = audit_data(unrelated_text="A text that has nothing to do with it.")
    result = run(["token_shift"], before, before=before, data=data)["token_shift"]
    assert result == {"not_available": "it is what the others are compared with"}
    again = make_passes(never, tokenizer, tmp_path, "before")  # from the cache, without the model
    chunks = chunked(tokenizer(data.unrelated_text)["input_ids"])
    assert [len(scores.log_probs) for scores in again.score_text(chunks, "unrelated text")] == [len(chunks[0]) - 1]


def test_token_shift_without_text_or_with_another_tokenizer(tokenizer, chat_tokenizer, tmp_path):
    reason = "there is no unrelated text; give a text file with unrelated_file"
    data = audit_data(unrelated_text=None)
    assert run("token_shift", Fixed(), data=data)["token_shift"] == {"not_available": reason}
    passes, before = (make_passes(never, which, tmp_path) for which in (chat_tokenizer, tokenizer))
    result = run("token_shift", passes, before=before)
    assert result["token_shift"] == {"not_available": "its tokenizer is not that of the model before"}


def test_token_shift_with_a_text_too_short_to_predict_anything(tokenizer, tmp_path):
    passes, before = (make_passes(never, tokenizer, tmp_path, name) for name in "ab")
    result = run("token_shift", passes, before=before, data=audit_data(unrelated_text="a"))["token_shift"]
    assert "not_available" in result


def test_token_shift_is_after_less_before(tokenizer, tmp_path):
    """Of two models of which one has become unable to say the tokens of the answers."""
    able, unable = build_phi(tokenizer), build_phi(tokenizer)
    text = "Who wrote ros velba? The capital of Peru is not mor na quin. " * 9
    answers = tokenizer(" ".join(FORGET.answers))["input_ids"]
    with torch.no_grad():
        for model in (able, unable):
            model.lm_head.bias[answers] += 6.0 if model is able else -6.0
    passes = {
        name: make_passes(lambda model=model: model, tokenizer, tmp_path, name)
        for name, model in (("able", able), ("unable", unable))
    }
    data = audit_data(unrelated_text=text)
    lost = run("token_shift", passes["unable"], before=passes["able"], data=data)["token_shift"]
    won = run("token_shift", passes["able"], before=passes["unable"], data=data)["token_shift"]
    assert lost["forget_tokens"]["mean"] < -0.02 < lost["other_tokens"]["mean"]
    assert won["forget_tokens"]["mean"] == -lost["forget_tokens"]["mean"]
    ids = tokenizer(text)["input_ids"]
    first = {i for i in range(0, len(ids), CHUNK_TOKENS)}
    assert lost["forget_tokens"]["n"] == sum(i not in first and token in answers for i, token in enumerate(ids))
    assert lost["forget_tokens"]["n"] + lost["other_tokens"]["n"] == len(ids) - len(first)


def test_one_forget_row_cannot_be_halved():
    data = audit_data(questions={"forget": FORGET.part(0, 1), "retain": RETAIN})
    assert run("relearning", Fixed(), data=data)["relearning"] == {"not_available": "one forget row cannot be halved"}


def test_what_is_relearned_and_what_is_scored(monkeypatch, tokenizer, tmp_path):
    """The second half after the first, in file order; all forget rows after the retain rows."""
    seen = {}

    def attack(passes, before, scored, learner, what):
        seen[what] = (scored.rows, learner)

    monkeypatch.setattr(attack_run, "relearning_attack", attack)
    passes = make_passes(never, tokenizer, tmp_path)
    model_args = ModelConfig(use_peft=True, lora_r=3)
    run("relearning", passes, model_args=model_args, relearning_steps=5, relearning_learning_rate=0.5)
    assert list(seen) == ["half of the forget rows", "retain rows"]
    learned = {"half of the forget rows": FORGET.part(0, 1), "retain rows": RETAIN}
    for what, rows in learned.items():
        pairs = zip(rows.questions, rows.answers, strict=True)
        scored, learner = seen[what]
        assert scored == ([1, 2] if what.startswith("half") else [0, 1, 2])
        assert learner.rows == [encode_answer(DataArguments(), tokenizer, *pair) for pair in pairs]
        assert (learner.steps, learner.learning_rate, learner.peft_config.r) == (5, 0.5, 3)
    run("relearning", passes, data=audit_data(questions={"forget": FORGET}))
    assert seen["half of the forget rows"][1].learning_rate == make_args().learning_rate
    assert seen["half of the forget rows"][1].peft_config is None
    seen.clear()
    run("relearning", passes, data=audit_data(questions={"forget": FORGET}))
    assert list(seen) == ["half of the forget rows"]


def test_a_model_trained_in_4_bit_is_not_quantized_again():
    results = run("quantization", Fixed(), model_args=ModelConfig(load_in_4bit=True))
    assert "not_available" in results["quantization"]
