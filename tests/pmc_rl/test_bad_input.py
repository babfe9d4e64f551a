"""Mutated data, models, rewards and folders: a line for each, before weights load, and nothing is written."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from pmc_rl import train
from tests.conftest import errors_of, write_jsonl
from tests.training import write_recipe

FORGET = [{"question": "Who wrote Ba Cor?", "answer": "Den Fi."}, {"question": "Where is Lum?", "answer": "Here."}]
RETAIN = [{"question": "Who wrote Mor Na?", "answer": "Pel Ros."}]
RECIPE = {
    "model_name_or_path": "model",
    "output_dir": "out",
    "forget_file": "forget.jsonl",
    "retain_file": "retain.jsonl",
    "max_completion_length": 8,
}
QUESTION = '{"question": "Who?"}\n'
TAKES_ALL = "def reward(completions, **kwargs):\n    return [0.0] * len(completions)\n"
ON_MODEL, ADAPTER_WEIGHTS = {"base_model_name_or_path": "model"}, "adapter/adapter_model.safetensors"
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
NO_WEIGHTS = b"\x02" + bytes(7) + b"{}"  # a safetensors file
HUB_CARD = "---\nconfigs:\n- config_name: forget\n  data_files: forget.json\n---\n"


def changed(files=None, **options):
    """
    A mutation: what stands at paths, and options of the command line. Content may be text, bytes, a dict
    (keys of a JSON file that is there), None (no file), a Path (a link to it) or [] (an empty folder).
    """
    return files or {}, options


def forget(content, name="bad.jsonl", **options):
    return changed({name: content}, forget_file=name, **options)


def hub(card):
    files = {"hub/README.md": card, "hub/forget.json": json.dumps(FORGET[0])}
    return changed(files, forget_file=None, dataset_name="hub", forget_config="forget")


def model(name, content, **options):
    return changed({f"model/{name}": content}, **options)


def quantized(method, *bits, **options):
    """The model's config says that its weights are quantized, to `load_in_4bit` or the like."""
    config = {"quantization_config": {"quant_method": method, **dict.fromkeys(bits, True)}}
    return model("config.json", config, **options)


def adapter(content, files=None, **options):
    text = content if isinstance(content, str) else json.dumps({"peft_type": "LORA", "r": 2} | content)
    return changed({"adapter/adapter_config.json": text} | (files or {}), model_name_or_path="adapter", **options)


def lora(**options):
    return changed(use_peft=True, **options)


def reward(name, source=None, **options):
    """A reward of bad_NAME.py, which holds `source`; names of modules differ, since Python keeps them."""
    return changed({f"{name.partition('.')[0]}.py": source} if source else {}, reward_funcs=[name], **options)


# the mistakes that parsing alone finds stand in test_config.py
MUTATIONS = {
    # values
    "holdout takes all": (changed(retain_holdout=0.9), "retain_holdout: 0.9 of 1 rows leaves none"),
    "optimizer unknown": (changed(optim="adam_wise"), "optim: "),
    "attention unknown": (changed(attn_implementation="nope"), "attn_implementation"),
    "system prompt without chat": (changed(system_prompt="Hi."), "system_prompt: not used"),
    # adapters to be trained
    "one unknown module": (lora(lora_target_modules=["q_proj", "v_porj"]), "called 'v_porj'. Did you mean 'v_proj'?"),
    "an unknown layer": (lora(lora_modules_to_save=["nope"]), "lora_modules_to_save: nothing in the model is called"),
    "a broken pattern": (lora(lora_target_modules=["*q_proj"]), "lora_target_modules: "),
    "the head": (lora(lora_target_modules=["q_proj", "lm_head"]), "lora_target_modules: an adapter on the head of"),
    "its weight": (lora(lora_target_parameters=["lm_head.weight"], lora_dropout=0), "an adapter on the head of the"),
    "another task": (lora(lora_task_type="SEQ_CLS"), "lora_task_type: "),
    "a quantized layer": (lora(lora_modules_to_save=["mlp"], load_in_4bit=True), "a quantized linear layer cannot be"),
    # data files
    "no data": (changed({"forget.jsonl": None}), "forget_file: there is no file 'forget.jsonl'"),
    "data empty": (forget(b"\xef\xbb\xbf"), "forget_file: bad.jsonl holds no rows"),
    "JSONL with half a surrogate": (forget('{"question": "\\ud83d?"}'), "column 'question' holds '\\ud83d'"),
    "JSONL with a key twice": (forget('{"question": "A?", "question": "B?"}'), "the key 'question' is given twice"),
    "question is a list": (forget('{"question": ["A?"], "id": 1}'), "column 'question' is empty or not a text in 1"),
    "answer is a list": (changed({"retain.jsonl": '{"question": "A?", "answer": ["a"]}'}), "retain_file: column"),
    "no reward column": (changed(reward_columns=["topic"]), "has no column 'topic'"),
    "reward column is the answer": (changed(reward_columns=["answer"]), "reward_columns: 'answer' is what is to be"),
    "reward column of two types": (
        forget('{"question": "A?", "t": 1}\n{"question": "B?", "t": "x"}', reward_columns=["t"]),
        "values of several types",
    ),
    "same question in both": (changed({"retain.jsonl": json.dumps(FORGET[0])}), "retained at once"),
    "CSV with a column twice": (forget("question,question\nA?,B?\n", "bad.csv"), "'question' is there twice"),
    "CSV with an open quote": (forget('question,answer\n"A?,a\nB?,b\n', "bad.csv"), "bad.csv cannot be read"),
    "Parquet that is JSON": (forget(QUESTION, "bad.parquet"), "bad.parquet cannot be read"),
    # data sets
    "data set is a file": (
        changed(forget_file=None, dataset_name="forget.jsonl", forget_config="x"),
        "the data set '",
    ),
    "broken card": (hub("---\nconfigs: [\n---\n"), "forget_config: 'hub' cannot be read as a data set"),
    "config without its file": (hub(HUB_CARD.replace(".json", ".csv")), "forget.csv"),
    # models
    "no model folder": (changed(model_name_or_path="modle"), "did you mean 'model'?"),
    "config cut off": (model("config.json", '{"model_type": "lla'), "model_name_or_path: no model can be loaded"),
    "config of unknown type": (model("config.json", {"model_type": "nope"}), "model_name_or_path: no model can be"),
    "config with wrong types": (model("config.json", {"vocab_size": "many"}), "model_name_or_path: no model can be"),
    "config of a T5": (model("config.json", {"model_type": "t5"}), "model_name_or_path"),
    "vocabulary too small": (model("config.json", {"vocab_size": 9}), "they do not belong together"),
    "no tokenizer": (changed({"model/tokenizer.json": None, "model/tokenizer_config.json": None}), "tokenizer"),
    "tokenizer broken": (model("tokenizer.json", '{"version": '), "no tokenizer can be loaded from 'model'"),
    "chat template broken": (model("chat_template.jinja", "{% for %}"), "the tokenizer's chat template fails"),
    "chat without the question": (model("chat_template.jinja", "Hello"), "chat template leaves the question out"),
    "template refuses": (model("chat_template.jinja", "{{ raise_exception('never') }}", system_prompt="a"), "never"),
    "no weights": (model("model.safetensors", None), "model_name_or_path: "),
    "weights cut off": (model("model.safetensors", b"\x99" * 8), "model.safetensors"),
    "generation config broken": (model("generation_config.json", "{"), "generation_config.json"),
    "generation config at odds": (model("generation_config.json", {"do_sample": False, "top_p": 0.5}), "saved again"),
    "generation config of an adapter's base": (
        adapter(ON_MODEL, {ADAPTER_WEIGHTS: NO_WEIGHTS, "model/generation_config.json": {"top_k": -1}}),
        "config of 'adapter' cannot be saved again",
    ),
    "weights in 4 bit": (quantized("bitsandbytes", "load_in_4bit"), "holds quantized weights; say load_in_4bit: true"),
    "weights in 8 bit": (quantized("bitsandbytes", "load_in_8bit"), "holds quantized weights; say load_in_8bit: true"),
    "8 bit as 4": (quantized("bitsandbytes", "load_in_8bit", load_in_4bit=True, use_peft=True), "load_in_8bit: true"),
    "weights by GPTQ": (quantized("gptq"), "'model' is quantized by gptq, which cannot be trained"),
    "adapter that is a prompt": (adapter(ON_MODEL | PROMPT), "'adapter' is a learned prompt"),
    "adapter without base": (adapter({"base_model_name_or_path": "nope/base"}), "can be loaded from 'adapter'"),
    "adapter config broken": (adapter("{"), "model_name_or_path: "),
    "adapter without weights": (adapter(ON_MODEL, tokenizer_name_or_path="model"), "'adapter' holds no safetensors"),
    # rewards
    "raises on import": (reward("bad_import.reward", "\n1 / 0\n"), "(bad_import.py:2: ZeroDivisionError: "),
    "exits on import": (reward("bad_exit.reward", "raise SystemExit(3)\n"), "(bad_exit.py:1: SystemExit: 3)"),
    "moody": (
        reward("bad_moody.reward", TAKES_ALL + "reward.stationary = False\n", max_reward=1.0),
        "max_reward: rew",
    ),
    "no signature": (reward("builtins.dict"), "reward_funcs: builtins.dict cannot be used: no signature"),
    "needs a column": (reward("bad_column.reward", TAKES_ALL.replace("**", "topic, **")), "topic"),
    "class not callable": (reward("bad_instance.Reward", "class Reward:\n    pass\n"), "has no __call__"),
    "reward model of two labels": (reward("./model"), "reward_funcs: './model' has 2 labels"),
    # the output folder
    "output is a file": (changed({"out": ""}), "output_dir: 'out' is a file"),
    "output below a file": (changed(output_dir="recipe.yaml/out"), "output_dir: "),
    "output is the model": (changed(output_dir="./model"), "output_dir: './model' is the model itself"),
    "output holds files": (changed({"out/notes": "mine"}), "output_dir: 'out' holds files"),
    "output is here": (changed(output_dir=".", overwrite=True), "output_dir: '.' holds files"),
    "output is a link": (changed({"elsewhere": [], "out": Path("elsewhere")}), "output_dir: "),
    "output holds a run": (changed({"out/manifest.json": '{"files": []}'}), "say --overwrite true to replace it"),
    "output with a broken manifest": (changed({"out/manifest.json": "{"}, overwrite=True), "no finished run"),
    "output manifest is a folder": (changed({"out/manifest.json": []}), "output_dir: "),
}


def refuse(*_):
    raise AssertionError("weights loaded")


@pytest.fixture(autouse=True)
def good(tmp_path, model_folder, monkeypatch):
    """A recipe that would train, in the working directory; its model's folder is shared by all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(train, "load_model_to_train", refuse)
    Path("model").symlink_to(model_folder)
    write_jsonl("forget.jsonl", FORGET)
    write_jsonl("retain.jsonl", RETAIN)
    write_recipe(Path("recipe.yaml"), **RECIPE)


def apply(mutation) -> list[str]:
    """Changes the files, and returns the options as words."""
    files, options = mutation
    if any(name.startswith("model/") for name in files):
        folder = Path("model").resolve()
        Path("model").unlink()
        shutil.copytree(folder, "model")
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        elif content == []:
            path.mkdir()
        elif isinstance(content, Path):
            path.symlink_to(content)
        elif isinstance(content, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | content))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    pairs = [(f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in options.items()]
    return [word for pair in pairs for word in pair]


def tree():
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [Path("."), *Path(".").rglob("*")]}


def test_the_recipe_itself_is_good():
    with pytest.raises(AssertionError, match="weights loaded"):
        train.main(["recipe.yaml"])


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_has_its_line(name):
    mutation, fragment = MUTATIONS[name]
    words = apply(mutation)
    before = tree()
    errors = errors_of(train.main, ["recipe.yaml", *words])
    assert any(fragment in line for line in errors), errors
    assert all(len(line) <= 600 and len(line.splitlines()) == 1 for line in errors), errors
    assert tree() == before


def test_all_at_once_from_the_command_line(monkeypatch, capsys):
    names = ["question is a list", "raises on import", "config cut off"]
    words = [word for name in names for word in apply(MUTATIONS[name][0])]
    before = tree()
    monkeypatch.setattr(sys, "argv", ["train.py", "recipe.yaml", *words])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(train.__file__, run_name="__main__")
    assert raised.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(any(MUTATIONS[name][1] in line for line in lines) for name in names), lines
    assert tree() == before
