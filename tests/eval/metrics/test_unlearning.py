"""Unlearn quality and utility: by hand, missing and unknown sets, the metric by class and by path."""

import socket
import sys

import evaluate
import pytest

from eval.metrics import unlearning
from eval.metrics.unlearning import UnlearningMetric, unlearn_quality, utility

# In no order of sets; recalls: retain 1 and 0.5, forget 0.25 and 0 (empty), paraphrased 0.5, world_facts 0.
ROWS = {
    "predictions": ["a b", "c", "c", "", "c d", "Rome"],
    "references": ["a b", "a b c d", "c d", "a b", "a b c d", "Paris"],
    "sets": ["retain", "forget", "retain", "forget", "forget_paraphrased", "world_facts"],
}
EXPECTED = {
    "unlearn_quality": 68.75,  # 100 ((1 - 0.125) + (1 - 0.5)) / 2: a mean over sets, not over rows
    "utility": 37.5,  # 100 (0.75 + 0) / 2: real_authors is not there
    "sets": {
        "retain": {"rougeL_recall": 0.75, "n": 2},
        "forget": {"rougeL_recall": 0.125, "n": 2},
        "forget_paraphrased": {"rougeL_recall": 0.5, "n": 1},
        "world_facts": {"rougeL_recall": 0.0, "n": 1},
    },
}


@pytest.fixture
def metric():
    return UnlearningMetric(keep_in_memory=True)


def test_metric_by_hand(metric):
    result = metric.compute(**ROWS)
    assert result == EXPECTED and list(result["sets"]) == list(EXPECTED["sets"])  # order of first appearance
    for start in (0, 3):
        metric.add_batch(**{name: values[start : start + 3] for name, values in ROWS.items()})
    assert metric.compute() == EXPECTED
    assert unlearn_quality({"retain": 1.0}) is utility({"forget": 0.5}) is None


def test_metric_refuses_bad_rows(metric):
    with pytest.raises(ValueError, match="forget, forget_paraphrased, retain, real_authors, world_facts") as error:
        metric.compute(predictions=["a", "a"], references=["a", "a"], sets=["forget", "forget_10"])
    assert "['forget_10']" in str(error.value)
    with pytest.raises(ValueError, match="no rows"):
        metric.compute(predictions=[], references=[], sets=[])
    # a reference without a token, which is not shown
    with pytest.raises(ValueError, match=r"^1 of 2 .* rows 1\.") as error:
        metric.compute(predictions=["a", "¿?"], references=["a", "¿?"], sets=["retain", "forget"])
    assert "¿" not in str(error.value)


def test_metric_loads_by_path_without_network(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("the metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # where the library copies the file to, and finds it by a path that it adds
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    metric = evaluate.load(unlearning.__file__, cache_dir=str(tmp_path))
    assert type(metric).__module__.startswith("evaluate_modules"), "loaded by class, not by path"
    assert metric.compute(**ROWS) == EXPECTED
