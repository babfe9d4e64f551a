"""General ability: lm-eval sees the model it is given, adapter included, and bad tasks are told before models load."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from eval import general_ability as module
from eval.general_ability import check_tasks, general_ability
from tests.conftest import errors_of, write_jsonl

QUESTIONS = [f"Who wrote {book}?" for book in "corba denta finaros lummor napel quinvel rosta velba".split()]
PROMPTS = [f"Question: {question}\nAnswer:" for question in QUESTIONS]
CHOICES = ["bafi", "morden", "taquin", "pelna", "lum vel"]  # of about as many tokens: none is likeliest throughout


def write_task(folder: Path, name: str, labels: list[int], **settings) -> str:
    """A local multiple-choice task and its data; returns the path of its YAML file."""
    rows = [{"question": q, "choices": CHOICES, "label": label} for q, label in zip(QUESTIONS, labels, strict=True)]
    data_file = write_jsonl(folder / f"{name}.jsonl", rows)
    task = {"task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    task |= {"dataset_kwargs": {"data_files": {"test": data_file}, "cache_dir": str(folder / "cache")}}
    task |= {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "choices", "doc_to_target": "label"}
    task |= {"metric_list": [{"metric": "acc"}]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task | settings))
    return str(path)


@torch.no_grad()
def log_likelihood(model, tokenizer, prompt: str, answer: str) -> float:
    """Sum over the tokens of the answer, by plain torch."""
    prompt_ids, answer_ids = (tokenizer(text)["input_ids"] for text in (prompt, f" {answer}"))
    logits = model(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer_ids)[:, None]).sum().item()


def choices_of(model, tokenizer) -> list[int]:
    """Index of the likeliest choice for each question."""
    scores = [[log_likelihood(model, tokenizer, prompt, choice) for choice in CHOICES] for prompt in PROMPTS]
    return [row.index(max(row)) for row in scores]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with all that lm-eval knows here, two tasks and two groups: reading its own 15,000 takes seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
    for name, label in (("authors", 0), ("books", 1)):
        write_task(folder, name, [label] * 8)
    for name, score in {"listed": {}, "scored": {"aggregate_metric_list": [{"metric": "acc"}]}}.items():
        group = {"group": name, "task": ["authors", "books"]} | score
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    manager = lm_eval_tasks.TaskManager(include_path=folder, include_defaults=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "_task_manager", lambda: manager)
        monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)  # seconds, for nothing we read
        yield folder


def test_names_of_tasks(tasks, tmp_path, monkeypatch):
    check_tasks(["authors", str(tasks / "books.yaml")])
    check_tasks(["scored", write_task(tmp_path, "other", [0] * 8)])
    typo, right = str(tasks / "auhtors.yaml"), str(tasks / "authors.yaml")
    for wrong, advice in {"athors": "authors", typo: right, "zzz": None}.items():
        hint = f" Did you mean {advice!r}?" if advice else ""
        what = f"{wrong!r} is neither a task of lm-eval nor the path of a YAML file."
        assert errors_of(check_tasks, [wrong]) == [f"lm_eval_tasks: {what}{hint}"]
    path = write_task(tmp_path, "authors", [0] * 8)
    [twice] = errors_of(check_tasks, ["authors", path])
    assert f"{path!r} and 'authors' both hold a task 'authors'" in twice
    assert len(errors_of(check_tasks, ["listed", "scored", "books"])) == 2
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "the package lm-eval is not installed; pip install" in errors_of(check_tasks, ["arc_easy"])[0]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"doc_to_text": "{{qestion}}"}, "UndefinedError: 'qestion' is undefined"),
        ({"dataset_path": "no/such", "dataset_kwargs": {}}, "no/such"),
        ({"test_split": "tset"}, "KeyError: 'tset'"),
        (None, "cannot be loaded"),  # no task at all
    ],
)
def test_tasks_that_cannot_be_loaded(tasks, tmp_path, settings, problem):
    path = write_task(tmp_path, "broken", [0] * 8, **settings) if settings else str(tasks / "authors.jsonl")
    [error] = errors_of(check_tasks, [path])
    assert error.startswith(f"lm_eval_tasks: {path!r} cannot be loaded (") and problem in error


def test_adapted_and_base_model(tasks, tmp_path, tokenizer, tiny_llama):
    """Labels are what each model itself holds likeliest, by plain torch: so its accuracy is 1, the other's is not."""
    # with dropout, which would show in training mode, and weights so large that what is asked matters
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, target_modules="all-linear")
    adapted = get_peft_model(tiny_llama, lora).eval()
    torch.manual_seed(1)
    for weight in adapted.parameters():
        if weight.dim() == 2:  # not the norms
            torch.nn.init.normal_(weight, std=0.5)
    labels = {"adapted": choices_of(adapted, tokenizer)}
    with adapted.disable_adapter():
        labels["base"] = choices_of(adapted, tokenizer)
    agreement = sum(a == b for a, b in zip(labels["base"], labels["adapted"], strict=True)) / 8
    assert agreement < 1
    paths = [write_task(tmp_path, name, labels[name]) for name in labels]
    same = {"n": 8, "acc": 1.0, "acc_stderr": 0.0}
    other = {"n": 8, "acc": agreement, "acc_stderr": pytest.approx((agreement * (1 - agreement) / 7) ** 0.5)}
    adapted.train()
    assert general_ability(adapted, tokenizer, paths, batch_size=3) == {"adapted": same, "base": other}
    assert adapted.training
    with adapted.eval().disable_adapter():
        assert general_ability(adapted, tokenizer, paths, batch_size=3) == {"adapted": other, "base": same}
    assert not adapted.training


def test_groups_and_out_of_memory(tasks, tokenizer, tiny_llama, monkeypatch):
    """A group stands for its tasks if it has a score; where memory is too small the batch is halved."""
    listed = general_ability(tiny_llama, tokenizer, ["listed"], batch_size=2)
    assert {task: row["n"] for task, row in listed.items()} == {"authors": 8, "books": 8}
    mean = (listed["authors"]["acc"] + listed["books"]["acc"]) / 2
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # there is no accelerator
    sizes = []

    def fit(model, args, kwargs):
        sizes.append(len(args[0]))
        if sizes[-1] > rows_that_fit:
            raise torch.OutOfMemoryError("no memory")

    tiny_llama.register_forward_pre_hook(fit, with_kwargs=True)
    rows_that_fit = 2
    scored = general_ability(tiny_llama, tokenizer, ["scored"])
    assert scored == {"scored": {"n": 16, "acc": mean, "acc_stderr": scored["scored"]["acc_stderr"]}}
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}  # whatever a run generates at once
    rows_that_fit = 0
    with pytest.raises(torch.OutOfMemoryError):
        general_ability(tiny_llama, tokenizer, ["authors"], batch_size=2)
    assert sizes[-2:] == [2, 1]


def test_each_way_to_read_answers_has_a_score():
    row = {"alias": "task", "sample_len": 8, "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1}
    row["exact_match_stderr,strict"] = 0.25
    assert module._scores(row) == {"n": 8, "acc": 0.5, "exact_match/strict": 1.0, "exact_match/strict_stderr": 0.25}
    assert module._scores({"alias": "group without a score", "sample_len": 8}) == {}


@pytest.mark.parametrize("module_to_save", ["embed_tokens", "lm_head"])
def test_weights_are_not_tied_again(tasks, tokenizer, tiny_llama, module_to_save):
    config = LlamaConfig.from_dict({**tiny_llama.config.to_dict(), "tie_word_embeddings": True})
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=[module_to_save])
    model = get_peft_model(LlamaForCausalLM(config), lora)
    for name, weight in model.named_parameters():
        if module_to_save in name and weight.requires_grad:
            torch.nn.init.normal_(weight)
    before = log_likelihood(model, tokenizer, PROMPTS[0], CHOICES[0])
    general_ability(model, tokenizer, ["authors"], batch_size=4)
    assert log_likelihood(model, tokenizer, PROMPTS[0], CHOICES[0]) == before
    assert "tie_weights" not in vars(model)


@pytest.mark.slow
def test_tasks_of_lm_eval():
    """Its own names are known; offline, their data are not there."""
    pytest.importorskip("lm_eval")
    unknown, known = errors_of(check_tasks, ["arc_esay", "arc_easy"])
    assert unknown.endswith("Did you mean 'arc_easy'?") and "'arc_easy' cannot be loaded (" in known
