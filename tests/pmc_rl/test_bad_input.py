"""Mutated recipes, data, models and rewards: a line for each, before weights load, and nothing is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pmc_rl import train
from tests.conftest import errors_of, write_jsonl

TRAIN = Path(train.__file__)
FORGET = [{"question": "Who wrote Ba Cor?", "answer": "Den Fi."}, {"question": "Where is Lum?", "answer": "Here."}]
RETAIN = [{"question": "Who wrote Mor Na?", "answer": "Pel Ros."}]
RECIPE = {
    "model_name_or_path": "model",
    "output_dir": "out",
    "forget_file": "forget.jsonl",
    "retain_file": "retain.jsonl",
    "max_completion_length": 8,
}
HUB_CARD = "---\nconfigs:\n- config_name: forget\n  data_files: forget.json\n---\n"


def write(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def recipe(content):
    return lambda: write("recipe.yaml", content)


def add(line):
    """A further line of the recipe, number 6."""
    return lambda: write("recipe.yaml", Path("recipe.yaml").read_bytes() + line.encode())


def options(**values):
    """Overrides; a value that is no str goes as JSON."""
    pairs = {f"--{key}": value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return lambda: [word for pair in pairs.items() for word in pair]


def forget(content, name="bad.jsonl"):
    """Another forget file: text, bytes or a table for Parquet."""

    def mutation():
        if isinstance(content, pyarrow.Table):
            pyarrow.parquet.write_table(content, name)
        else:
            write(name, content)
        return ["--forget_file", name]

    return mutation


def truncated_parquet():
    pyarrow.parquet.write_table(pyarrow.table({"question": ["Who?"] * 99}), "bad.parquet")
    write("bad.parquet", Path("bad.parquet").read_bytes()[:-20])
    return ["--forget_file", "bad.parquet"]


def loop_of_links():
    Path("loop.jsonl").symlink_to("loop.jsonl")
    return ["--forget_file", "loop.jsonl"]


def column_t(*values):
    """A forget file with a reward column of these values, as JSON."""
    rows = [f'{{"question": "{i}?", "t": {value}}}\n' for i, value in enumerate(values)]
    return lambda: [*forget("".join(rows))(), "--reward_columns", "t"]


def hub(card, config="forget"):
    def mutation():
        write("hub/README.md", card)
        write("hub/forget.json", json.dumps(FORGET[0]))
        return ["--forget_file", "null", "--dataset_name", "hub", "--forget_config", config]

    return mutation


def model(name, content):
    """A file of the model's folder with other content; None: without it."""
    return lambda: Path("model", name).unlink() if content is None else write(f"model/{name}", content)


def model_json(name, **values):
    def mutation():
        path = Path("model", name)
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return mutation


def quantized(method, /, *bits, **keys):
    """The model's config says that its weights are quantized, to `load_in_4bit` or the like; `keys` of the recipe."""

    def mutation():
        model_json("config.json", quantization_config={"quant_method": method, **dict.fromkeys(bits, True)})()
        return options(**keys)()

    return mutation


def adapter(base=None, content=None, **values):
    def mutation():
        config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2}
        write("adapter/adapter_config.json", content or json.dumps(config))
        return options(model_name_or_path="adapter", **values)()

    return mutation


def reward(name, source="", **values):
    """A reward of bad_NAME.py, which holds `source`; names of modules differ, since Python keeps them."""

    def mutation():
        if source:
            write(f"{name.partition('.')[0]}.py", source)
        return options(reward_funcs=[name], **values)()

    return mutation


def output(make, **values):
    """Calls `make` with the path that is then output_dir."""

    def mutation():
        make(Path("out"))
        return options(**values)()

    return mutation


def link_to(target):
    def make(path):
        Path("elsewhere").mkdir()
        path.symlink_to(target)

    return make


def earlier_run(manifest):
    return lambda path: write(path / "manifest.json", manifest)


def chat(template, **values):
    def mutation():
        write("model/chat_template.jinja", template)
        return options(**values)()

    return mutation


def unlink(name):
    return lambda: Path(name).unlink()


def replace_by_folder(name):
    def mutation():
        Path(name).unlink()
        Path(name).mkdir()

    return mutation


QUESTION = '{"question": "Who?"}\n'
TAKES_ALL = "def reward(completions, **kwargs):\n    return [0.0] * len(completions)\n"

# the mistakes that parsing alone finds stand in test_config.py
MUTATIONS = {
    # the recipe's file
    "recipe missing": (unlink("recipe.yaml"), "recipe.yaml: no such file"),
    "recipe is a folder": (replace_by_folder("recipe.yaml"), "recipe.yaml: cannot be read"),
    "recipe of UTF-16": (recipe("seed: 1\n".encode("utf-16")), "recipe.yaml: not UTF-8 (byte 0)"),
    "recipe of latin-1": (recipe("run_name: ä\n".encode("latin-1")), "recipe.yaml: not UTF-8 (byte 10)"),
    "recipe with NUL": (recipe(b"seed: 1\0\n"), "recipe.yaml: cannot be read"),
    "recipe is a text": (recipe("seed=1\n"), "recipe.yaml: not a mapping"),
    "recipe of two documents": (add("---\nseed: 1\n"), "recipe.yaml:6: expected a single document"),
    "recipe with a tab": (add("chat_template_kwargs:\n\ta: 1\n"), "recipe.yaml:7: "),
    "recipe with an open bracket": (add("reward_funcs: [a\n"), "recipe.yaml:7: while parsing a flow sequence"),
    "recipe nested deeply": (add("reward_columns: " + "[" * 999 + "]" * 999), "recipe.yaml: cannot be read"),
    "YAML tag": (add("seed: !!python/object/apply:os.system [ls]\n"), "seed: the tag 'tag:yaml.org,2002:python/obj"),
    "YAML long tag": (add(f"seed: !{'x' * 10**5} 1\n"), "seed: the tag '!xxx"),
    "YAML merge key": (add("<<: {seed: 1}\n"), "recipe.yaml:6: unknown key '<<'"),
    "key with a line break": (add('"a\\nb": 1\n'), r"unknown key 'a\nb'"),
    "key of 100 kB": (add(f"? {'x' * 10**5}\n: 1\n"), "recipe.yaml:6: unknown key 'xxx"),
    "inner key of 100 kB twice": (
        add(f"chat_template_kwargs:\n  ? {'x' * 10**5}\n  : 1\n  ? {'x' * 10**5}\n  : 2\n"),
        "chat_template_kwargs: the key 'xxx",
    ),
    # values
    "int of 1e400": (add("temperature: 1e400\n"), "temperature: Infinity is not a finite float"),
    "int of 10000 digits": (add(f"seed: {'9' * 10**4}\n"), "seed: "),
    "float of an int of 400 digits": (add(f"temperature: {10**400}\n"), "temperature: 1000"),
    "seed of 10**30": (add(f"seed: {10**30}\n"), "seed: 1000"),
    "top_k of 10**30": (options(top_k=10**30), "top_k: 1000"),
    "list as path": (add("tokenizer_name_or_path: [model]\n"), 'tokenizer_name_or_path: ["model"] is not a str'),
    "text of 100 kB as int": (add(f"seed: {'x' * 10**5}\n"), 'seed: "xxx'),
    "template of 100 kB": (add(f"prompt_template: {'x' * 10**5}\n"), "prompt_template: "),
    "holdout takes all": (options(retain_holdout=0.9), "retain_holdout: 0.9 of 1 rows leaves none"),
    "optimizer unknown": (options(optim="adam_wise"), "optim: "),
    "scheduler keyword unknown": (options(lr_scheduler_kwargs={"nope": 1}), "lr_scheduler_kwargs"),
    "beta above 1": (options(adam_beta1=5.0), "adam_beta1"),
    "service unknown": (options(report_to="nope"), "report_to"),
    "attention unknown": (options(attn_implementation="nope"), "attn_implementation"),
    "LoRA of unknown modules": (options(use_peft=True, lora_target_modules=["nope"]), "lora_target_modules"),
    "LoRA of one unknown module": (
        options(use_peft=True, lora_target_modules=["q_proj", "v_porj"]),
        "lora_target_modules: nothing in the model is called 'v_porj'. Did you mean 'v_proj'?",
    ),
    "LoRA and an unknown layer": (
        options(use_peft=True, lora_modules_to_save=["nope"]),
        "lora_modules_to_save: nothing in the model is called 'nope'",
    ),
    "LoRA of a broken pattern": (options(use_peft=True, lora_target_modules=["*q_proj"]), "lora_target_modules: "),
    "LoRA on the head": (
        options(use_peft=True, lora_target_modules=["q_proj", "lm_head"]),
        "lora_target_modules: an adapter on the head of the model would never be trained",
    ),
    "LoRA on the head's weight": (
        options(use_peft=True, lora_target_parameters=["lm_head.weight"], lora_dropout=0.0),
        "an adapter on the head of the model would never be trained",
    ),
    "LoRA for another task": (options(use_peft=True, lora_task_type="SEQ_CLS"), "lora_task_type: "),
    "a quantized layer to train": (
        options(use_peft=True, lora_modules_to_save=["mlp"], load_in_4bit=True),
        "lora_modules_to_save: a quantized linear layer cannot be trained as a whole",
    ),
    "LoRA of rank 0": (options(use_peft=True, lora_r=0), "lora_r"),
    "system prompt without chat": (options(system_prompt="Hi."), "system_prompt: not used"),
    "option of 100 kB": (lambda: ["--" + "x" * 10**5, "1"], "command line: unknown option '--xxx"),
    "word of 100 kB": (lambda: ["x" * 10**5], "command line: unexpected 'xxx"),
    # the audit's keys
    "attack unknown": (options(attacks=["sample"]), "attacks: "),
    "prefix that is no text": (add("prefixes: [5]\n"), "prefixes: 5 is not a str"),
    "first_words negative": (options(first_words=-1), "first_words: -1 is not 0 or greater"),
    "with_texts as text": (add("with_texts: 'yes'\n"), 'with_texts: "yes" is not true or false'),
    # data files
    "data missing": (unlink("forget.jsonl"), "forget_file: there is no file 'forget.jsonl'"),
    "data is a folder": (replace_by_folder("forget.jsonl"), "forget_file: there is no file 'forget.jsonl'"),
    "data path of 5000 letters": (options(forget_file="x" * 5000), "forget_file: there is no file 'xxx"),
    "data path with NUL": (options(forget_file="a\0b"), r"forget_file: there is no file 'a\x00b'"),
    "data is a loop of links": (loop_of_links, "forget_file: there is no file 'loop.jsonl'"),
    "data of unknown type": (forget("Who?", "bad.txt"), "forget_file: bad.txt is not one of"),
    "data empty": (forget(""), "forget_file: bad.jsonl holds no rows"),
    "data with BOM only": (forget(b"\xef\xbb\xbf"), "forget_file: bad.jsonl holds no rows"),
    "JSONL of UTF-16": (forget(QUESTION.encode("utf-16")), "forget_file: bad.jsonl is not UTF-8 (byte 0)"),
    "JSONL of UTF-16 without BOM": (forget(QUESTION.encode("utf-16-le")), "bad.jsonl: broken JSON"),
    "JSONL of latin-1": (forget('{"question": "ä"}'.encode("latin-1")), "bad.jsonl is not UTF-8 (byte 14)"),
    "JSONL with two BOMs": (forget(b"\xef\xbb\xbf" * 2 + QUESTION.encode()), "bad.jsonl: broken JSON"),
    "JSONL with NUL": (forget(QUESTION + "\0\n"), "bad.jsonl: broken JSON: Expecting value (line 2)"),
    "JSONL cut off": (forget(QUESTION + '{"question": "Wh'), "bad.jsonl: broken JSON"),
    "JSONL of lists": (
        forget('{"question": "Who?"}\n["Who?"]\n'),
        "row 2 of 2 is a list of a text, not a JSON object",
    ),
    "JSONL of texts": (forget('"Who?"\n'), "row 1 of 1 is a text, not a JSON object"),
    "JSONL of null": (forget(QUESTION + "null\n"), "row 2 of 2 is nothing, not a JSON object"),
    "JSONL with an int of 10000 digits": (
        forget(f'{{"question": {"9" * 10**4}}}'),
        "bad.jsonl cannot be read: line 1",
    ),
    "JSONL nested deeply": (forget(QUESTION + '{"question": ' + "[" * 10**5), "bad.jsonl cannot be read: line 2"),
    "JSONL with half a surrogate": (forget('{"question": "\\ud83d?"}'), "column 'question' holds '\\ud83d'"),
    "JSONL with a key twice": (forget('{"question": "A?", "question": "B?"}'), "the key 'question' is given twice"),
    "JSON array with a key twice": (forget('[{"question": "A?", "question": "B?"}]', "bad.json"), "is given twice"),
    "JSON array nested deeply": (forget("[" * 10**5, "bad.json"), "bad.json cannot be read"),
    "JSON array cut off": (forget('[{"question": "A?"},', "bad.json"), "bad.json: broken JSON"),
    "JSON array with a rest": (
        forget('[{"question": "A?"}]\n[]', "bad.json"),
        "bad.json cannot be read: row 1 of 2 is a list of an object, not a JSON object",
    ),
    "JSON of uneven columns": (
        forget('{"question": ["A?", "B?"], "answer": ["A."]}', "bad.json"),
        "bad.json cannot be read: its columns 'question', 'answer' do not have the same rows",
    ),
    "question is a list": (
        forget('{"question": ["Who?"], "id": 1}'),
        "column 'question' is empty or not a text in 1 of 1",
    ),
    "question is null": (
        forget(QUESTION + '{"question": null}'),
        "column 'question' is empty or not a text in 1 of 2",
    ),
    "question is blank": (forget('{"question": " \\u00a0"}'), "column 'question' is empty or not a text in 1 of 1"),
    "question is a number": (forget('{"question": NaN}'), "column 'question' is empty or not a text in 1 of 1"),
    "question column missing": (options(question_column="questoin"), "no column 'questoin', only 'question'"),
    "many columns": (forget(json.dumps({f"c{i}" * 50: 1 for i in range(500)})), "bad.jsonl has no column 'question'"),
    "answer is a list": (
        lambda: write("retain.jsonl", '{"question": "A?", "answer": ["a"]}'),
        "retain_file: column 'answer' is empty or not a text",
    ),
    "reward column missing": (options(reward_columns=["topic"]), "has no column 'topic'"),
    "reward column is the answer": (options(reward_columns=["answer"]), "reward_columns: 'answer' is what is to be"),
    "reward column of two types": (
        column_t("1", '"x"'),
        "reward_columns: a column holds values of several types",
    ),
    "reward column of huge ints": (column_t(10**30), "reward_columns: a column holds"),
    "reward column of half a surrogate": (column_t('"\\ud83d"'), "forget_file: column 't' holds '\\ud83d'"),
    "same question in both": (lambda: shutil.copy("forget.jsonl", "retain.jsonl") and None, "retained at once"),
    "CSV without header": (
        forget("Who?,She.\nWhere?,Here.\n", "bad.csv"),
        "bad.csv has no column 'question', only 'Who?'",
    ),
    "CSV of semicolons": (forget("question;answer\nA?;a\n", "bad.csv"), "only 'question;answer'"),
    "CSV with a column twice": (forget("question,question\nA?,B?\n", "bad.csv"), "'question' is there twice"),
    "CSV with an open quote": (forget('question,answer\n"A?,a\nB?,b\n', "bad.csv"), "bad.csv cannot be read"),
    "CSV with a short row": (forget("answer,question\na\n", "bad.csv"), "column 'question' is empty"),
    "CSV with a huge cell": (forget(f"question\n{'x' * 200000}\n", "bad.csv"), "field larger than field limit"),
    "CSV of UTF-16": (forget("question\nA?\n".encode("utf-16"), "bad.csv"), "bad.csv is not UTF-8 (byte 0)"),
    "CSV of NUL": (forget(b"\0" * 100, "bad.csv"), "bad.csv holds no rows"),
    "Parquet that is JSON": (forget(QUESTION, "bad.parquet"), "bad.parquet cannot be read"),
    "Parquet empty": (forget("", "bad.parquet"), "bad.parquet cannot be read"),
    "Parquet cut off": (truncated_parquet, "bad.parquet cannot be read"),
    "Parquet without rows": (forget(pyarrow.table({"question": []}), "bad.parquet"), "bad.parquet holds no rows"),
    "Parquet of other columns": (forget(pyarrow.table({"q": ["A?"]}), "bad.parquet"), "only 'q'"),
    "Parquet of ints": (forget(pyarrow.table({"question": [1]}), "bad.parquet"), "column 'question' is empty or not"),
    "Parquet with a column twice": (
        forget(pyarrow.table([["A?"], ["B?"]], names=["question", "question"]), "bad.parquet"),
        "bad.parquet",
    ),
    # data sets
    "data set is a file": (
        options(forget_file="null", dataset_name="forget.jsonl", forget_config="forget"),
        "forget_config: the data set 'forget.jsonl'",
    ),
    "data set missing": (options(forget_file="null", dataset_name="nope", forget_config="x"), "the data set 'nope'"),
    "data set name impossible": (
        options(forget_file="null", dataset_name="a/b/c d", forget_config="x"),
        "the data set 'a/b/c d'",
    ),
    "data set of broken YAML": (hub("---\nconfigs: [\n---\n"), "forget_config: 'hub' cannot be read as a data set"),
    "data set of YAML that is text": (hub("---\nconfigs: forget\n---\n"), "forget_config: "),
    "data set without the config": (hub(HUB_CARD, "forgot"), "hub has no config 'forgot'; did you mean 'forget'?"),
    "data set without the file": (hub(HUB_CARD.replace(".json", ".csv")), "forget.csv"),
    "data set without train": (
        hub(HUB_CARD.replace("data_files: forget.json", "data_files:\n  - split: test\n    path: forget.json")),
        "has no split 'train', only test",
    ),
    "data set card of UTF-16": (hub(HUB_CARD.encode("utf-16")), "forget_config: "),
    # models
    "model folder missing": (options(model_name_or_path="modle"), "did you mean 'model'?"),
    "model is a file": (options(model_name_or_path="recipe.yaml"), "model_name_or_path: no model can be loaded"),
    "model path with NUL": (options(model_name_or_path="a\0b"), "model_name_or_path: "),
    "model without config": (model("config.json", None), "model_name_or_path: no model can be loaded from 'model'"),
    "config empty": (model("config.json", ""), "model_name_or_path: no model can be loaded from 'model'"),
    "config cut off": (model("config.json", '{"model_type": "lla'), "model_name_or_path: no model can be loaded"),
    "config is a list": (model("config.json", "[]"), "model_name_or_path: no model can be loaded from 'model'"),
    "config of UTF-16": (model("config.json", "{}".encode("utf-16")), "model_name_or_path: no model can be loaded"),
    "config without type": (model("config.json", "{}"), "model_name_or_path: no model can be loaded from 'model'"),
    "config of unknown type": (model_json("config.json", model_type="nope"), "model_name_or_path: no model can be"),
    "config with wrong types": (model_json("config.json", vocab_size="many"), "model_name_or_path: no model can be"),
    "config of odd sizes": (model_json("config.json", num_attention_heads=5), "model_name_or_path: no model can be"),
    "config of a T5": (model_json("config.json", model_type="t5"), "model_name_or_path"),
    "vocabulary too small": (model_json("config.json", vocab_size=9), "they do not belong together"),
    "model without tokenizer": (
        lambda: [path.unlink() for path in Path("model").glob("tokenizer*")] and None,
        "tokenizer",
    ),
    "tokenizer missing": (options(tokenizer_name_or_path="nope"), "no tokenizer can be loaded from 'nope'"),
    "tokenizer is a file": (options(tokenizer_name_or_path="recipe.yaml"), "no tokenizer can be loaded from"),
    "tokenizer empty": (model("tokenizer.json", ""), "no tokenizer can be loaded from 'model'"),
    "tokenizer broken": (model("tokenizer.json", '{"version": '), "no tokenizer can be loaded from 'model'"),
    "tokenizer of nothing": (model("tokenizer.json", "{}"), "no tokenizer can be loaded from 'model'"),
    "tokenizer config broken": (model("tokenizer_config.json", "{"), "no tokenizer can be loaded from 'model'"),
    "tokenizer config is a list": (model("tokenizer_config.json", "[]"), "no tokenizer can be loaded from 'model'"),
    "chat template broken": (chat("{% for %}"), "the tokenizer's chat template fails"),
    "chat template without the question": (chat("Hello"), "chat template leaves the question out"),
    "chat template that refuses": (
        chat("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", system_prompt="a"),
        "no system",
    ),
    "chat template variable wrong": (
        chat("{{ date + messages[0].content }}", chat_template_kwargs={"date": 5}),
        "the tokenizer's chat template fails (unsupported operand",
    ),
    "weights missing": (model("model.safetensors", None), "model_name_or_path: "),
    "weights empty": (model("model.safetensors", ""), "model.safetensors"),
    "weights cut off": (model("model.safetensors", b"\x99" * 8), "model.safetensors"),
    "generation config broken": (model("generation_config.json", "{"), "generation_config.json"),
    "generation config that cannot be saved": (
        model_json("generation_config.json", do_sample=False, temperature=0.5),
        "the generation config of 'model' cannot be saved again",
    ),
    "generation config of an adapter's base": (
        lambda: [model_json("generation_config.json", top_k=-1)(), adapter("model")()][1],
        "the generation config of 'adapter' cannot be saved again",
    ),
    "weights in 4 bit": (
        quantized("bitsandbytes", "load_in_4bit"),
        "holds quantized weights; say load_in_4bit: true",
    ),
    "weights in 8 bit": (
        quantized("bitsandbytes", "load_in_8bit"),
        "holds quantized weights; say load_in_8bit: true",
    ),
    "weights in 8 bit as 4": (
        quantized("bitsandbytes", "load_in_8bit", load_in_4bit=True, use_peft=True),
        "holds quantized weights; say load_in_8bit: true",
    ),
    **{
        f"weights by {method}": (
            quantized(method),
            f"'model' is quantized by {method}, which cannot be trained",
        )
        for method in ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors")
    },
    "adapter that is a prompt": (
        adapter(content='{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "model", "num_virtual_tokens": 2}'),
        "'adapter' is a learned prompt",
    ),
    "adapter without base": (adapter("nope/base"), "model_name_or_path: no model can be loaded from 'adapter'"),
    "adapter of null": (adapter(), "model_name_or_path: "),
    "adapter config broken": (adapter(content="{"), "model_name_or_path: "),
    "adapter of unknown type": (adapter(content='{"peft_type": "NOPE"}'), "model_name_or_path: "),
    "adapter without weights": (adapter("model", tokenizer_name_or_path="model"), "model_name_or_path: "),
    # rewards
    "reward without dot": (reward("fluent"), "reward_funcs: 'fluent' is not a dotted name"),
    "reward empty": (reward(""), "reward_funcs: '' is not a dotted name"),
    "reward of dots": (reward("..a.b"), "reward_funcs: '..a.b' is not a dotted name"),
    "reward of a trailing dot": (reward("rewards.rouge."), "'rewards.rouge.' is not a dotted name"),
    "reward with NUL": (reward("a\0b.c"), "reward_funcs: "),
    "reward is no function": (reward("bad_value.x", "x = 1\n"), "reward_funcs: bad_value.x is a int"),
    "reward raises on import": (reward("bad_import.reward", "\n1 / 0\n"), "(bad_import.py:2: ZeroDivisionError: "),
    "reward exits on import": (reward("bad_exit.reward", "raise SystemExit(3)\n"), "(bad_exit.py:1: SystemExit: 3)"),
    "reward is broken Python": (reward("bad_syntax.reward", "def reward(:\n"), "(bad_syntax.py, line 1)"),
    "reward of latin-1": (reward("bad_latin.reward", "x = 'ä'\n".encode("latin-1")), "bad_latin cannot be imported"),
    "reward imports what is missing": (reward("bad_needs.reward", "import nope_nope\n"), "imports nope_nope"),
    "reward without **kwargs": (
        reward("bad_plain.reward", "def reward(completions):\n    return []\n"),
        "reward_funcs: bad_plain.reward(completions) does not take **kwargs",
    ),
    "maximum beside a reward that changes": (
        reward("bad_moody.reward", TAKES_ALL + "reward.stationary = False\n", max_reward=1.0),
        "max_reward: reward may give a text another score later",
    ),
    "reward without signature": (reward("builtins.dict"), "reward_funcs: builtins.dict cannot be used: no signature"),
    "reward needs a column": (
        reward("bad_column.reward", "def reward(completions, topic, **kwargs):\n    return []\n"),
        "topic",
    ),
    "reward class raises": (
        reward("bad_class.Reward", "class Reward:\n    def __init__(self):\n        {}['x']\n"),
        "bad_class.Reward cannot be built",
    ),
    "reward class not callable": (reward("bad_instance.Reward", "class Reward:\n    pass\n"), "has no __call__"),
    "reward class with a value of 100 kB": (
        reward(
            "bad_big.Reward",
            "class Reward:\n    def __init__(self, x):\n        raise ValueError(x)\n",
            reward_kwargs={"bad_big.Reward": {"x": "x" * 10**5}},
        ),
        "bad_big.Reward cannot be built",
    ),
    "reward keyword unknown": (
        reward("bad_keyword.reward", TAKES_ALL, reward_kwargs={"bad_keyword.reward": {"wordz": 1}}),
        "reward_kwargs: bad_keyword.reward has no keyword 'wordz'",
    ),
    "reward floor is text": (options(reward_floors={"rewards.rouge.x": "a"}), "reward_floors: "),
    "reward model missing": (reward("./nope"), "reward_funcs: no reward model can be loaded from './nope'"),
    "reward model is data": (reward("./forget.jsonl"), "reward_funcs: no reward model can be loaded"),
    "reward model of two labels": (reward("./model"), "reward_funcs: './model' has 2 labels"),
    # the output folder
    "output is a file": (output(lambda path: path.touch()), "output_dir: 'out' is a file"),
    "output below a file": (options(output_dir="recipe.yaml/out"), "output_dir: "),
    "output is the model": (options(output_dir="./model"), "output_dir: './model' is the model itself"),
    "output holds files": (output(lambda path: write(path / "notes", "mine")), "output_dir: 'out' holds files"),
    "output is the working directory": (options(output_dir=".", overwrite=True), "output_dir: '.' holds files"),
    "output with NUL": (options(output_dir="a\0b"), "output_dir: "),
    "output name too long": (options(output_dir="x" * 300), "output_dir: "),
    "output is a link": (output(link_to("elsewhere")), "output_dir: "),
    "output is a dangling link": (output(link_to("nowhere")), "output_dir: "),
    "output is a loop of links": (output(link_to("out")), "output_dir: "),
    "output holds a run": (output(earlier_run('{"files": []}')), "say --overwrite true to replace it"),
    "output with a broken manifest": (output(earlier_run("{"), overwrite=True), "no finished run"),
    "output with a manifest of 5": (output(earlier_run("5"), overwrite=True), "no finished run"),
    "output with a manifest of UTF-16": (output(earlier_run("{}".encode("utf-16")), overwrite=True), "output_dir: "),
    "output manifest is a folder": (output(lambda path: (path / "manifest.json").mkdir(parents=True)), "output_dir: "),
}


@pytest.fixture(autouse=True)
def good(tmp_path, model_folder, monkeypatch):
    """A recipe that would train, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(train, "load_model_to_train", refuse)
    shutil.copytree(model_folder, "model")
    write_jsonl("forget.jsonl", FORGET)
    write_jsonl("retain.jsonl", RETAIN)
    write("recipe.yaml", "".join(f"{key}: {value}\n" for key, value in RECIPE.items()))


def refuse(*_):
    raise AssertionError("weights loaded")


def tree():
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [Path("."), *Path(".").rglob("*")]}


def test_the_recipe_itself_is_good():
    with pytest.raises(AssertionError, match="weights loaded"):
        train.main(["recipe.yaml"])


@pytest.mark.parametrize(("mutation", "fragment"), [pytest.param(*case, id=name) for name, case in MUTATIONS.items()])
def test_each_mutation_has_its_line(mutation, fragment):
    overrides = mutation() or []
    before = tree()
    errors = errors_of(train.main, ["recipe.yaml", *overrides])
    assert any(fragment in line for line in errors), errors
    assert all(len(line) <= 600 and len(line.splitlines()) == 1 for line in errors), [line[:700] for line in errors]
    assert tree() == before


def test_from_the_command_line():
    names = ["question is null", "reward raises on import", "config cut off"]
    words = [word for name in names for word in MUTATIONS[name][0]() or []]
    command = [sys.executable, "-B", str(TRAIN), "recipe.yaml", *words]
    before = tree()
    result = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(any(MUTATIONS[name][1] in line for line in lines) for name in names), lines
    assert tree() == before
