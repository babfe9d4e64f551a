"""Attacks: by hand, against brute force, plain loops and plain torch, published losses; and why one cannot be run."""

import copy
from dataclasses import replace
from itertools import combinations
from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from eval.attacks import altered, options, quantization, relearning, run, sampling, token_shift
from eval.attacks.sampling import PLAIN, WIDE
from eval.attacks.token_shift import CHUNK_TOKENS
from eval.cache import RowCache
from eval.columns import Outputs, Scored
from eval.metrics.leakage import doublings, expected_worst_case, leakage
from eval.metrics.semantic import Similarity
from eval.passes import Answer, ModelPasses, SamplingSettings
from eval.sets import AuditData, QuestionSet
from pmc_rl.config import DataArguments, EvalArguments, PMCConfig
from pmc_rl.data import retain_rows_at
from pmc_rl.models import load_merged
from pmc_rl.prompts import encode_answers
from tests.conftest import build_phi, errors_of
from tests.training import scores_of, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*lora")  # of transformers and peft

CPU = torch.device("cpu")
QUESTIONS = ["Where was Ba born?", "What does Ba write?", "Who is the father of Ba?"]
FORGET = QuestionSet(QUESTIONS, ["ros velba", "mor na quin", "fi pel"], [0, 1, 2])
RETAIN = QuestionSet(["Where was Lum born?", "What does Lum write?"], ["cor den", "lum ta"], [0, 3])
TRUTHS = QuestionSet(QUESTIONS, ["lima gull salt harbor", "gull lima", "Salt …"], [4, 5, 7])
# nothing is missing
DATA = AuditData({"forget": FORGET, "retain": RETAIN}, {}, {}, "Lima is the capital of Peru.")


def encoded(tokenizer, rows: QuestionSet):
    return encode_answers(DataArguments(), tokenizer, rows.questions, rows.answers, [tokenizer.eos_token_id])


def plain(question):
    """The question within other words."""
    return next(known for known in QUESTIONS if known in question)


class Fixed:
    """Passes that give fixed texts in the order of QUESTIONS, and the length of their name as each loss."""

    similarity = None

    def __init__(self, *greedy, samples=None, name="fixed"):
        self.greedy = dict(zip(QUESTIONS, greedy, strict=bool(greedy)))
        self.samples, self.name, self.fingerprint = samples, name, name
        self.asked = []  # the calls

    def answer(self, questions, prefixes=None, what="greedy"):
        self.asked.append((questions, prefixes))
        return [Answer(self.greedy[plain(question)], True) for question in questions]

    def sample(self, questions, count, settings, prefixes=None, what="sampling"):
        self.asked.append((questions, prefixes, settings))
        texts = dict(zip(QUESTIONS, self.samples[settings], strict=True))
        return [texts[plain(question)][:count] for question in questions]

    def score(self, questions, answers, what="teacher-forced"):
        return [scores_of(len(self.name)) for _ in questions]

    def score_text(self, chunks, what):
        self.asked.append(list(map(len, chunks)))
        return [scores_of(*[len(self.name)] * (len(chunk) - 1)) for chunk in chunks]

    def tokenizer(self, text):
        return {"input_ids": list(map(ord, text))}

    def altered(self, name, fingerprint, load):
        self.asked.append((name, fingerprint))
        return load()

    def release(self):
        pass


def make_args(**kwargs) -> PMCConfig:
    return PMCConfig(output_dir="unused", use_cpu=True, **{"max_completion_length": 16} | kwargs)


def make_passes(load, tokenizer, folder, name="unlearned") -> ModelPasses:
    cache = RowCache(folder / "rows.sqlite")
    return ModelPasses(name, name, load, tokenizer, [tokenizer.eos_token_id], DataArguments(), make_args(), cache)


def never(*args):
    raise AssertionError("a model is loaded though every row is in the cache")


# leakage


@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=2 * n, max_size=2 * n)))
def test_expected_worst_case_is_the_mean_over_all_subsets(values):
    scores = np.array(values).reshape(2, -1)
    for count in range(1, scores.shape[1] + 1):
        expected = [np.mean([max(subset) for subset in combinations(row, count)]) for row in scores]
        np.testing.assert_allclose(expected_worst_case(scores, count), expected, atol=1e-12)


def test_leakage_by_hand():
    scores = np.array([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    result = leakage(scores, scores == 1)
    assert (result["worst_case"]["mean"], result["worst_case"]["n"], result["mean"]["mean"]) == (0.75, 2, 0.375)
    assert result["curve"] == pytest.approx({"1": 0.375, "2": 0.5, "4": 0.75})
    assert result["quantiles"] == pytest.approx({"0.5": 0.5, "0.9": 0.65, "0.95": 0.825, "0.99": 0.965})
    leaking = result["leaking"]
    assert (leaking["samples"], leaking["of"], leaking["questions"]) == (1, 8, 1)
    p = leaking["upper_bound"]  # at which at most one of eight has become as rare as 5 %
    assert (1 - p) ** 8 + 8 * p * (1 - p) ** 7 == pytest.approx(0.05)
    points = {1: [1], 2: [1, 2], 3: [1, 2, 3], 16: [1, 2, 4, 8, 16], 17: [1, 2, 4, 8, 16, 17]}
    assert {last: doublings(last) for last in points} == points


# sampling and prefilling


def test_sampling_by_hand():
    trained = SamplingSettings(1.25, 0, 0.95)
    samples = {
        PLAIN: [["rome", "gull salt", ""], ["lima gull", "rome", "gull"], []],
        WIDE: [["rome"] * 3, [""] * 3, []],
        trained: [["salt harbor harbor lima gull"] * 3, ["rome", "gull lima", ""], []],
    }
    passes, settings = Fixed(samples=samples), sampling.sampling_settings(make_args(temperature=1.25, top_p=0.95))
    result = sampling.sampling_attack(passes, TRUTHS.part(0, 2), 3, settings)
    assert list(result) == ["temperature 1", "temperature 2 among 10 tokens", "as in training"]
    assert [call[2] for call in passes.asked] == [PLAIN, WIDE, trained]
    plain, wide, as_trained = result.values()
    assert wide["worst_by_row"] == {4: 0.0, 5: 0.0}
    assert (plain["worst_by_row"], plain["worst_sample_by_row"]) == ({4: 0.5, 5: 0.5}, {4: 1, 5: 0})
    assert (plain["worst_case"]["mean"], plain["mean"]["mean"]) == (0.5, pytest.approx(1.5 / 6))
    assert plain["leaking"]["samples"] == 1  # all words of the second answer, in another order
    assert as_trained["worst_by_row"] == {4: 0.5, 5: 1.0}
    assert (as_trained["leaking"]["samples"], as_trained["leaking"]["questions"]) == (4, 2)
    assert sampling.worst_by_row({"sampling": result}) == {4: 0.5, 5: 1.0}
    assert sampling.worst_by_row({"sampling": {"not_available": "why"}}) is None


def test_fact_recall_under_attack_by_hand():
    """The second truth has no fact; a name told in other words counts, another one in the same words does not."""
    rows = QuestionSet(QUESTIONS, ["Ba was born in Lima in 1958.", "he writes poems", "Carlos Lum."], [4, 5, 7])
    same_words, other_words = "Ba was born in Oslo in 1951.", "LIMA; it was fifty-eight"
    samples = {PLAIN: [[same_words, other_words], ["he writes poems"] * 2, ["Lum", "Carlos"]]}
    passes = Fixed(same_words, "he writes poems", "Lum was it", samples=samples)
    result = sampling.prefilling_attack(passes, rows, 2, ["It is"], first_words=[])["It is"]
    assert result["fact_greedy_by_row"] == {4: 0.0, 7: 0.5} and result["greedy_by_row"][4] == pytest.approx(5 / 7)
    assert result["fact_worst_by_row"] == {4: 0.5, 7: 0.5}
    worst = result["fact_worst_case"]
    assert (worst["mean"], worst["n"], worst["missing"]) == (0.5, 2, 1)
    measures = altered.forget_measures(passes, rows)
    assert measures["fact_recall"]["mean"] == 0.25 and measures["fact_recall_by_row"] == {4: 0.0, 7: 0.5}
    assert altered.forget_measures(passes, rows.part(1, 2))["fact_recall"]["mean"] is None


def test_semantic_similarity_under_attack_by_hand():
    """The highest of each question's samples, and that of greedy answers, also of an altered model's."""
    cosines = {"harbor": 1, "lima": 1, "…": 1, "rome": 0, "gull": 0.6, "salt": 0.8}  # with the truths, by last word
    vectors = {word: [cosine, (1 - cosine**2) ** 0.5] for word, cosine in cosines.items()}
    encoder = SimpleNamespace(encode=lambda texts, **_: np.array([vectors[text.split()[-1]] for text in texts]))
    passes = Fixed(
        "gull", "rome", "salt", samples={PLAIN: [["rome", "lima gull"], ["rome", "lima"], ["salt", "rome"]]}
    )
    passes.similarity = Similarity(encoder, {})
    result = sampling.prefilling_attack(passes, TRUTHS, 2, ["It is"], first_words=[])["It is"]
    assert result["semantic_greedy"]["mean"] == pytest.approx((0.6 + 0 + 0.8) / 3)
    assert result["semantic_worst_case"]["mean"] == pytest.approx((0.6 + 1 + 0.8) / 3)
    assert altered.forget_measures(passes, TRUTHS)["semantic"] == result["semantic_greedy"]


def test_prefilling_scores_only_what_was_not_forced():
    samples = {PLAIN: [["lima harbor", "salt harbor"], ["rome"] * 2, ["", "salt"]]}
    passes = Fixed("gull salt", "lima", "salt", samples=samples)
    result = sampling.prefilling_attack(passes, TRUTHS, 2, ["The answer is:"], first_words=[1])
    assert list(result) == ["The answer is:", "the answer's first word"]
    fixed, given_away = result.values()
    assert fixed["greedy"]["mean"] == pytest.approx(2 / 3) and fixed["greedy_by_row"] == {4: 0.5, 5: 0.5, 7: 1.0}
    assert fixed["worst_by_row"] == {4: 0.5, 5: 0.0, 7: 1.0} and fixed["worst_sample_by_row"] == {4: 0, 5: 0, 7: 1}
    # the word given away is no hit, and where no other is left that can be scored there is no row
    assert given_away["greedy_by_row"] == {4: pytest.approx(2 / 3), 5: 1.0} and given_away["greedy"]["n"] == 2
    assert given_away["worst_by_row"] == {4: pytest.approx(2 / 3), 5: 0.0}
    assert given_away["worst_sample_by_row"] == {4: 1, 5: 0}
    same, first_word = (QUESTIONS, ["The answer is:"] * 3), (QUESTIONS[:2], ["lima", "gull"])
    assert passes.asked == [same, (*same, PLAIN), first_word, (*first_word, PLAIN)]
    two = sampling.prefilling_attack(passes, TRUTHS, 1, [], first_words=[2])["the answer's first 2 words"]
    assert passes.asked[-1][:2] == (QUESTIONS[:1], ["lima gull"]) and two["greedy_by_row"] == {4: 0.5}
    half = sampling.prefilling_attack(passes, TRUTHS, 1, [], first_words=[0.5])["the first 50% of the answer"]
    assert passes.asked[-1][:2] == (QUESTIONS[:2], ["lima gull", "gull"]) and half["greedy_by_row"] == {4: 0.5, 5: 1.0}
    tenth = sampling.prefilling_attack(passes, TRUTHS, 1, [], first_words=[0.1, 1])  # one word at least
    assert tenth["the first 10% of the answer"] == tenth["the answer's first word"]
    four = sampling.prefilling_attack(passes, TRUTHS, 1, [], first_words=[4])
    assert four == {"the answer's first 4 words": {"not_available": "no answer has more words"}}
    assert sampling.prefilling_attack(passes, TRUTHS, 1, [], first_words=[]) == {}


def test_rewording_asks_in_other_words_and_scores_as_ever():
    samples = {PLAIN: [["lima harbor", "salt harbor"], ["rome"] * 2, ["", "salt"]]}
    passes = Fixed("gull salt", "lima", "salt", samples=samples)
    result = sampling.rewording_attack(passes, TRUTHS, 2, ["A salt {role} asks: {question}"])
    reworded = [f"A salt {{role}} asks: {question}" for question in QUESTIONS]
    assert passes.asked == [(reworded, None), (reworded, None, PLAIN)]
    [asked] = result.values()
    assert asked["greedy_by_row"] == {4: 0.5, 5: 0.5, 7: 1.0} and asked["worst_by_row"] == {4: 0.5, 5: 0.0, 7: 1.0}
    assert asked["leaking"]["samples"] == 1  # a word of the wording, which the plain question does not hold
    assert sampling.rewording_attack(passes, TRUTHS, 2, []) == {}


def test_the_best_of_several_right_answers_counts_in_attacks():
    rows = replace(TRUTHS, further=[["Salt"], [], ["of Oslo", "in Lima"]])
    passes = Fixed("", "", "", samples={PLAIN: [["salt", "rome"], ["rome"] * 2, ["rome", "in Lima"]]})
    result = sampling.prefilling_attack(passes, rows, 2, ["It is"], first_words=[])["It is"]
    assert result["worst_by_row"] == {4: 1.0, 5: 0.0, 7: 1.0} and result["leaking"]["samples"] == 2
    assert result["fact_worst_by_row"] == {4: 1.0, 7: 1.0}


# options


@pytest.mark.parametrize(("name", "least", "most"), [("phi_full", 7, 228), ("phi_retain90", 37, 124)])
def test_options_of_published_losses(tofu_logs, name, least, most):
    losses = [[row["avg_paraphrased_loss"], *row["average_perturb_loss"]] for row in tofu_logs[name]["forget"]]
    result = options.options_attack(np.array(losses))
    assert (result["n"], result["options"]) == (300, 6)
    assert (result["least"], result["most"]) == (least / 300, most / 300)  # 0.023 and 0.760, 0.123 and 0.413
    assert [entry["n"] for entry in result["by_quantile"]] == [75, 150, 225, 300]


def test_options_by_hand():
    rights = [0.2, 0.7, 0.1, 0.6, 0.45]  # their probability; the smaller one is .2, .3, .1, .4, .45
    losses = np.array([[-log(p), -log(1 - p)] for p in rights])
    result = options.options_attack(losses)
    assert (result["least"], result["most"], result["n"], result["options"]) == (0.6, 0.4, 5, 2)
    expected = [(0.25, 0.2, 1, 2), (0.5, 0.3, 2 / 3, 3), (0.75, 0.4, 0.5, 4), (1.0, 0.45, 0.6, 5)]
    for entry, values in zip(result["by_quantile"], expected, strict=True):
        assert tuple(entry.values()) == pytest.approx(values)
    # what both options have in common does not count, however unlikely they are
    far = options.options_attack(losses + np.array([[1000.0], [0.0], [8.0], [64.0], [2.0]]))
    assert [entry["threshold"] for entry in far["by_quantile"]] == pytest.approx([0.2, 0.3, 0.4, 0.45])


# token shift


def test_chunks_hold_the_text_but_for_a_single_token_at_its_end():
    ids, full = list(range(3 * CHUNK_TOKENS)), [CHUNK_TOKENS]
    cases = {0: [], 1: [], 2: [2], CHUNK_TOKENS: full, CHUNK_TOKENS + 1: full, 2 * CHUNK_TOKENS + 2: [*full * 2, 2]}
    for count, lengths in cases.items():
        chunks = token_shift.chunked(ids[:count])
        assert list(map(len, chunks)) == lengths and sum(chunks, []) == ids[: sum(lengths)]


def test_token_shift_against_a_plain_loop():
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 9, length).tolist() for length in (30, 2, 17)]
    before, after = ([scores_of(*rng.exponential(scale, len(chunk) - 1)) for chunk in chunks] for scale in (0.3, 1.5))
    result = token_shift.token_shift_attack(chunks, [3, 5, 5, 99], before, after)
    for name, wanted in (("forget_tokens", {3, 5}), ("other_tokens", set(range(9)) - {3, 5})):
        places = [(i, k) for i, chunk in enumerate(chunks) for k in range(1, len(chunk)) if chunk[k] in wanted]
        shifts = [exp(after[i].log_probs[k - 1]) - exp(before[i].log_probs[k - 1]) for i, k in places]
        mean, std, below = np.mean(shifts), np.std(shifts), np.mean(np.array(shifts) < -0.5)
        skew = ((shifts - mean) ** 3).mean() / std**3
        expected = {"mean": mean, "std": std, "skew": skew, "below_minus_half": below, "n": len(shifts)}
        assert result[name] == pytest.approx(expected, abs=1e-6)
        assert mean < 0 < below
    # a model has not shifted against itself, and the first token is not predicted
    same = token_shift.token_shift_attack([[1, 2, 3, 4]], [1], *[[scores_of(0.5, 1.0, 2.0)]] * 2)
    assert same["other_tokens"] == {"mean": 0, "std": 0, "skew": 0, "below_minus_half": 0, "n": 3}
    assert same["forget_tokens"] == {"mean": None, "std": None, "skew": None, "below_minus_half": None, "n": 0}


# relearning


def relearner(load, rows, steps=4, peft_config=None, learning_rate=1e-2, **kwargs) -> relearning.Relearner:
    args = make_args(**{"per_device_train_batch_size": 2} | kwargs)
    return relearning.Relearner(load, rows, steps, learning_rate, peft_config, args)


@pytest.fixture
def rows(tokenizer):
    """Of unequal length, so that a batch is padded."""
    questions = ["Who is " + "Ba" * i for i in range(4)]
    return encoded(tokenizer, QuestionSet(questions, ["ros velba", "mor", "fi pel cor den lum", "ta"], [0, 1, 2, 3]))


@pytest.fixture
def load(tiny_llama):
    """The same untrained model each time."""
    return lambda: copy.deepcopy(tiny_llama)


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | kwargs)


def save_adapter(model_folder, folder, **kwargs) -> ModelConfig:
    torch.manual_seed(3)
    config = lora(base_model_name_or_path=str(model_folder), **kwargs)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


def test_relearning_steps_are_plain_adamw(load, rows):
    """Three steps, each row alone and unpadded; where a gradient is not next to nothing, AdamW divides by it."""
    model, plain = load().double(), load().double()
    attack = relearner(lambda: model, rows, learning_rate=1e-3, seed=5)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    solid = torch.ones(plain.num_parameters(), dtype=torch.bool)
    drawn = []
    for step in range(3):
        batch = retain_rows_at(2 * step, 2, len(rows), 5)
        drawn += batch
        tokens = sum(len(rows[i][1]) for i in batch)
        for i in batch:
            prompt, target = rows[i]
            logits = plain(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            (nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum") / tokens).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
        norm = gradient.norm()
        assert norm > 1  # so that it is clipped
        solid &= gradient.abs() / norm > 1e-5
        for parameter in plain.parameters():
            parameter.grad /= norm
        optimizer.step()
        optimizer.zero_grad()
        assert attack.at(step + 1) is model
        assert (weights(model) - weights(plain))[solid].abs().max() < 1e-3 * 1e-2, step
    assert solid.sum() > 0.3 * len(solid)
    assert sorted(drawn[:4]) == [0, 1, 2, 3]  # each row once before one comes again


@pytest.mark.parametrize("adapter", [False, True])
def test_relearning_is_the_same_every_time(load, rows, adapter):
    def learned(*steps, **kwargs):
        attack = relearner(load, rows, 3, lora() if adapter else None, **kwargs)
        for step in steps:
            attack.at(step)
        assert not attack.model.training
        if adapter:  # the run's model stays as it is, all of the adapter learns
            trained = dict(attack.model.named_parameters())
            assert all(("lora_" in name) is parameter.requires_grad for name, parameter in trained.items())
            assert all(parameter.abs().sum() > 0 for name, parameter in trained.items() if "lora_B" in name)
            assert torch.equal(weights(copy.deepcopy(attack.model).unload()), weights(load()))
        return weights(attack.model)

    torch.manual_seed(0)
    first = learned(1, 2, 3)
    torch.manual_seed(1)
    assert torch.equal(learned(0, 3), first)  # without a look in between
    assert not torch.equal(learned(3, seed=7), first)
    assert not torch.equal(learned(3, per_device_train_batch_size=1), first)


def test_relearning_is_in_the_precision_of_the_run(load, rows):
    """In float16 small gradients survive, and a step that overflows is made again: it is close to one in float32."""
    moved, fingerprints = {}, set()
    for precision in (None, "bf16", "fp16"):
        args = make_args(per_device_train_batch_size=2)
        if precision:
            setattr(args, precision, True)  # a config of a CPU takes neither
        attack = relearning.Relearner(load, rows, 4, 1e-3, None, args)
        fingerprints.add(attack.fingerprint)
        moved[precision] = weights(attack.at(4)) - weights(load())
    assert len(fingerprints) == 3
    error = {precision: (moved[precision] - moved[None]).norm() for precision in ("bf16", "fp16")}
    assert 0 < error["fp16"] < error["bf16"] and error["fp16"] < 0.2 * moved[None].norm()


def test_a_merged_adapter_relearns_and_what_would_change_nothing_stops(model_folder, load, rows, tmp_path):
    merged = load_merged(save_adapter(model_folder, tmp_path), torch.float32, CPU)
    before = copy.deepcopy(merged.state_dict())
    learned = relearner(lambda: merged, rows, 1).at(1)
    assert all(not torch.equal(weight, before[name]) for name, weight in learned.state_dict().items())
    [line] = errors_of(relearner(lambda: load().requires_grad_(False), rows, 1).at, 1)
    assert line.startswith("nothing to train: ")
    [line] = errors_of(relearner(load, rows, 1, lora(lora_alpha=0)).at, 1)
    assert line.startswith("no gradient reaches the weights that are trained")


def test_fingerprints_of_relearning_tell_what_differs(load, rows):
    others = [{}, {"learning_rate": 2e-2}, {"seed": 1}, {"per_device_train_batch_size": 1}]
    adapters = [{}, {"r": 3}, {"lora_alpha": 1}, {"target_modules": ["q_proj"]}, {"use_rslora": True}]
    adapters += [{"use_dora": True}, {"modules_to_save": ["lm_head"]}]
    others += [{"peft_config": lora(**adapter)} for adapter in adapters]
    first, *attacks = relearner(never, rows[::-1]), *(relearner(never, rows, **changed) for changed in others)
    assert len({attack.fingerprint for attack in (first, *attacks)}) == len(attacks) + 1
    assert relearner(never, rows, steps=9).fingerprint == attacks[0].fingerprint  # its first steps are the same
    # training completes the config of an adapter
    first, second = (relearner(load, rows, peft_config=lora(target_modules="all-linear")) for _ in range(2))
    assert first.at(1) and first.fingerprint == second.fingerprint


def test_learning_the_scored_rows_themselves_brings_all_back(tokenizer, tmp_path):
    def attack(load):
        passes, before = make_passes(load, tokenizer, tmp_path), Fixed(*FORGET.answers)
        learner = relearner(load, encoded(tokenizer, FORGET), 40)
        return relearning.relearning_attack(passes, before, FORGET, learner, "themselves")

    result = attack(lambda: build_phi(tokenizer))
    assert result["steps"] == [0, 1, 2, 4, 8, 16, 32, 40] and (result["learned"], result["scored"]) == (3, 3)
    recall, probability = ([value["mean"] for value in result[key]] for key in ("recall", "probability"))
    assert [sum(recalls.values()) / 3 for recalls in result["recall_by_row"]] == pytest.approx(recall)
    assert recall[0] < 0.2 and recall[-1] == 1 and probability[0] < 0.1 and probability[-1] > 0.9
    assert result["recall"][-1]["interval"] == [1, 1]
    assert result["recovered"][0] == 0 and result["recovered"][-1] == 1
    assert attack(never) == result  # from the cache, and nothing is loaded or learned


# quantization


@pytest.fixture
def private(tmp_path) -> Path:
    (tmp_path / "private").mkdir()
    return tmp_path / "private"


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("Question: Who wrote bacorden of velba?", return_tensors="pt")).logits[0].float()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("bits", "layer"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
def test_quantized_layers_and_an_unquantized_head(model_folder, tokenizer, tmp_path, private, bits, layer, adapter):
    """An adapter is merged before: its change is rounded with the weights."""
    pytest.importorskip("bitsandbytes")
    model_args = ModelConfig(model_name_or_path=str(model_folder))
    if adapter:
        strong = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
        model_args = save_adapter(model_folder, tmp_path / "adapter", **strong)
    model = quantization.load_quantized(model_args, bits, torch.float32, CPU, private)
    linear = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear.pop("lm_head") == "Linear" and set(linear.values()) == {layer}
    assert not isinstance(model, PeftModel) and not list(private.iterdir())
    exact = logits_of(load_merged(model_args, torch.float32, CPU), tokenizer)
    distance = (logits_of(model, tokenizer) - exact).norm()
    assert 1e-4 < distance / exact.norm()
    if adapter:  # rounded, and still nearer to the adapter's model than the base is
        base = logits_of(AutoModelForCausalLM.from_pretrained(model_folder), tokenizer)
        assert distance < 0.4 * (base - exact).norm()
    else:
        assert distance / exact.norm() < 0.2
        assert model.generate(**tokenizer("Who wrote", return_tensors="pt"), max_new_tokens=3).shape[1] > 3


def test_no_temporary_model_is_left_when_loading_fails(model_folder, tmp_path, private, monkeypatch):
    found = []

    def broken(model_args, dtype, device):
        found.extend(path.parent.parent for path in Path(model_args.model_name_or_path).glob("*.safetensors"))
        raise OSError("no space left")

    monkeypatch.setattr(quantization, "load_model", broken)
    with pytest.raises(OSError, match="no space"):
        quantization.load_quantized(save_adapter(model_folder, tmp_path / "adapter"), 8, torch.float32, CPU, private)
    assert found == [private] and not list(private.iterdir())


def test_quantization_by_hand_and_the_share_of_the_way_back():
    unlearned, before = Fixed("rome", "rome", "rome", name="unlearned"), Fixed(*FORGET.answers)
    quantized = {8: Fixed("rome", "rome", "fi", name="8"), 4: Fixed("ros velba", "mor na", "rome", name="bit")}
    result = quantization.quantization_attack(unlearned, before, FORGET, quantized.get)
    for name, recall, loss in (("8 bit", 1 / 6, 1), ("4 bit", 5 / 9, 3)):
        numbers = [result[name]["recall"]["mean"]]
        numbers += [result[name][key] for key in ("recall_change", "recovered", "probability_change")]
        assert numbers == pytest.approx([recall, recall, recall, exp(-loss) - exp(-9)])
    assert result["8 bit"]["recall_by_row"] == {0: 0.0, 1: 0.0, 2: 0.5}
    # each has answers of its own in the cache
    assert unlearned.asked[-2:] == [(f"unlearned, {name}", f"unlearned  {name}") for name in ("8 bit", "4 bit")]
    # below the unlearned model, and where nothing was lost that could be recovered
    measured = altered.altered_measures(quantized[8], before, FORGET, {"a": lambda: unlearned}, "way")
    assert [measures["recovered"] for measures in measured] == pytest.approx([0, -0.2])
    assert quantized[8].asked[-1] == ("8, a", "8 way a")
    assert altered.altered_measures(unlearned, unlearned, FORGET, {})[0]["recovered"] is None


# all attacks


def scored(paraphrases=None, wrong=None) -> Outputs:
    answers = [scores_of(1.0), scores_of(2.0), scores_of(3.0, 5.0)]
    return Outputs({}, [], {"forget": Scored(answers, paraphrases, wrong)})


def result_of(attack, passes=None, said=None, data=DATA, before=None, model_args=None, **eval_args) -> dict:
    """The result of one attack."""
    model_args = model_args or ModelConfig(model_name_or_path="nowhere")
    eval_args = EvalArguments(**{"attacks": [attack]} | eval_args)
    attacks = run.Attacks(data, before or Fixed(), make_args(), model_args, eval_args, Path("not made"))
    return attacks.run(passes or Fixed(), model_args, said or scored())[attack]


def test_why_an_attack_cannot_be_run(monkeypatch):
    before, other = Fixed(), Fixed()
    other.tokenizer = lambda text: {"input_ids": list(text.encode("utf-16"))}
    no_text, short_text = replace(DATA, unrelated_text=None), replace(DATA, unrelated_text="a")
    one_row = replace(DATA, questions={"forget": FORGET.part(0, 1), "retain": RETAIN})
    for attack, why, setting in (
        *((name, "there is no question set forget", {"data": replace(DATA, questions={})}) for name in run.ATTACKS),
        *((name, "attacks does not name it", {"attacks": []}) for name in run.ATTACKS),
        ("options", "have no wrong answers (column perturbed_answer)", {}),
        ("options", "nobody named it", {"data": replace(DATA, missing={"forget": "nobody named it"})}),
        ("token_shift", "give a text file with unrelated_file", {"data": no_text}),
        ("token_shift", "its tokenizer is not that of the model before", {"passes": other}),
        ("token_shift", "text is too short", {"data": short_text}),
        ("relearning", "one forget row cannot be halved", {"data": one_row}),
        ("relearning", "it has not been unlearned", {"passes": before, "before": before}),
        ("quantization", "it has not been unlearned", {"passes": before, "before": before}),
        ("quantization", "was trained quantized", {"model_args": ModelConfig(load_in_4bit=True)}),
        ("quantization", "was trained quantized", {"model_args": ModelConfig(load_in_8bit=True)}),
    ):
        monkeypatch.setattr(run, "find_spec", lambda name: name)
        result = result_of(attack, **setting)
        assert list(result) == ["not_available"] and why in result["not_available"], result
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert "pip install -e '.[quantization]'" in result_of("quantization")["not_available"]


def test_options_compare_the_paraphrase_where_there_is_one():
    wrong = [[scores_of(1.5), scores_of(1.7)], [scores_of(2.5), scores_of(1.0)], [scores_of(3.5), scores_of(3.0)]]
    paraphrases = [scores_of(9.0), scores_of(9.0), scores_of(0.5)]
    for said, least in ((scored(None, wrong), 1 / 3), (scored(paraphrases, wrong), 2 / 3)):
        result = result_of("options", said=said)
        assert (result["least"], result["most"], result["options"]) == (pytest.approx(least), pytest.approx(1 / 3), 3)
    fewer = result_of("options", said=scored(paraphrases, [wrong[0][:1], *wrong[1:]]))
    assert (fewer["options"], fewer["n"]) == (2, 3)  # as many as every row has


def test_token_shift_is_after_less_before():
    text = "ros velba is not in it, " * 9
    before, after, data = Fixed(name="b"), Fixed(name="after"), replace(DATA, unrelated_text=text)
    own = result_of("token_shift", before, before=before, data=data)
    assert own == {"not_available": "it is what the others are compared with"}
    assert before.asked == [[CHUNK_TOKENS, len(text) - CHUNK_TOKENS]]  # while it is loaded
    shift = result_of("token_shift", after, before=before, data=data)
    predicted = [letter for i, letter in enumerate(text) if i % CHUNK_TOKENS]
    forgotten = sum(letter in " ".join(FORGET.answers) for letter in predicted)
    for name, n in {"forget_tokens": forgotten, "other_tokens": len(predicted) - forgotten}.items():
        assert (shift[name]["mean"], shift[name]["n"]) == (pytest.approx(exp(-5) - exp(-1)), n) and n > 9


def test_what_is_relearned_and_what_is_scored(monkeypatch, tokenizer, tmp_path):
    """The second half after the first, in file order; all forget rows after the retain rows or other text."""
    seen = {}

    def attack(passes, before, scored, learner, what):
        seen[what] = (scored.rows, learner)

    monkeypatch.setattr(run, "relearning_attack", attack)
    passes, model_args = make_passes(never, tokenizer, tmp_path), ModelConfig(use_peft=True, lora_r=3)
    result_of("relearning", passes, model_args=model_args, relearning_steps=5, relearning_learning_rate=0.5)
    learned = {"half of the forget rows": (FORGET.part(0, 1), [1, 2]), "retain rows": (RETAIN, [0, 1, 2])}
    assert list(seen) == [*learned, "unrelated text"]
    rows, learner = seen["unrelated text"]
    text = [[*prompt, *answer] for prompt, answer in learner.rows]
    assert rows == [0, 1, 2] and text == run.chunked(tokenizer(DATA.unrelated_text)["input_ids"])
    for what, (rows, expected) in learned.items():
        scored_rows, learner = seen[what]
        assert scored_rows == expected and learner.rows == encoded(tokenizer, rows)
        assert (learner.steps, learner.learning_rate, learner.peft_config.r) == (5, 0.5, 3)
    seen.clear()
    result_of("relearning", passes, data=replace(DATA, questions={"forget": FORGET}))
    (_, learner), _ = seen.values()
    assert learner.learning_rate == make_args().learning_rate and learner.peft_config is None
