"""TOFU's measures: values of published logs, by hand and against plain formulas."""

from dataclasses import replace
from math import exp, inf, log10, nan
from statistics import fmean, harmonic_mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.columns import AuditData, Outputs, Scored, reference_of, tofu_numbers
from eval.metrics.tofu import forget_quality, model_utility, option_probability, probability, truth_ratio
from eval.passes import Answer
from eval.sets import OptionSet, QuestionSet
from rewards.rouge import rouge_l_recall
from tests.training import scores_of

UTILITY_SETS = ("retain", "real_authors", "world_facts")
LOSSES = st.floats(0, 20)
SHARES = st.just(0.0) | st.floats(1e-300, 1)
RATIOS = st.lists(st.floats(0, 100), min_size=1, max_size=30)


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
        values += [shares.mean(), fmean(recalls), np.maximum(0, 1 - truth_ratio(paraphrase, wrong)).mean()]
    return values


def audited(log: dict) -> tuple[AuditData, Outputs]:
    """What an audit has in hands, from the losses and answers that a log stores."""
    questions, options, answers, scored = {}, {}, {}, {}
    for name, rows in log.items():
        texts = [row["answer"] for row in rows]
        wrong = [row["average_perturb_loss"] for row in rows]
        questions[name] = QuestionSet(texts, texts, list(range(len(rows))))
        options[name] = OptionSet(texts, texts, texts, [[""] * len(losses) for losses in wrong])
        answers[name] = [Answer(row["generation"].removeprefix("Answer: "), True) for row in rows]
        scored[name] = Scored(
            [scores_of(row["avg_gt_loss"]) for row in rows],
            [scores_of(row["avg_paraphrased_loss"]) for row in rows],
            [[scores_of(loss) for loss in losses] for losses in wrong],
        )
    return AuditData(questions, options, {}, None), Outputs(answers, answers["retain"], scored)


def test_golden_values_of_published_models(tofu_logs):
    """By the functions, and by an audit of what the logs store; an arithmetic mean over wrong answers gives 0.503."""
    data, full = audited(tofu_logs["phi_full"])
    _, retain_only = audited(tofu_logs["phi_retain90"])
    numbers = tofu_numbers(data, full, reference_of(data, retain_only))
    of_retain_only = tofu_numbers(data, retain_only, None)
    for name, found, utility in (("phi_full", numbers, 0.522074), ("phi_retain90", of_retain_only, 0.531991)):
        assert model_utility(nine_utilities(tofu_logs[name])) == pytest.approx(utility, abs=5e-7)
        assert found["model_utility"]["value"] == pytest.approx(utility, abs=5e-7)
    ratios, reference = (truth_ratio(*losses(log["forget"])[1:]) for log in tofu_logs.values())
    for quality in (forget_quality(ratios, reference), numbers["forget_quality"]):
        assert quality["p_value"] == pytest.approx(2.1943e-16, rel=1e-4)
        assert quality["log10_p_value"] == pytest.approx(log10(2.1943e-16), abs=1e-4)
        assert quality["statistic"] == pytest.approx(0.34667, abs=5e-6)
        assert (quality["n"], quality["n_reference"]) == (300, 300)
    forget = fmean(min(ratio, 1 / ratio) for ratio in ratios.tolist())
    assert numbers["sets"]["forget"]["truth_ratio"]["mean"] == pytest.approx(forget)
    assert numbers["sets"]["retain"]["truth_ratio"]["mean"] == pytest.approx(nine_utilities(tofu_logs["phi_full"])[2])
    missing = replace(data, missing={"retain": "no such config"})
    assert tofu_numbers(missing, full, None)["model_utility"] == {"not_available": "retain: no such config"}


@pytest.mark.filterwarnings("error")
@given(LOSSES, st.lists(LOSSES, min_size=1, max_size=6), st.lists(SHARES, min_size=9, max_size=9))
def test_measures_equal_the_plain_formulas(right, wrong, nine):
    p, q = exp(-right), [exp(-loss) for loss in wrong]
    assert probability(right) == pytest.approx(p)
    assert option_probability(right, wrong) == pytest.approx(p / (p + sum(q)))
    assert truth_ratio(right, wrong) == pytest.approx(np.prod(q) ** (1 / len(q)) / p)
    assert model_utility(nine) == pytest.approx(harmonic_mean(nine), rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_no_loss_is_too_large_and_no_value_too_small():
    assert option_probability(1e6, [1e6, 1e6, 1e6]) == pytest.approx(0.25)
    assert option_probability(1e6, [0.0]) == 0.0 and option_probability(0.0, [1e6]) == 1.0
    assert truth_ratio(1e6, [1e6 + 1]) == pytest.approx(exp(-1))
    assert truth_ratio(1e6, [0.0]) == inf and truth_ratio(0.0, [1e6]) == 0.0
    assert forget_quality([inf, inf, 0.0], [inf, inf, 0.0])["p_value"] == 1.0
    far = forget_quality(np.zeros(2000), np.ones(2000))  # below the smallest float
    assert (far["p_value"], far["statistic"], far["log10_p_value"]) == (0.0, 1.0, pytest.approx(-323.3, abs=0.01))
    assert model_utility([1.0] * 8 + [0.0]) == 0.0
    with pytest.raises(ValueError):
        model_utility([0.5] * 8 + [nan])


@pytest.mark.filterwarnings("ignore:ks_2samp")  # p = 1 comes out above it by rounding, and is computed again
@settings(max_examples=50)
@given(RATIOS, RATIOS)
def test_statistic_is_the_largest_distance_of_distribution_functions(ratios, reference):
    shares = [[fmean(r <= x for r in values) for x in {*ratios, *reference}] for values in (ratios, reference)]
    expected = max(abs(a - b) for a, b in zip(*shares, strict=True))
    result = forget_quality(ratios, reference)
    assert result["statistic"] == pytest.approx(expected)
    assert 0 < result["p_value"] <= 1 and result["log10_p_value"] == log10(result["p_value"])
