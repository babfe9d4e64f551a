"""General ability: lm-eval sees the model it is given, adapter included, and bad tasks are told before models load."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval import general_ability as module
from eval.general_ability import check_tasks, general_ability
from tests.conftest import errors_of, write_jsonl

QUESTIONS = [f"Who wrote {book}?" for book in "corba denta finaros lummor napel quinvel rosta velba".split()]
PROMPTS = [f"Question: {question}\nAnswer:" for question in QUESTIONS]
CHOICES = ["bafi", "morden", "taquin", "pelna", "lum vel"]  # of about as many tokens: none is likeliest throughout


@pytest.fixture
def lm_eval():
    """Skips where the extra is not installed."""
    return pytest.importorskip("lm_eval")


def write_task(folder: Path, name: str, rows: list[dict], **settings) -> str:
    """A local task and its data; returns the path of its YAML file."""
    data_file = write_jsonl(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data_file}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    return str(path)


def write_choice_task(folder: Path, name: str, labels: list[int], **settings) -> str:
    rows = [
        {"question": question, "choices": CHOICES, "label": label}
        for question, label in zip(QUESTIONS, labels, strict=True)
    ]
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    choice["metric_list"] = [{"metric": "acc"}]
    return write_task(folder, name, rows, **{**choice, **settings})


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


def add_adapter(model):
    """LoRA with dropout, which would show in training mode, on weights so large that what is asked matters."""
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, target_modules="all-linear")
    )
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.dim() == 2:  # not the norms
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture
def few_tasks(lm_eval, monkeypatch, tmp_path) -> Path:
    """A folder with all that lm-eval knows here, two tasks and two groups: reading its own 15,000 takes seconds."""
    from lm_eval.tasks import TaskManager

    for name, label in (("authors", 0), ("books", 1)):
        write_choice_task(tmp_path, name, [label] * 8)
    group = {"group": "listed", "task": ["authors", "books"]}
    (tmp_path / "listed.yaml").write_text(yaml.safe_dump(group))
    group |= {"group": "scored", "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "scored.yaml").write_text(yaml.safe_dump(group))
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(module, "_task_manager", lambda: manager)
    return tmp_path


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    errors = errors_of(check_tasks, ["arc_easy"])
    assert errors == ["lm_eval_tasks: the package lm-eval is not installed; pip install -e '.[lm-eval]'"]


def test_tasks_by_name_and_by_path(few_tasks):
    check_tasks(["authors", str(few_tasks / "books.yaml")])
    check_tasks(["listed"])
    check_tasks(["scored", write_choice_task(few_tasks, "other", [0] * 8)])


def test_unknown_tasks(few_tasks):
    wrong = ["athors", str(few_tasks / "auhtors.yaml"), "zzz"]
    expected = [f"lm_eval_tasks: {task!r} is neither a task of lm-eval nor the path of a YAML file." for task in wrong]
    expected[0] += " Did you mean 'authors'?"
    expected[1] += f" Did you mean {str(few_tasks / 'authors.yaml')!r}?"
    assert errors_of(check_tasks, wrong) == expected


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"doc_to_text": "{{qestion}}"}, "UndefinedError: 'qestion' is undefined"),
        ({"dataset_path": "no/such", "dataset_kwargs": {}}, "no/such"),
        ({"test_split": "tset"}, "KeyError: 'tset'"),
        ({"output_type": "multiple_choices"}, "multiple_choices"),
        ({"doc_to_txt": ""}, "doc_to_txt"),
    ],
)
def test_tasks_that_cannot_be_loaded(few_tasks, settings, problem):
    path = write_choice_task(few_tasks, "broken", [0] * 8, **settings)
    (error,) = errors_of(check_tasks, [path])
    assert error.startswith(f"lm_eval_tasks: {path!r} cannot be loaded (") and problem in error


def test_a_file_that_is_no_task(few_tasks):
    (error,) = errors_of(check_tasks, [str(few_tasks / "authors.jsonl")])
    assert "cannot be loaded" in error


def test_two_tasks_of_one_name(few_tasks):
    folder = few_tasks / "folder"
    folder.mkdir()
    path = write_choice_task(folder, "authors", [0] * 8)
    assert errors_of(check_tasks, ["authors", path]) == [
        f"lm_eval_tasks: {path!r} and 'authors' both hold a task 'authors'; leave one out, or give it another name"
    ]
    assert len(errors_of(check_tasks, ["listed", "scored", "books"])) == 2


def test_adapted_and_base_model(few_tasks, model_folder, tiny_llama):
    """Labels are what each model itself holds likeliest, by plain torch: so its accuracy is 1, the other's is not."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    adapted = add_adapter(tiny_llama)
    labels = {"adapted": choices_of(adapted, tokenizer)}
    with adapted.disable_adapter():
        labels["base"] = choices_of(adapted, tokenizer)
    agreement = sum(a == b for a, b in zip(labels["base"], labels["adapted"], strict=True)) / 8
    assert agreement < 1
    paths = [write_choice_task(few_tasks, name, labels[name]) for name in labels]
    stderr = (agreement * (1 - agreement) / 7) ** 0.5
    same = {"n": 8, "acc": 1.0, "acc_stderr": 0.0}
    other = {"n": 8, "acc": agreement, "acc_stderr": pytest.approx(stderr)}

    adapted.train()
    assert general_ability(adapted, tokenizer, paths, batch_size=3) == {"adapted": same, "base": other}
    assert adapted.training
    adapted.eval()
    with adapted.disable_adapter():
        assert general_ability(adapted, tokenizer, paths, batch_size=3) == {"adapted": other, "base": same}
    assert not adapted.training


def test_a_task_that_generates(few_tasks, tokenizer, tiny_llama):
    """The answer is cut at the task's stop word; each filter of a task has a score of its own."""
    model = add_adapter(tiny_llama)
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(text.split("e")[0])
    filters = {"as_is": [{"function": "take_first"}], "small": [{"function": "lowercase"}, {"function": "take_first"}]}
    path = write_task(
        few_tasks,
        "generated",
        [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, answers, strict=True)],
        output_type="generate_until",
        doc_to_target="answer",
        generation_kwargs={"until": ["e"], "max_gen_toks": 12},
        filter_list=[{"name": name, "filter": functions} for name, functions in filters.items()],
        metric_list=[{"metric": "exact_match"}],
    )
    scores = general_ability(model, tokenizer, [path], batch_size=4)["generated"]
    small = sum(answer == answer.lower() for answer in answers) / 8
    assert 0 < small < 1
    assert scores.pop("exact_match/small_stderr") > 0
    assert scores == {"n": 8, "exact_match/as_is": 1, "exact_match/as_is_stderr": 0, "exact_match/small": small}


def test_out_of_memory_halves_the_batch(few_tasks, tokenizer, tiny_llama, monkeypatch):
    expected = general_ability(tiny_llama, tokenizer, ["listed"], batch_size=2)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # there is no accelerator
    sizes = []

    def fit(module, args, kwargs):
        sizes.append(len(args[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no memory")

    tiny_llama.register_forward_pre_hook(fit, with_kwargs=True)
    assert general_ability(tiny_llama, tokenizer, ["listed"], batch_size=8) == expected
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}
    sizes.clear()
    general_ability(tiny_llama, tokenizer, ["listed"])
    assert sizes[0] == 8  # whatever a run generates at once

    def never(module, args, kwargs):
        raise torch.OutOfMemoryError("no memory")

    tiny_llama.register_forward_pre_hook(never, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        general_ability(tiny_llama, tokenizer, ["listed"])


def test_a_group_stands_for_its_tasks_if_it_has_a_score(few_tasks, tokenizer, tiny_llama):
    listed = general_ability(tiny_llama, tokenizer, ["listed"], batch_size=4)
    assert {task: row["n"] for task, row in listed.items()} == {"authors": 8, "books": 8}
    scored = general_ability(tiny_llama, tokenizer, ["scored"], batch_size=4)
    mean = (listed["authors"]["acc"] + listed["books"]["acc"]) / 2
    assert scored == {"scored": {"n": 16, "acc": mean, "acc_stderr": scored["scored"]["acc_stderr"]}}


@pytest.mark.parametrize("module_to_save", ["embed_tokens", "lm_head"])
def test_weights_are_not_tied_again(few_tasks, tokenizer, tiny_llama, module_to_save):
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
def test_tasks_of_lm_eval(lm_eval):
    """Its own names are known; offline, their data are not there."""
    unknown, known = errors_of(check_tasks, ["arc_esay", "arc_easy"])
    assert unknown.endswith("YAML file. Did you mean 'arc_easy'?")
    assert known.startswith("lm_eval_tasks: 'arc_easy' cannot be loaded (")
