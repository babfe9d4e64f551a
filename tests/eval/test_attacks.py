"""Attacks: by hand, against brute force, plain loops and plain torch, published losses; and why one cannot be run."""

import copy
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
from eval.attacks.altered import altered_measures
from eval.attacks.options import options_attack
from eval.attacks.quantization import load_quantized, quantization_attack, why_not
from eval.attacks.relearning import Relearner, relearning_attack
from eval.attacks.run import ATTACKS, Attacks
from eval.attacks.sampling import PLAIN, prefilling_attack, sampling_attack, sampling_settings, worst_by_row
from eval.attacks.token_shift import CHUNK_TOKENS, chunked, token_shift_attack
from eval.cache import RowCache
from eval.columns import Outputs, Scored
from eval.data import AuditData, QuestionSet
from eval.metrics.leakage import doublings, expected_worst_case, leakage
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


def encoded(tokenizer, questions, answers):
    return encode_answers(DataArguments(), tokenizer, questions, answers, [tokenizer.eos_token_id])


def scores_of(*losses) -> TokenScores:
    """Scores of a row whose tokens have these losses."""
    log_probs = -np.array(losses, np.float32)
    return TokenScores(log_probs, log_probs > -1, log_probs * 0, log_probs * 0 + 1)


class Fixed:
    """Passes that give fixed texts, by question, and the length of their name as each loss; `asked` are the calls."""

    def __init__(self, greedy=None, samples=None, name="fixed"):
        self.greedy, self.samples, self.name, self.fingerprint = greedy, samples, name, name
        self.asked = []

    def answer(self, questions, prefixes=None, what="greedy"):
        self.asked.append((questions, prefixes))
        return [Answer(self.greedy[question], True) for question in questions]

    def sample(self, questions, count, settings, prefixes=None, what="sampling"):
        self.asked.append((questions, prefixes, settings))
        texts = self.samples.get(settings, self.samples)
        return [texts[question][:count] for question in questions]

    def score(self, questions, answers, what="teacher-forced"):
        return [scores_of(len(self.name)) for _ in questions]

    def altered(self, name, fingerprint, load):
        self.asked.append((name, fingerprint))
        return load()

    def release(self):
        pass


def answering(*texts, name="fixed") -> Fixed:
    return Fixed(dict(zip(FORGET.questions, texts, strict=True)), name=name)


def make_args(**kwargs) -> PMCConfig:
    return PMCConfig(output_dir="unused", use_cpu=True, **{"max_completion_length": 16} | kwargs)


def make_passes(load, tokenizer, folder, name="unlearned") -> ModelPasses:
    cache = RowCache(folder / "rows.sqlite")
    return ModelPasses(name, name, load, tokenizer, [tokenizer.eos_token_id], DataArguments(), make_args(), cache)


def never(*args):
    raise AssertionError("a model is loaded though every row is in the cache")


# leakage


@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=2 * n, max_size=2 * n)))
@settings(max_examples=40)
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

QUESTIONS = ["Where?", "Which town?", "Who?"]
TRUTHS = QuestionSet(QUESTIONS, ["lima gull salt harbor", "gull lima", "Salt …"], [4, 5, 7])


def test_sampling_by_hand():
    trained = SamplingSettings(1.25, 0, 0.95)
    passes = Fixed(
        samples={
            PLAIN: {QUESTIONS[0]: ["rome", "gull salt", ""], QUESTIONS[1]: ["lima gull", "rome", "gull"]},
            trained: {QUESTIONS[0]: ["salt harbor harbor lima gull"] * 3, QUESTIONS[1]: ["rome", "gull lima", ""]},
        }
    )
    result = sampling_attack(passes, TRUTHS.part(0, 2), 3, sampling_settings(make_args(temperature=1.25, top_p=0.95)))
    assert list(result) == ["temperature 1", "as in training"]
    assert [call[2] for call in passes.asked] == [PLAIN, trained]
    plain, as_trained = result.values()
    assert (plain["worst_by_row"], plain["worst_sample_by_row"]) == ({4: 0.5, 5: 0.5}, {4: 1, 5: 0})
    assert (plain["worst_case"]["mean"], plain["mean"]["mean"]) == (0.5, pytest.approx(1.5 / 6))
    assert plain["leaking"]["samples"] == 1  # all words of the second answer, in another order
    assert as_trained["worst_by_row"] == {4: 0.5, 5: 1.0}
    assert (as_trained["leaking"]["samples"], as_trained["leaking"]["questions"]) == (4, 2)
    assert worst_by_row({"sampling": result}) == {4: 0.5, 5: 1.0}
    assert worst_by_row({"sampling": {"not_available": "why"}}) is None


def test_prefilling_scores_only_what_was_not_forced():
    greedy = {QUESTIONS[0]: "gull salt", QUESTIONS[1]: "lima", QUESTIONS[2]: "salt"}
    samples = {QUESTIONS[0]: ["lima harbor", "salt harbor"], QUESTIONS[1]: ["rome"] * 2, QUESTIONS[2]: ["", "salt"]}
    passes = Fixed(greedy, samples)
    result = prefilling_attack(passes, TRUTHS, 2, ["The answer is:"], first_words=1)
    assert list(result) == ["The answer is:", "the answer's first word"]
    run, given_away = result.values()
    assert run["greedy"]["mean"] == pytest.approx(2 / 3) and run["greedy_by_row"] == {4: 0.5, 5: 0.5, 7: 1.0}
    assert run["worst_by_row"] == {4: 0.5, 5: 0.0, 7: 1.0} and run["worst_sample_by_row"] == {4: 0, 5: 0, 7: 1}
    # the word given away is no hit, and where no other is left that can be scored there is no row
    assert given_away["greedy_by_row"] == {4: pytest.approx(2 / 3), 5: 1.0} and given_away["greedy"]["n"] == 2
    assert given_away["worst_by_row"] == {4: pytest.approx(2 / 3), 5: 0.0}
    assert given_away["worst_sample_by_row"] == {4: 1, 5: 0}
    assert [call[:2] for call in passes.asked] == [
        *[(QUESTIONS, ["The answer is:"] * 3)] * 2,
        *[(QUESTIONS[:2], ["lima", "gull"])] * 2,
    ]
    assert {call[2] for call in passes.asked if len(call) > 2} == {PLAIN}
    two = prefilling_attack(passes, TRUTHS, 1, [], first_words=2)["the answer's first 2 words"]
    assert passes.asked[-1][:2] == (QUESTIONS[:1], ["lima gull"]) and two["greedy_by_row"] == {4: 0.5}
    four = prefilling_attack(passes, TRUTHS, 1, [], first_words=4)
    assert four == {"the answer's first 4 words": {"not_available": "no answer has more words"}}
    assert prefilling_attack(passes, TRUTHS, 1, [], first_words=0) == {}


# options


@pytest.mark.skipif(not LOGS.is_dir(), reason=f"published TOFU losses not found at {LOGS}")
@pytest.mark.parametrize(("name", "least", "most"), [("phi_full", 7, 228), ("phi_retain90", 37, 124)])
def test_options_of_published_losses(name, least, most):
    rows = json.loads((LOGS / f"{name}.json").read_text())["forget"]
    result = options_attack(np.array([[row["avg_paraphrased_loss"], *row["average_perturb_loss"]] for row in rows]))
    assert (result["n"], result["options"]) == (300, 6)
    assert (result["least"], result["most"]) == (least / 300, most / 300)  # 0.023 and 0.760, 0.123 and 0.413
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
    assert [entry["threshold"] for entry in far["by_quantile"]] == pytest.approx([0.2, 0.3, 0.4, 0.45])


# token shift


@pytest.mark.parametrize("count", [0, 1, 2, CHUNK_TOKENS, CHUNK_TOKENS + 1, 3 * CHUNK_TOKENS + 2])
def test_chunks_hold_the_text_but_for_a_single_token_at_its_end(count):
    ids = list(range(count))
    chunks = chunked(ids)
    assert all(len(chunk) == CHUNK_TOKENS for chunk in chunks[:-1]) and all(2 <= len(chunk) for chunk in chunks)
    assert sum(chunks, []) == ids[: count - (count % CHUNK_TOKENS == 1)]


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
        skew, below = moment[3] / moment[2] ** 1.5, sum(shift < -0.5 for shift in shifts) / n
        expected = {"mean": mean, "std": moment[2] ** 0.5, "skew": skew, "below_minus_half": below, "n": n}
        assert result[name] == pytest.approx(expected, abs=1e-6)
        assert mean < 0 < below
    # a model has not shifted against itself, and the first token is not predicted
    same = token_shift_attack([[1, 2, 3, 4]], [1], *[[scores_of(0.5, 1.0, 2.0)]] * 2)
    assert same["other_tokens"] == {"mean": 0, "std": 0, "skew": 0, "below_minus_half": 0, "n": 3}
    assert same["forget_tokens"] == {"mean": None, "std": None, "skew": None, "below_minus_half": None, "n": 0}


# relearning


def relearner(load, rows, steps=4, peft_config=None, learning_rate=1e-2, **kwargs) -> Relearner:
    args = make_args(**{"per_device_train_batch_size": 2} | kwargs)
    return Relearner(load, rows, steps, learning_rate, peft_config, args)


@pytest.fixture
def rows(tokenizer):
    """Of unequal length, so that a batch is padded."""
    questions = ["Who is " + "Ba" * i for i in range(4)]
    return encoded(tokenizer, questions, ["ros velba", "mor", "fi pel cor den lum", "ta"])


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | kwargs)


def save_adapter(model_folder, folder, **kwargs) -> ModelConfig:
    torch.manual_seed(3)
    config = lora(base_model_name_or_path=str(model_folder), **kwargs)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


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
    assert torch.equal(weights([0, 3]), first)  # without a look in between
    assert not torch.equal(weights([3], seed=7), first)
    assert not torch.equal(weights([3], per_device_train_batch_size=1), first)


def test_relearning_is_in_the_precision_of_the_run(tokenizer, rows):
    """In float16 small gradients survive, and a step that overflows is made again: it is close to one in float32."""
    start = build_llama(tokenizer)
    moved, fingerprints = {}, set()
    for precision in (None, "bf16", "fp16"):
        args = make_args(per_device_train_batch_size=2)
        if precision:
            setattr(args, precision, True)  # a config of a CPU takes neither
        attack = Relearner(lambda: copy.deepcopy(start), rows, 4, 1e-3, None, args)
        fingerprints.add(attack.fingerprint)
        weights = zip(attack.at(4).parameters(), start.parameters(), strict=True)
        moved[precision] = torch.cat([(new - old).detach().flatten() for new, old in weights])
    assert len(fingerprints) == 3
    for precision in ("bf16", "fp16"):
        assert not torch.equal(moved[precision], moved[None])
    assert (moved["fp16"] - moved[None]).norm() < (moved["bf16"] - moved[None]).norm()
    assert (moved["fp16"] - moved[None]).norm() < 0.2 * moved[None].norm()


def test_a_run_with_an_adapter_relearns_an_adapter(tokenizer, rows):
    start = build_llama(tokenizer)
    learned = relearner(lambda: copy.deepcopy(start), rows, 3, lora()).at(3)
    assert all(("lora_" in name) is parameter.requires_grad for name, parameter in learned.named_parameters())
    assert all(parameter.abs().sum() > 0 for name, parameter in learned.named_parameters() if "lora_B" in name)
    weights = learned.unload().state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in start.state_dict().items())


def test_a_merged_adapter_relearns(model_folder, rows, tmp_path):
    merged = load_merged(save_adapter(model_folder, tmp_path), torch.float32, CPU)
    before = copy.deepcopy(merged.state_dict())
    learned = relearner(lambda: merged, rows, 1).at(1)
    assert all(not torch.equal(weight, before[name]) for name, weight in learned.state_dict().items())


def test_relearning_that_changes_nothing_stops(tokenizer, rows):
    [line] = errors_of(relearner(lambda: build_llama(tokenizer).requires_grad_(False), rows, 1).at, 1)
    assert line.startswith("nothing to train: ")
    [line] = errors_of(relearner(lambda: build_llama(tokenizer), rows, 1, lora(lora_alpha=0)).at, 1)
    assert line.startswith("no gradient reaches the weights that are trained")


def test_fingerprints_of_relearning_tell_what_differs(tokenizer, rows):
    def build():
        return build_llama(tokenizer)

    others = [{"learning_rate": 2e-2}, {"seed": 1}, {"per_device_train_batch_size": 1}]
    adapters = [{}, {"r": 3}, {"lora_alpha": 1}, {"target_modules": ["q_proj"]}, {"use_rslora": True}]
    adapters += [{"use_dora": True}, {"modules_to_save": ["lm_head"]}]
    attacks = [
        relearner(never, rows),
        relearner(never, rows[::-1]),
        *(relearner(never, rows, **changed) for changed in others),
        *(relearner(never, rows, peft_config=lora(**adapter)) for adapter in adapters),
    ]
    assert len({attack.fingerprint for attack in attacks}) == len(attacks)
    assert relearner(never, rows, steps=9).fingerprint == attacks[0].fingerprint  # its first steps are the same
    # training completes the config of an adapter
    first, second = (relearner(build, rows, peft_config=lora(target_modules="all-linear")) for _ in range(2))
    assert first.at(1) and first.fingerprint == second.fingerprint


def test_learning_the_scored_rows_themselves_brings_all_back(tokenizer, tmp_path):
    learned = encoded(tokenizer, FORGET.questions, FORGET.answers)

    def attack(load):
        passes = make_passes(load, tokenizer, tmp_path)
        return relearning_attack(
            passes, answering(*FORGET.answers), FORGET, relearner(load, learned, 40), "themselves"
        )

    result = attack(lambda: build_phi(tokenizer))
    assert result["steps"] == [0, 1, 2, 4, 8, 16, 32, 40] and (result["learned"], result["scored"]) == (3, 3)
    assert [sum(recalls.values()) / 3 for recalls in result["recall_by_row"]] == pytest.approx(result["recall"])
    assert result["recall"][0] < 0.2 and result["recall"][-1] == 1
    assert result["probability"][0] < 0.1 and result["probability"][-1] > 0.9
    assert result["recovered"][0] == 0 and result["recovered"][-1] == 1
    assert attack(never) == result  # from the cache, and nothing is loaded or learned


# quantization


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("Question: Who wrote bacorden of velba?", return_tensors="pt")).logits[0].float()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("bits", "layer"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
def test_quantized_layers_and_an_unquantized_head(model_folder, tokenizer, tmp_path, bits, layer, adapter):
    """An adapter is merged before: its change is rounded with the weights."""
    pytest.importorskip("bitsandbytes")
    private = tmp_path / "private"
    private.mkdir()
    model_args = ModelConfig(model_name_or_path=str(model_folder))
    if adapter:
        model_args = save_adapter(
            model_folder, tmp_path / "adapter", r=4, target_modules="all-linear", init_lora_weights=False
        )
    model = load_quantized(model_args, bits, torch.float32, CPU, private)
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


def test_no_temporary_model_is_left_when_loading_fails(model_folder, tmp_path, monkeypatch):
    private = tmp_path / "private"
    private.mkdir()
    found = []

    def broken(model_args, dtype, device):
        found.extend(path.parent.parent for path in Path(model_args.model_name_or_path).glob("*.safetensors"))
        raise OSError("no space left")

    monkeypatch.setattr(quantization, "load_model", broken)
    with pytest.raises(OSError, match="no space"):
        load_quantized(save_adapter(model_folder, tmp_path / "adapter"), 8, torch.float32, CPU, private)
    assert found == [private] and not list(private.iterdir())


def test_quantization_by_hand():
    passes = answering("rome", "rome", "rome", name="unlearned")
    quantized = {8: answering("rome", "rome", "fi", name="8"), 4: answering("ros velba", "mor na", "rome", name="bit")}
    result = quantization_attack(passes, answering(*FORGET.answers), FORGET, quantized.get)
    assert len(set(passes.asked[-2:])) == 2  # each has answers of its own in the cache
    for name, recall, loss in (("8 bit", 1 / 6, 1), ("4 bit", 5 / 9, 3)):
        numbers = [result[name][key] for key in ("recall", "recall_change", "recovered", "probability_change")]
        assert numbers == pytest.approx([recall, recall, recall, exp(-loss) - exp(-9)])


def test_recovered_is_the_share_of_the_way_back():
    unlearned, better, worse = answering("ros", "rome", "rome"), answering("ros", "rome", "fi"), answering(*"abc")
    states = {"a": lambda: better, "b": lambda: worse}
    before = answering("ros", "rome", "fi pel")
    measured = altered_measures(unlearned, before, FORGET, states, "way")
    assert [measures["recovered"] for measures in measured] == pytest.approx([0, 0.5, -0.5])
    assert measured[1]["recall_by_row"] == {0: 0.5, 1: 0.0, 2: 0.5}
    assert measured[1]["probability"] == pytest.approx(exp(-5))
    assert unlearned.asked[-2:] == [("fixed, a", "fixed way a"), ("fixed, b", "fixed way b")]
    # where nothing was lost nothing can be recovered
    assert altered_measures(unlearned, unlearned, FORGET, states)[1]["recovered"] is None


# all attacks


def run(attacks, passes, said=None, data=None, before=None, model_args=None, **eval_args) -> dict:
    """The results of the attacks that are named, on a data set in which nothing is missing unless `data` says so."""
    values = {
        "questions": {"forget": FORGET, "retain": RETAIN},
        "options": {},
        "missing": {},
        "unrelated_text": "Lima is the capital of Peru.",
    }
    eval_args = EvalArguments(attacks=attacks, **eval_args)
    model_args = model_args or ModelConfig(model_name_or_path="nowhere")
    audit_data = AuditData(**values | (data or {}))
    everything = Attacks(audit_data, before or Fixed(), make_args(), model_args, eval_args, Path("not made"))
    return everything.run(passes, model_args, said or scored())


def scored(paraphrases=None, wrong=None) -> Outputs:
    answers = [scores_of(1.0), scores_of(2.0), scores_of(3.0, 5.0)]
    return Outputs({}, [], {"forget": Scored(answers, paraphrases, wrong)})


def test_why_an_attack_cannot_be_run(tokenizer, chat_tokenizer, tmp_path, monkeypatch):
    def reason(attack, passes=None, **kwargs):
        [why] = run([attack], passes or Fixed(), **kwargs)[attack].values()
        return why

    without = run(list(ATTACKS), Fixed(), data={"questions": {"retain": RETAIN}})
    why = "there is no question set forget, see what was left out"
    assert without == {name: {"not_available": why} for name in ATTACKS}
    assert run([], Fixed()) == {name: {"not_available": "attacks does not name it"} for name in ATTACKS}
    assert reason("options") == "the forget rows have no wrong answers (column perturbed_answer)"
    assert (
        reason("options", data={"missing": {"forget": "eval_sets does not name it"}}) == "eval_sets does not name it"
    )
    passes, before, chat = (make_passes(never, which, tmp_path) for which in (tokenizer, tokenizer, chat_tokenizer))
    assert "give a text file with unrelated_file" in reason("token_shift", data={"unrelated_text": None})
    assert reason("token_shift", chat, before=before) == "its tokenizer is not that of the model before"
    too_short = reason("token_shift", passes, before=before, data={"unrelated_text": "a"})
    assert too_short == "the unrelated text is too short"
    one_row = {"questions": {"forget": FORGET.part(0, 1), "retain": RETAIN}}
    assert reason("relearning", data=one_row) == "one forget row cannot be halved"
    for attack in ("relearning", "quantization"):
        assert reason(attack, before, before=before) == "it has not been unlearned"
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    assert why_not(ModelConfig()) is None
    for quantized in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        why = reason("quantization", model_args=ModelConfig(**quantized))
        assert why == "not applicable: the model was trained quantized"
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert "pip install -e '.[quantization]'" in reason("quantization")


def test_options_compare_the_paraphrase_where_there_is_one():
    wrong = [[scores_of(1.5), scores_of(1.7)], [scores_of(2.5), scores_of(1.0)], [scores_of(3.5), scores_of(3.0)]]
    plain = run(["options"], Fixed(), scored(None, wrong))["options"]
    assert (plain["least"], plain["most"], plain["options"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    paraphrases = [scores_of(9.0), scores_of(9.0), scores_of(0.5)]
    other = run(["options"], Fixed(), scored(paraphrases, wrong))["options"]
    assert (other["least"], other["most"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    fewer = run(["options"], Fixed(), scored(paraphrases, [wrong[0][:1], *wrong[1:]]))["options"]
    assert (fewer["options"], fewer["n"]) == (2, 3)  # as many as every row has


def test_token_shift_is_after_less_before(tokenizer, tmp_path):
    """Of two models of which one has become unable to say the tokens of the answers."""
    able, unable = build_phi(tokenizer), build_phi(tokenizer)
    text = "Who wrote ros velba? The capital of Peru is not mor na quin. " * 9
    answers = tokenizer(" ".join(FORGET.answers))["input_ids"]
    with torch.no_grad():
        able.lm_head.bias[answers] += 6.0
        unable.lm_head.bias[answers] -= 6.0

    def shift(passes, before):
        return run(["token_shift"], passes, before=before, data={"unrelated_text": text})["token_shift"]

    before = make_passes(lambda: able, tokenizer, tmp_path, "able")
    # in its own turn the model before reads the text; after that the cache answers for it
    assert shift(before, before) == {"not_available": "it is what the others are compared with"}
    before = make_passes(never, tokenizer, tmp_path, "able")
    lost = shift(make_passes(lambda: unable, tokenizer, tmp_path, "unable"), before)
    won = shift(before, make_passes(never, tokenizer, tmp_path, "unable"))
    assert lost["forget_tokens"]["mean"] < -0.02 < lost["other_tokens"]["mean"]
    assert won["forget_tokens"]["mean"] == -lost["forget_tokens"]["mean"]
    predicted = [token for i, token in enumerate(tokenizer(text)["input_ids"]) if i % CHUNK_TOKENS]
    assert lost["forget_tokens"]["n"] == sum(token in answers for token in predicted)


def test_what_is_relearned_and_what_is_scored(monkeypatch, tokenizer, tmp_path):
    """The second half after the first, in file order; all forget rows after the retain rows."""
    seen = {}

    def attack(passes, before, scored, learner, what):
        seen[what] = (scored.rows, learner)

    monkeypatch.setattr(attack_run, "relearning_attack", attack)
    passes = make_passes(never, tokenizer, tmp_path)
    model_args = ModelConfig(use_peft=True, lora_r=3)
    run(["relearning"], passes, model_args=model_args, relearning_steps=5, relearning_learning_rate=0.5)
    learned = {"half of the forget rows": (FORGET.part(0, 1), [1, 2]), "retain rows": (RETAIN, [0, 1, 2])}
    assert list(seen) == list(learned)
    for what, (rows, expected) in learned.items():
        scored_rows, learner = seen[what]
        assert scored_rows == expected and learner.rows == encoded(tokenizer, rows.questions, rows.answers)
        assert (learner.steps, learner.learning_rate, learner.peft_config.r) == (5, 0.5, 3)
    seen.clear()
    run(["relearning"], passes, data={"questions": {"forget": FORGET}})
    [(_, learner)] = seen.values()
    assert learner.learning_rate == make_args().learning_rate and learner.peft_config is None
