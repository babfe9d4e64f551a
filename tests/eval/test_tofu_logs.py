"""open-unlearning's files: a stored log as the reference, and the summary under its names."""

import json
from math import exp

import pytest

from eval.columns import reference_of, tofu_numbers
from eval.tofu_logs import read_retain_logs, tofu_summary
from tests.conftest import errors_of
from tests.eval.metrics.test_tofu import audited
from tests.eval.test_report import column


def write_log(path, ratios, **further) -> str:
    """A TOFU_EVAL.json: rows by number as text, in no order, other metrics beside them."""
    by_index = {str(i): {"score": ratio} for i, ratio in reversed(list(enumerate(ratios)))}
    logs = {"forget_truth_ratio": {"agg_value": 0.6, "value_by_index": by_index}, "model_utility": {"agg_value": 0.5}}
    path.write_text(json.dumps(logs | further, indent=4))
    return str(path)


def test_a_stored_log_is_as_good_a_reference_as_its_model(tmp_path, tofu_logs):
    """Published models; the ratios as open-unlearning stores them, with 1e-10 in the denominator."""
    data, full = audited(tofu_logs["phi_full"])
    _, retain_only = audited(tofu_logs["phi_retain90"])
    reference = reference_of(data, retain_only)
    stored = [ratio * right / (right + 1e-10) for ratio, right in _with_probabilities(reference.ratios, retain_only)]
    log = write_log(tmp_path / "TOFU_EVAL.json", stored, mia_min_k={"agg_value": 0.38, "auc": 0.38})
    read = read_retain_logs(log)
    by_model, by_log = (tofu_numbers(data, full, known)["forget_quality"] for known in (reference, read))
    assert by_log.pop("median_interval") == by_model.pop("median_interval")
    assert by_log == pytest.approx(by_model) and by_log["p_value"] == pytest.approx(2.1943e-16, rel=1e-4)
    assert read.aucs == {"min_k": 0.38} and read.ratios[:2] == pytest.approx(reference.ratios[:2])


def _with_probabilities(ratios, outputs):
    return [(ratio, exp(-row.loss)) for ratio, row in zip(ratios, outputs.scored["forget"].paraphrases, strict=True)]


def test_what_is_no_log_is_said(tmp_path):
    path = tmp_path / "TOFU_EVAL.json"
    [error] = errors_of(read_retain_logs, str(path))
    assert error.startswith(f"retain_logs_path: there is no file {str(path)!r}")
    for text in ("{}", "[]", "no JSON", '{"forget_truth_ratio": {"agg_value": 0.5}}'):
        path.write_text(text)
        [error] = errors_of(read_retain_logs, str(path))
        assert error.startswith(f"retain_logs_path: {str(path)!r} is no TOFU_EVAL.json with forget_truth_ratio by row")
    for ratios in ([], [0.5, float("nan")]):
        [error] = errors_of(read_retain_logs, write_log(path, ratios))
        assert "holds no truth ratios, or numbers that are none" in error


def test_the_summary_has_their_names_and_leaves_out_what_there_is_not():
    audit = column("after")
    audit["membership"]["min_k"]["privleak"] = {"not_available": "why"}
    found = tofu_summary(audit)
    assert found["forget_Q_A_ROUGE"] == found["exact_memorization"] == found["mia_loss"] == pytest.approx(0.1)
    assert (found["forget_quality"], found["model_utility"]) == (0.012, 0.654)
    assert found["forget_truth_ratio"] == found["retain_Truth_Ratio"] == pytest.approx(0.1)
    assert "privleak" not in found and "ra_Truth_Ratio" not in found and "wf_Q_A_ROUGE" in found
    assert list(found) == sorted(found) and all(isinstance(value, float) for value in found.values())
    audit["membership"] = audit["memorization"] = audit["tofu"]["forget_quality"] = {"not_available": "why"}
    less = tofu_summary(audit)
    assert found.keys() - less.keys() == {
        *("extraction_strength", "exact_memorization", "forget_quality"),
        *("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"),
    }
