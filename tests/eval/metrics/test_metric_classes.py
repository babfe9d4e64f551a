"""The unlearning metric: values worked out by hand, missing and unknown sets, loading by class and by path."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.metrics import unlearning
from eval.metrics.unlearning import UnlearningMetric, rouge_recalls, unlearn_quality, utility

REPO = Path(__file__).resolve().parents[3]

# In no order of sets; recalls: retain 1 and 0.5, forget 0.25 and 0 (empty), paraphrased 0.5, world_facts 0.
PREDICTIONS = ["a b", "c", "c", "", "c d", "Rome"]
REFERENCES = ["a b", "a b c d", "c d", "a b", "a b c d", "Paris"]
SETS = ["retain", "forget", "retain", "forget", "forget_paraphrased", "world_facts"]
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
def metric(tmp_path):
    return UnlearningMetric(cache_dir=str(tmp_path))


def test_unlearn_quality_by_hand():
    assert unlearn_quality({"forget": 0.25, "forget_paraphrased": 0.5}) == 62.5
    assert unlearn_quality({"forget": 0.25, "retain": 1.0}) == 75.0
    assert unlearn_quality({"forget_paraphrased": 0.0}) == 100.0
    assert unlearn_quality({"retain": 1.0}) is None
    assert unlearn_quality({}) is None


def test_utility_by_hand():
    assert utility({"retain": 1.0, "real_authors": 0.5, "world_facts": 0.75}) == 75.0
    assert utility({"real_authors": 0.25, "forget": 1.0}) == 25.0
    assert utility({"retain": 0.0}) == 0.0
    assert utility({"forget": 0.5}) is None


def test_rouge_recalls_keep_the_order_of_rows():
    assert rouge_recalls(PREDICTIONS, REFERENCES) == [1.0, 0.25, 0.5, 0.0, 0.5, 0.0]
    assert rouge_recalls([], []) == []


def test_metric_by_hand(metric):
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, sets=SETS)
    assert result == EXPECTED
    assert list(result["sets"]) == list(EXPECTED["sets"])  # order of first appearance


def test_metric_in_batches(metric):
    for start in (0, 3):
        rows = slice(start, start + 3)
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows], sets=SETS[rows])
    assert metric.compute() == EXPECTED


def test_metric_without_a_group(metric):
    assert metric.compute(predictions=["a"], references=["a"], sets=["forget"])["utility"] is None
    assert metric.compute(predictions=["a"], references=["a"], sets=["retain"])["unlearn_quality"] is None


def test_metric_of_empty_predictions(metric):
    result = metric.compute(predictions=["", ""], references=["a", "b"], sets=["forget", "retain"])
    assert (result["unlearn_quality"], result["utility"]) == (100.0, 0.0)


def test_unknown_set_is_refused_with_the_valid_names(metric):
    with pytest.raises(ValueError, match="Unknown sets") as error:
        metric.compute(predictions=["a", "a"], references=["a", "a"], sets=["forget", "forget_10"])
    assert "['forget_10']" in str(error.value)
    assert "forget, forget_paraphrased, retain, real_authors, world_facts" in str(error.value)


def test_no_rows_are_refused(metric):
    with pytest.raises(ValueError, match="no rows to score"):
        metric.compute(predictions=[], references=[], sets=[])


def test_reference_without_tokens_is_refused_without_showing_it(metric):
    with pytest.raises(ValueError, match=r"^1 of 2 .* rows 1\.") as error:
        metric.compute(predictions=["a", "¿?"], references=["a", "¿?"], sets=["retain", "forget"])
    assert "¿" not in str(error.value)


def test_examples_run():
    for name, source in {
        "unlearn_quality": unlearn_quality.__doc__,
        "utility": utility.__doc__,
        "UnlearningMetric": unlearning._INPUTS_DESCRIPTION,
    }.items():
        test = doctest.DocTestParser().get_doctest(source.replace("```", ""), {}, name, None, None)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0, name


LOAD_BY_PATH = """
import json, socket, sys

def refuse(*args):
    raise AssertionError("the metric reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse

import evaluate

metric = evaluate.load("eval/metrics/unlearning.py")
assert type(metric).__module__.startswith("evaluate_modules"), "loaded by class, not by path"
predictions, references, sets = json.load(sys.stdin)
print("result", json.dumps(metric.compute(predictions=predictions, references=references, sets=sets)))
"""


def test_metric_loads_by_path_without_network(tmp_path):
    # A process of its own: the offline switch and the folder evaluate copies the file to are read when it is imported.
    python_path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": python_path}
    run = subprocess.run(
        [sys.executable, "-c", LOAD_BY_PATH],
        input=json.dumps([PREDICTIONS, REFERENCES, SETS]),
        env=environment,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.split("result ")[1]) == EXPECTED
