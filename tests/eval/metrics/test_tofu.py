"""TOFU's measures: values of published logs, by hand, against plain formulas, and all new metrics loaded by path."""

import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace
from math import exp, inf, log10, nan
from pathlib import Path
from statistics import fmean, harmonic_mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.columns import AuditData, Outputs, Scored, tofu_numbers
from eval.data import OptionSet, QuestionSet
from eval.metrics import tofu
from eval.metrics.membership import MembershipMetric
from eval.metrics.memorization import MemorizationMetric
from eval.metrics.tofu import (
    TofuMetric,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    option_probability,
    probability,
    truth_ratio,
    utility_truth_ratio,
)
from eval.passes import Answer, TokenScores
from rewards.rouge import rouge_l_recall

REPO = Path(__file__).resolve().parents[3]
LOGS = REPO.parent / "shared" / "data" / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"published TOFU losses not found at {LOGS}")

UTILITY_SETS = ("retain", "real_authors", "world_facts")
LOSSES = st.floats(0, 20)
RATIOS = st.lists(st.floats(0, 100), min_size=1, max_size=30)

# Set after set, with losses of which every exponential is seen at once.
ROWS = {
    "answer_loss": [0.0, 1.0, 0.0, 2.0, 0.5],
    "paraphrase_loss": [1.0, 3.0, 1.0, None, None],
    "wrong_losses": [[1.0, 3.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0, 2.0], [0.5]],
    "sets": ["forget", "forget", "retain", "real_authors", "world_facts"],
}
EXPECTED = {
    "forget": {"probability": (1 + exp(-1)) / 2, "truth_ratio": (exp(-1) + exp(-2)) / 2, "n": 2},
    "retain": {"probability": 1.0, "truth_ratio": 1 - exp(-1), "n": 1},
    "real_authors": {"probability": 0.25, "truth_ratio": 0.0, "n": 1},
    "world_facts": {"probability": 0.5, "truth_ratio": 0.0, "n": 1},
}


@pytest.fixture
def metric():
    return TofuMetric(keep_in_memory=True)


def logged(name):
    return json.loads((LOGS / f"{name}.json").read_text())


def losses(rows):
    """Losses of the answers, their paraphrases and the wrong answers, as arrays."""
    keys = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss")
    return [np.array([row[key] for row in rows]) for key in keys]


def nine_utilities(log):
    values = []
    for name in UTILITY_SETS:
        answer, paraphrase, wrong = losses(log[name])
        recalls = [rouge_l_recall(row["answer"], row["generation"].removeprefix("Answer: ")) for row in log[name]]
        shares = probability(answer) if name == "retain" else option_probability(answer, wrong)
        values += [shares.mean(), fmean(recalls), utility_truth_ratio(truth_ratio(paraphrase, wrong))]
    return values


# published values


@needs_logs
@pytest.mark.parametrize(("name", "expected"), [("phi_full", 0.522074), ("phi_retain90", 0.531991)])
def test_model_utility_of_published_models(name, expected):
    assert model_utility(nine_utilities(logged(name))) == pytest.approx(expected, abs=5e-7)


def scores_of(loss: float) -> TokenScores:
    return TokenScores(np.array([-loss], np.float64), np.array([True]), np.zeros(1), np.ones(1))


def said_by(log: dict) -> tuple[AuditData, Outputs]:
    """What an audit has in hands, from the losses and answers that a log stores."""
    questions, options, answers, scored = {}, {}, {}, {}
    for name, rows in log.items():
        texts = [row["answer"] for row in rows]
        spoken = [Answer(row["generation"].removeprefix("Answer: "), True) for row in rows]
        wrong = [row["average_perturb_loss"] for row in rows]
        questions[name] = QuestionSet(texts, texts, list(range(len(rows))))
        options[name] = OptionSet(texts, texts, texts, [[""] * len(losses) for losses in wrong])
        answers[name] = spoken
        scored[name] = Scored(
            [scores_of(row["avg_gt_loss"]) for row in rows],
            [scores_of(row["avg_paraphrased_loss"]) for row in rows],
            [[scores_of(loss) for loss in losses] for losses in wrong],
        )
    return AuditData(questions, options, {}, None), Outputs(answers, answers["retain"], scored)


@needs_logs
def test_the_audit_finds_the_golden_values():
    data, full = said_by(logged("phi_full"))
    _, retain_only = said_by(logged("phi_retain90"))
    result = tofu_numbers(data, full, retain_only)
    assert result["model_utility"]["value"] == pytest.approx(0.522074, abs=5e-7)
    assert result["forget_quality"]["p_value"] == pytest.approx(2.1943e-16, rel=1e-4)
    assert result["forget_quality"]["statistic"] == pytest.approx(0.34667, abs=5e-6)
    assert tofu_numbers(data, retain_only, None)["model_utility"]["value"] == pytest.approx(0.531991, abs=5e-7)
    missing = replace(data, missing={"retain": "no such config"})
    assert tofu_numbers(missing, full, None)["model_utility"] == {"not_available": "retain: no such config"}

    def ratios(name: str) -> list[float]:
        rows = logged("phi_full")[name]
        return [truth_ratio(row["avg_paraphrased_loss"], row["average_perturb_loss"]) for row in rows]

    assert result["sets"]["forget"]["truth_ratio"]["mean"] == pytest.approx(forget_truth_ratio(ratios("forget")))
    assert result["sets"]["retain"]["truth_ratio"]["mean"] == pytest.approx(utility_truth_ratio(ratios("retain")))


@needs_logs
def test_an_arithmetic_mean_over_wrong_answers_would_be_seen(monkeypatch):
    def arithmetic(paraphrase, wrong):
        return np.exp(-wrong).mean(-1) / np.exp(-paraphrase)

    monkeypatch.setitem(globals(), "truth_ratio", arithmetic)
    assert model_utility(nine_utilities(logged("phi_full"))) == pytest.approx(0.503353, abs=5e-7)


@needs_logs
def test_forget_quality_of_published_models():
    full, retain = (truth_ratio(*losses(logged(name)["forget"])[1:]) for name in ("phi_full", "phi_retain90"))
    result = forget_quality(full, retain)
    assert result["p_value"] == pytest.approx(2.1943e-16, rel=1e-4)
    assert result["log10_p_value"] == pytest.approx(log10(2.1943e-16), abs=1e-4)
    assert result["statistic"] == pytest.approx(0.34667, abs=5e-6)
    assert (result["n"], result["n_reference"]) == (300, 300)
    assert forget_quality(retain, retain)["p_value"] == 1.0


@needs_logs
def test_metric_agrees_with_the_functions_on_published_losses(metric):
    log = logged("phi_full")
    rows = [(name, row) for name in ("forget", *UTILITY_SETS) for row in log[name]]
    result = metric.compute(
        answer_loss=[row["avg_gt_loss"] for _, row in rows],
        paraphrase_loss=[row["avg_paraphrased_loss"] for _, row in rows],
        wrong_losses=[row["average_perturb_loss"] for _, row in rows],
        sets=[name for name, _ in rows],
    )
    nine = nine_utilities(log)
    assert [result[name]["probability"] for name in UTILITY_SETS] == pytest.approx(nine[::3])
    assert result["retain"]["truth_ratio"] == pytest.approx(nine[2])
    for name in UTILITY_SETS[1:]:
        # not the "paraphrase" of the logs, which is the answer once more, but off by rounding in two rows
        answer, _, wrong = losses(log[name])
        assert result[name]["truth_ratio"] == pytest.approx(utility_truth_ratio(truth_ratio(answer, wrong)))
    answer, paraphrase, wrong = losses(log["forget"])
    assert result["forget"]["probability"] == pytest.approx(probability(answer).mean())
    assert result["forget"]["truth_ratio"] == pytest.approx(forget_truth_ratio(truth_ratio(paraphrase, wrong)))
    assert {name: scores["n"] for name, scores in result.items()} == {
        "forget": 300,
        "retain": 300,
        "real_authors": 100,
        "world_facts": 117,
    }


# functions


@settings(deadline=None)
@given(LOSSES, st.lists(LOSSES, min_size=1, max_size=6))
def test_row_measures_equal_the_plain_formulas(right, wrong):
    p, q = exp(-right), [exp(-loss) for loss in wrong]
    assert probability(right) == pytest.approx(p)
    assert option_probability(right, wrong) == pytest.approx(p / (p + sum(q)))
    assert truth_ratio(right, wrong) == pytest.approx(np.prod(q) ** (1 / len(q)) / p)


def test_row_measures_keep_the_shape():
    right, wrong = np.array([[0.0, 1.0]]), np.array([[[1.0, 3.0], [1.0, 1.0]]])
    assert probability(right).tolist() == [[1.0, exp(-1)]]
    assert option_probability(right, wrong) == pytest.approx(np.array([[1 / (1 + exp(-1) + exp(-3)), 1 / 3]]))
    assert truth_ratio(right, wrong) == pytest.approx(np.array([[exp(-2), 1.0]]))


@pytest.mark.filterwarnings("error")
def test_no_loss_is_too_large():
    assert probability(1e6) == 0.0
    assert option_probability(1e6, [1e6, 1e6, 1e6]) == pytest.approx(0.25)
    assert option_probability(1e6, [0.0]) == 0.0
    assert option_probability(0.0, [1e6]) == 1.0
    assert truth_ratio(1e6, [1e6 + 1]) == pytest.approx(exp(-1))
    assert truth_ratio(1e6, [0.0]) == inf
    assert truth_ratio(0.0, [1e6]) == 0.0
    assert forget_truth_ratio([0.0, inf, 1.0, 1.0]) == 0.5
    assert utility_truth_ratio([0.0, inf]) == 0.5
    assert forget_quality([inf, inf, 0.0], [inf, inf, 0.0])["p_value"] == 1.0


@pytest.mark.parametrize("bad", [nan, inf, None, -0.5])
def test_losses_that_are_none_are_refused(bad):
    for call in (
        lambda: probability([0.5, bad]),
        lambda: option_probability(bad, [0.5]),
        lambda: option_probability(0.5, [0.5, bad]),
        lambda: truth_ratio(bad, [0.5]),
        lambda: truth_ratio(0.5, [0.5, bad]),
    ):
        with pytest.raises(ValueError, match="cannot be mean negative log-likelihoods"):
            call()


@pytest.mark.parametrize("wrong", [[], 0.5])
def test_no_wrong_answers_are_refused(wrong):
    for function in (option_probability, truth_ratio):
        with pytest.raises(ValueError, match="no wrong answers"):
            function(0.5, wrong)


@pytest.mark.filterwarnings("error")
@settings(deadline=None)
@given(RATIOS)
def test_aggregates_equal_the_plain_formulas(ratios):
    assert forget_truth_ratio(ratios) == pytest.approx(fmean(min(r, 1 / r) if r else 0 for r in ratios))
    assert utility_truth_ratio(ratios) == pytest.approx(fmean(max(0, 1 - r) for r in ratios))


@pytest.mark.parametrize("bad", [[], [0.5, nan], [-0.1], [None]])
def test_ratios_that_are_none_are_refused(bad):
    for call in (
        lambda: forget_truth_ratio(bad),
        lambda: utility_truth_ratio(bad),
        lambda: forget_quality(bad, [1.0]),
        lambda: forget_quality([1.0], bad),
    ):
        with pytest.raises(ValueError, match="Truth ratios must be"):
            call()


@pytest.mark.filterwarnings("error")
@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_model_utility_is_the_harmonic_mean(values):
    assert model_utility(values) == pytest.approx(harmonic_mean(values), rel=1e-12, abs=1e-300)


@pytest.mark.filterwarnings("error")
def test_model_utility_of_a_zero_is_zero():
    assert model_utility([1.0] * 8 + [0.0]) == 0.0


@pytest.mark.parametrize("bad", [[0.5] * 8, [0.5] * 10, [0.5] * 8 + [nan], [0.5] * 8 + [None], [50.0] * 9, [-0.1] * 9])
def test_model_utility_refuses_other_than_nine_shares(bad):
    with pytest.raises(ValueError, match="nine values"):
        model_utility(bad)


@pytest.mark.filterwarnings("ignore:ks_2samp")  # p = 1 comes out above it by rounding, and is computed again
@settings(deadline=None, max_examples=50)
@given(RATIOS, RATIOS)
def test_statistic_is_the_largest_distance_of_distribution_functions(ratios, reference):
    expected = max(
        abs(fmean(r <= x for r in ratios) - fmean(r <= x for r in reference)) for x in {*ratios, *reference}
    )
    result = forget_quality(ratios, reference)
    assert result["statistic"] == pytest.approx(expected)
    assert (result["n"], result["n_reference"]) == (len(ratios), len(reference))
    assert 0 < result["p_value"] <= 1 and result["log10_p_value"] == log10(result["p_value"])


def test_log_of_a_p_value_below_the_smallest_float_is_finite():
    result = forget_quality(np.zeros(2000), np.ones(2000))
    assert result["p_value"] == 0.0 and result["statistic"] == 1.0
    assert result["log10_p_value"] == pytest.approx(-323.3, abs=0.01)
    assert all(type(value) in (int, float) for value in result.values())


# metric


def test_metric_by_hand(metric):
    result = metric.compute(**ROWS)
    assert list(result) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert result[name] == pytest.approx(expected)


def test_metric_does_not_read_paraphrases_of_facts(metric):
    result = metric.compute(**ROWS | {"paraphrase_loss": [1.0, 3.0, 1.0, 9.0, 9.0]})
    assert result["real_authors"] == pytest.approx(EXPECTED["real_authors"])
    assert result["world_facts"] == pytest.approx(EXPECTED["world_facts"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sets": ["forget", "forget", "retain", "real_authors", "facts"]}, r"Unknown sets \['facts'\]"),
        ({"paraphrase_loss": [None, 3.0, 1.0, None, None]}, "cannot be mean"),
        ({"answer_loss": [None, 1.0, 0.0, 2.0, 0.5]}, "cannot be mean"),
        ({"wrong_losses": [[1.0], [], [2.0], [2.0], [0.5]]}, "no wrong answers"),
        ({key: [] for key in ROWS}, "no rows"),
    ],
)
def test_metric_refuses_bad_rows(metric, changed, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**ROWS | changed)


def test_examples_run():
    functions = (probability, option_probability, truth_ratio, forget_truth_ratio, utility_truth_ratio)
    sources = {f.__name__: f.__doc__ for f in (*functions, model_utility, forget_quality)}
    for name, source in (sources | {"TofuMetric": tofu._INPUTS_DESCRIPTION}).items():
        test = doctest.DocTestParser().get_doctest(source.replace("```", ""), {}, name, None, None)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0, name


# loading by path, all three in one process as each takes seconds to start

LOAD_BY_PATH = """
import json, socket, sys

def refuse(*args):
    raise AssertionError("the metric reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse

import evaluate

results = {}
for name, inputs in json.load(sys.stdin).items():
    metric = evaluate.load(f"eval/metrics/{name}.py", keep_in_memory=True)
    assert type(metric).__module__.startswith("evaluate_modules"), "loaded by class, not by path"
    results[name] = metric.compute(**inputs)
print("result", json.dumps(results))
"""


def test_metrics_load_by_path_without_network(tmp_path, metric):
    inputs = {
        "tofu": ROWS,
        "memorization": {"predictions": [[1, 2, 3], [4], []], "references": [[1, 0, 3], [4], []]},
        "membership": {"predictions": [0.5, 1.5, 1.0, 2.0], "references": [0, 0, 1, 1]},
    }
    # The folder evaluate copies the files to is read when it is imported.
    python_path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": python_path}
    run = subprocess.run(
        [sys.executable, "-c", LOAD_BY_PATH],
        input=json.dumps(inputs),
        env=environment,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.split("result ")[1])
    assert results == {
        "tofu": metric.compute(**ROWS),
        "memorization": MemorizationMetric(keep_in_memory=True).compute(**inputs["memorization"]),
        "membership": MembershipMetric(keep_in_memory=True).compute(**inputs["membership"]),
    }
