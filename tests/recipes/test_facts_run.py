"""A real language model forgets facts of its pretraining, with the recipe of the facts made small."""

import json

import pytest

from eval import run as eval_run
from pmc_rl import train
from tests.conftest import write_hub_folder, write_jsonl
from tests.pretrained import smollm2
from tests.training import REPO

pytestmark = pytest.mark.slow

FACTS = REPO / "recipes" / "smollm2" / "facts"
# two questions each; other answers are not so rare among samples that finding them takes long
FORGET = {"Manila", "Colombo", "Kabul", "Baghdad"}
SMALLER = {
    "num_generations": 80,
    "per_device_train_batch_size": 8,  # a step an epoch, so fewer and larger ones
    "num_train_epochs": 6,
    "learning_rate": 1e-3,
    "holdout_file": "null",
    "eval_sets": '["forget", "retain"]',
    "attacks": "[]",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return smollm2(tmp_path_factory.mktemp("smollm2"))


def read(name: str) -> list[dict]:
    """Rows with facts, without the wrong answers that an audit would compare them with."""
    rows = [json.loads(line) for line in (FACTS / "data" / name).read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in ("question", "key", "own_answer")} for row in rows if "key" in row]


def test_four_facts_are_forgotten_and_their_neighbours_kept(model, tmp_path):
    forget = [row for row in read("forget.jsonl") if row["key"] in FORGET]
    retain = read("retain.jsonl")[:24]
    assert len(forget) == 8 and "capital of Germany" in retain[0]["question"]

    # where training runs there are questions alone: what is to be forgotten is nowhere to be read
    data = tmp_path / "data"
    write_hub_folder(data, forget=[{"question": row["question"]} for row in forget], retain=retain)
    settings = SMALLER | {"model_name_or_path": model, "dataset_name": data, "output_dir": tmp_path / "run"}
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    train.main([str(FACTS / "unlearn.yaml"), *options])
    write_jsonl(data / "forget.json", forget)
    eval_run.main([str(tmp_path / "run" / "recipe.yaml")])

    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    before, after = (results[name]["sets"] for name in ("before", "after"))
    print(json.dumps([before, after], indent=2))
    assert before["forget"]["fact_recall"]["mean"] >= 0.9 and before["retain"]["fact_recall"]["mean"] >= 0.9
    assert after["forget"]["fact_recall"]["mean"] <= 0.25
    # what is kept is the model's own answer: what it loses first is an embellishment, such as where the country lies
    assert after["retain"]["fact_recall"]["mean"] >= 0.8
    # nothing was hidden behind silence or endless answers
    assert after["forget"]["empty"] == 0 and after["forget"]["ended"] >= 0.9
