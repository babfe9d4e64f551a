"""The baselines: each loss by hand, what a run of each learns, and that a stopped one goes on to the same weights."""

import copy
import json
from functools import partial
from math import exp, log
from typing import get_args

import pytest
import torch

from eval import baselines
from eval.baselines import LOSSES, BaselineTrainer
from pmc_rl import finetune, train
from pmc_rl.checkpoints import last_checkpoint
from pmc_rl.config import Method
from pmc_rl.models import load_model, load_tokenizer
from pmc_rl.original import Predictions, predict_targets
from pmc_rl.recipe import parse_recipe
from tests.conftest import errors_of, write_hub_folder
from tests.training import (
    BRIEF,
    FACTS,
    FORGET,
    RETAIN,
    SETTINGS,
    StopAt,
    finetune_recipe,
    make_trainer,
    save_model,
    unlearn_recipe,
    weights,
)

ROWS = [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]  # four answers of three, one, two and four tokens


def predictions(seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(len(ROWS), 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    targets = torch.randint(5, (len(ROWS),), generator=torch.Generator().manual_seed(0))
    return Predictions(log_probs, targets, torch.tensor(ROWS))


def by_hand(name: str, now: Predictions, before: Predictions, **settings) -> list[float]:
    """The losses by plain arithmetic, a token or an answer at a time."""
    log_p = [float(now.log_probs[i, token]) for i, token in enumerate(now.targets)]
    old = [float(before.log_probs[i, token]) for i, token in enumerate(now.targets)]

    def whole(values: list[float], row: int) -> float:
        return sum(value for value, own in zip(values, ROWS, strict=True) if own == row)

    def sigmoid(x: float) -> float:
        return 1 / (1 + exp(-x))

    if name in ("gradient_difference", "idk"):
        return [value if name == "gradient_difference" else -value for value in log_p]
    beta = settings["beta"]
    if name == "wga":
        return [exp(value) ** beta * value for value in log_p]
    if name == "undial":
        losses = []
        for i, target in enumerate(now.targets.tolist()):
            odds = [exp(float(before.log_probs[i, j]) - (beta if j == target else 0)) for j in range(5)]
            losses.append(-sum(odd / sum(odds) * float(now.log_probs[i, j]) for j, odd in enumerate(odds)))
        return losses
    if name == "npo":
        return [-2 / beta * log(sigmoid(beta * (whole(old, i) - whole(log_p, i)))) for i in range(4)]
    if name == "simnpo":
        nll = [-whole(log_p, i) / ROWS.count(i) for i in range(4)]
        return [-2 / beta * log(sigmoid(beta * (value - settings["delta"]))) for value in nll]
    ratios = [whole(log_p, i) - whole(old, i) for i in range(4)]
    return [-log(sigmoid(beta * (ratios[i] - ratios[i + 1]))) for i in (0, 2)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gradient_difference", {}),
        ("idk", {}),
        ("wga", {"beta": 0.7}),
        ("undial", {"beta": 3.0}),
        ("npo", {"beta": 0.1}),
        ("npo", {"beta": 2.0}),
        ("simnpo", {"beta": 4.5, "delta": 0.4}),
        ("dpo", {"beta": 0.5}),
    ],
)
def test_each_loss_is_its_formula(name, settings):
    now, before = predictions(1), predictions(2)
    found = LOSSES[name](now, before, **settings)
    assert found.tolist() == pytest.approx(by_hand(name, now, before, **settings), abs=1e-9)


def test_the_weight_of_wga_has_no_gradient():
    """d/dx of p^beta log p with p^beta held fixed is p^beta."""
    log_probs = predictions(1).log_probs.requires_grad_()
    now = Predictions(log_probs, *predictions(1)[1:])
    LOSSES["wga"](now, now, beta=0.7).sum().backward()
    expected = torch.zeros_like(log_probs).scatter(1, now.targets[:, None], now.target_log_probs[:, None].exp() ** 0.7)
    assert torch.allclose(log_probs.grad, expected.detach())


def test_rmu_is_the_distance_from_the_steered_direction():
    states = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    found = LOSSES["rmu"](states, states, torch.tensor([0.6, 0.8]), steering=5.0)
    assert found.tolist() == pytest.approx([(2**2 + 2**2) / 2, (3**2 + 5**2) / 2])


def test_every_method_of_a_recipe_has_a_loss():
    assert set(LOSSES) == set(get_args(Method))


def nll(folder, recipe, questions, answers) -> float:
    """Mean NLL of the answers' tokens under a saved model."""
    script_args, training_args, model_args, _ = parse_recipe([recipe, "--model_name_or_path", str(folder)])
    tokenizer = load_tokenizer(model_args, None)
    model = load_model(model_args, torch.float32, training_args.device).eval()
    losses = []
    for question, answer in zip(questions, answers, strict=True):
        prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        ids = tokenizer(f"Question: {question}\nAnswer: {answer}{tokenizer.eos_token}")["input_ids"]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        with torch.no_grad():
            said = predict_targets(model, batch | {"labels": torch.tensor([labels])})
            losses.append(-float(said.target_log_probs.mean()))
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def knowing(tokenizer, taught, tmp_path_factory):
    """A data set in the Hub's layout, and a model that has learned its rows."""
    folder = tmp_path_factory.mktemp("knowing")
    data = write_hub_folder(folder / "data", full=FORGET + RETAIN, forget=FORGET, keep=RETAIN, real_authors=FACTS)
    model = save_model(copy.deepcopy(taught), tokenizer, folder / "taught")
    finetune.main([finetune_recipe(folder, data, model, num_train_epochs=30)])
    return data, str(folder / "finetuned")


@pytest.mark.parametrize("method", LOSSES)
def test_what_a_run_of_each_method_changes_and_says_it_read(tmp_path, knowing, method, capsys):
    """True answers become less likely, those to retain less so; with idk and dpo the refusals become likely."""
    data, model = knowing
    of_its_own = {"answer_column": "absent", "retain_answer_column": "answer", "method_answer_column": "answer"}
    given = of_its_own if method == "wga" else {}
    recipe = unlearn_recipe(tmp_path, data, model, method=method, learning_rate=3e-3, num_train_epochs=5, **given)
    settings = {"rmu": {"layer": 0, "steering": 20.0}, "npo": {"beta": 0.5}}.get(method, {})
    baselines.main([recipe, "--method_kwargs", json.dumps(settings)])
    out = tmp_path / "unlearned"
    manifest = json.loads((out / "manifest.json").read_text())
    reads = method != "idk"
    assert manifest["stage"] == "baseline"
    assert manifest["read"]["forget"]["columns"] == (["question", "answer"] if reads else ["question"])
    assert ("trains on the 3 answers that are to be forgotten" in capsys.readouterr().out) == reads

    def change(rows: list[dict], texts: list[str]) -> float:
        questions = [row["question"] for row in rows]
        return nll(out, recipe, questions, texts) - nll(model, recipe, questions, texts)

    if method in baselines.REFUSES:
        assert change(FORGET, list(baselines.REFUSALS[:3])) < -1
    forgotten, retained = (change(rows, [row["answer"] for row in rows]) for rows in (FORGET, RETAIN))
    assert forgotten > max(0.1, 1.5 * retained)


def test_train_py_trains_by_no_baseline_and_baselines_by_no_unknown_setting(tmp_path, tokenizer, model, data):
    recipe = unlearn_recipe(tmp_path, data, save_model(model, tokenizer, tmp_path / "taught"), method="npo")
    [error] = errors_of(train.main, [recipe])
    assert error == "method: npo reads answers to be forgotten; run eval/baselines.py"
    [error] = errors_of(baselines.main, [recipe, "--method_kwargs", '{"betta": 1}'])
    assert error.startswith("method_kwargs: npo has no 'betta'.") and "beta" in error
    for value, problem in (('"1"', '"1" is no number from 0 on'), ("-1", "-1 is no number from 0 on"), ("0", "0, by")):
        [error] = errors_of(baselines.main, [recipe, "--method_kwargs", f'{{"beta": {value}}}'])
        assert error.startswith(f"method_kwargs: beta: {problem}")
    [error] = errors_of(baselines.main, [recipe, "--method", "rmu", "--method_kwargs", '{"layer": 7}'])
    assert error == "method_kwargs: layer: 7, but the model has 2 layers, counted from 0"
    [error] = errors_of(baselines.main, [recipe, "--method", "null"])
    assert error.startswith("method: missing; one of gradient_difference, idk, ")


@pytest.mark.parametrize("method", ["npo", "gradient_difference", "rmu"])
def test_a_step_compares_with_the_model_before_and_is_a_mean_over_its_window(tmp_path, tokenizer, taught, method):
    """Windows of 4 and 3 questions in micro-batches of 2: losses, computed again with the weights of that step."""
    targets = [[[5 + i] * (i % 3 + 1) + [1]] for i in range(7)]
    seen = []

    class Watched(BaselineTrainer):
        def forget_loss(self, model, inputs, weights):
            loss = super().forget_loss(model, inputs, weights)
            seen.append(
                (self.state.global_step, copy.deepcopy(model.state_dict()), dict(inputs), float(loss.detach()))
            )
            return loss

    settings = SETTINGS | BRIEF | {"num_train_epochs": 1, "learning_rate": 1e-2, "max_grad_norm": 0.0}
    own = {"npo": {"beta": 0.5}, "rmu": {"steering": 3.0}}.get(method, {})
    layer = 0 if method == "rmu" else None
    make = partial(Watched, method=method, targets=targets, layer=layer, settings=own)
    trainer = make_trainer(tmp_path, copy.deepcopy(taught), tokenizer, make=make, **settings)
    trainer.train()
    assert [step for step, *_ in seen] == [0, 0, 1, 1]
    windows = {0: 4, 1: 3}
    tokens = {step: sum(int((x["labels"] != -100).sum()) for s, _, x, _ in seen if s == step) for step in windows}
    for step, state, inputs, loss in seen:
        now, before = copy.deepcopy(taught).eval(), copy.deepcopy(taught).eval()
        now.load_state_dict(state)
        expected = 0.0
        for ids, mask, labels in zip(*(inputs[key] for key in ("input_ids", "attention_mask", "labels")), strict=True):
            ids, labels = ids[mask == 1][None], labels[mask == 1]
            answer = (labels != -100).nonzero()[:, 0]
            with torch.no_grad():
                said = [model(ids, output_hidden_states=True) for model in (now, before)]
            if method == "rmu":
                states = said[0].hidden_states[1][0, answer]
                direction = torch.rand(states.shape[1], generator=torch.Generator().manual_seed(trainer.args.seed))
                target = 3.0 * direction / direction.norm()
                expected += float((states - target).square().mean(1).sum()) / tokens[step]
                continue
            log_p = [x.logits[0].log_softmax(-1)[answer - 1, labels[answer]].sum() for x in said]
            if method == "npo":
                expected += (
                    float(-2 / 0.5 * torch.nn.functional.logsigmoid(0.5 * (log_p[1] - log_p[0]))) / windows[step]
                )
            else:
                expected += float(log_p[0]) / tokens[step]
        assert loss == pytest.approx(expected, rel=1e-4)


def test_a_stopped_baseline_goes_on_to_the_same_weights(tmp_path, tokenizer, taught):
    targets = [[[5, 6, 1], [7, 1]]] * 7
    make = partial(BaselineTrainer, method="dpo", targets=targets, layer=None, settings={})
    settings = SETTINGS | BRIEF | {"num_train_epochs": 2}

    def trainer(name):
        return make_trainer(tmp_path / name, copy.deepcopy(taught), tokenizer, make=make, **settings)

    whole, stopped = trainer("whole"), trainer("stopped")
    whole.train()
    stopped.add_callback(StopAt(3))
    stopped.train()
    resumed = trainer("stopped")
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "stopped" / "out")))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert not torch.equal(weights(stopped.model), weights(whole.model))
