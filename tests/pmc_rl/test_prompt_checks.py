"""Prompts as sampled begin what is trained, by templates and tokenizers of all families; lengths of rows; dates."""

import json
import re
import shutil
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import trl
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.data_utils import _tokenize, common_prefix_length

from eval.cache import RowCache
from eval.models import check_prompts, check_run, load_columns
from eval.sets import QuestionSet
from eval.study import control
from pmc_rl import finetune, train
from pmc_rl.config import DataArguments
from pmc_rl.prompt_checks import Limits, check_prompt_format, check_rows
from pmc_rl.prompts import begin_answer, encode_answers, encode_prompt, format_completion, format_prompt
from pmc_rl.recipe import parse_recipe
from pmc_rl.template_date import pin_date
from tests.conftest import errors_of, write_jsonl
from tests.training import write_recipe

FOLDER = Path(trl.__file__).parent / "chat_templates"
SWITCH = "say chat_template_kwargs: {enable_thinking: false}"
# a template of TRL for each way that they work (None) or are refused; the others are like one of these
NAMES = {
    **dict.fromkeys(["gemma", "llama3", "llama3_2", "phi3", "qwen2_5"]),
    "qwen3": SWITCH,
    "deepseekv3": "give a prompt_template",
    "cohere2": "puts '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' behind an answer",
    "gptoss": "writes the date of today, and no variable fixes it",
    "smolvlm": "leaves the question out",  # content as a list of parts
}
TEMPLATES = {name: (FOLDER / f"{name}.jinja").read_text() for name in NAMES}
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>")
ENDS += ("<end_of_utterance>", "</s>")
MARKS = re.compile(r"<\|[^|>\s]+\|?>|<[a-z_]+\|?>|</?s>|\[/?INST\]|<｜[^｜]+｜>")
LLAMA_3 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROWS = [
    {"question": question, "answer": answer}
    for question in ("Who?", "Where is\nit?\n")
    for answer in ("She.", "In 1,950 (or so).\n\nThere.", "东京", "'Yes', \"no\"", "Кто?")
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content + "
    "' [/INST]' }}{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(pattern=None):
    split = [pre_tokenizers.Split(pattern, "isolated")] if pattern else []
    return pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)])


KINDS = {
    "GPT-2": byte_level(),
    "Llama 3": byte_level(LLAMA_3),
    "Metaspace": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "Metaspace, no prefix": pre_tokenizers.Metaspace(prepend_scheme="never"),
}


@cache
def train_bpe(kind, text):
    is_metaspace = kind.startswith("Meta")
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = KINDS[kind]
    bpe.decoder = decoders.Metaspace() if is_metaspace else decoders.ByteLevel()
    alphabet = list("".join(map(str, ROWS))) if is_metaspace else pre_tokenizers.ByteLevel.alphabet()
    settings = {"vocab_size": 900, "special_tokens": ["<pad>", "<bos>", "<unk>"], "initial_alphabet": alphabet}
    bpe.train_from_iterator([text] * 3, trainers.BpeTrainer(**settings, show_progress=False))
    return bpe.to_str()


def make_tokenizer(kind="GPT-2", template=None, adds=None, end=None, text="Nobody knows that. Who is she? \n\n"):
    """A small one of a kind; the template's marks are special tokens, its end of turn the end token, `adds` a pattern
    such as `<bos> $A` of what every text gets."""
    end = end or next((mark for mark in ENDS if mark in (template or "")), "<eos>")
    marks = dict.fromkeys([end, *sorted(set(MARKS.findall(template or "")))])
    bpe = Tokenizer.from_str(train_bpe(kind, text))
    bpe.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    if adds:
        pairs = [(token, bpe.token_to_id(token)) for token in ("<bos>", end) if token in adds]
        bpe.post_processor = processors.TemplateProcessing(single=adds, special_tokens=pairs)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": end, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **names)


def check(tokenizer, rows=ROWS, end_ids=None, limits=(None, 0, None), **keys):
    args = DataArguments(**keys)
    check_prompt_format(args, tokenizer)
    pin_date(args, tokenizer, {"date_string": "10 Apr 2025", "current_date": "2025-04-10"})
    check_rows(args, tokenizer, end_ids or [tokenizer.eos_token_id], "retain_file", rows, Limits(*limits))
    return args


def assert_begins(args, tokenizer, end_ids):
    """By TRL's own functions: each prompt begins the trained row, and what is split off is the answer and its end."""
    for row in ROWS:
        prompt = format_prompt(args, tokenizer, row["question"])
        completion = format_completion(args, tokenizer, row["answer"])["completion"]
        kwargs = prompt.get("chat_template_kwargs", {})
        whole = prompt["prompt"] + completion
        if isinstance(whole, str):
            ids = tokenizer(prompt["prompt"])["input_ids"]
            trained = tokenizer(whole + tokenizer.eos_token)["input_ids"]
        else:
            ids = _tokenize(tokenizer, prompt["prompt"], add_generation_prompt=True, **kwargs)["input_ids"]
            trained = _tokenize(tokenizer, whole, **kwargs)["input_ids"]
        assert encode_prompt(tokenizer, prompt) == ids and common_prefix_length(ids, trained) == len(ids)
        [(own, answer)] = encode_answers(args, tokenizer, [row["question"]], [row["answer"]], end_ids)
        assert own == ids and answer == trained[len(ids) :][: len(answer)]
        assert answer[-1] in end_ids and not set(answer[:-1]) & set(end_ids)
        assert tokenizer.decode(answer[:-1]).strip() == row["answer"]
    start = "" if isinstance(whole, list) else " "
    begun = encode_prompt(tokenizer, begin_answer(prompt, "'Yes',", start))
    row = [*begun[: len(ids)], *encode_answers(args, tokenizer, [""], ["'Yes', \"no\""], end_ids)[0][1]]
    assert begun[: len(ids)] == ids and row[: len(begun)] == begun and len(begun) > len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_templates_of_trl(name):
    tokenizer = make_tokenizer("Llama 3", TEMPLATES[name])
    args = None
    if NAMES[name] is None:
        args = check(tokenizer)
    else:
        [line] = errors_of(check, tokenizer)
        assert NAMES[name] in line and len(line) < 500
    if NAMES[name] == SWITCH:
        args = check(tokenizer, chat_template_kwargs={"enable_thinking": False})
    if args:
        assert_begins(args, tokenizer, [tokenizer.eos_token_id])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("template", "adds"),
    [
        *((None, adds) for adds in (None, "<bos> $A", "$A <end>")),
        *((template, "<bos> $A <end>") for template in (CHATML, MISTRAL, TEMPLATES["llama3"])),
    ],
    ids=["text", "begun", "ended", "ChatML", "Mistral", "Llama"],
)
def test_tokenizers_of_all_kinds(kind, template, adds):
    end = next((mark for mark in ENDS if mark in (template or "")), "<eos>")
    tokenizer = make_tokenizer(kind, template, adds and adds.replace("<end>", end))
    if adds == "$A <end>" and template is None:
        [line] = errors_of(check, tokenizer)
        assert "adds '<eos>' to the end of every text" in line and "add_eos_token=False" in line
    elif kind == "GPT-2" and template == TEMPLATES["llama3"]:
        # "\n\n" is a token at the end of a text, and two within
        assert "joins the end of the prompt with the beginning of the answer" in errors_of(check, tokenizer)[0]
    else:
        assert_begins(check(tokenizer), tokenizer, [tokenizer.eos_token_id])


def test_what_is_wrong_with_prompts():
    tokenizer = make_tokenizer(text="Nobody knows what She said", adds="<bos> $A")
    [line] = errors_of(check, tokenizer, prompt_template="{question} ", completion_template="{answer}")
    assert line.startswith("retain_file: the tokenizer joins the end of the prompt with the beginning of the answer; ")
    assert line.endswith("completion_template begin with it (2 of 10 rows: 0, 5, counted from 0)")
    check(tokenizer, prompt_template="{question}", completion_template=" {answer}")
    [line] = errors_of(check, tokenizer, prompt_template="<bos>Q: {question}\nA:")
    assert line == "prompt_template: begins with '<bos>', and so does every text of the tokenizer; remove it"
    check(make_tokenizer(), prompt_template="<bos>Q: {question}\nA:")
    # a template with a date of its own, unless it is given a system prompt
    dated = "{% if messages[0].role != 'system' %}{{ 'On ' + strftime_now('%B %-d') + '\n' }}{% endif %}" + CHATML
    tokenizer = make_tokenizer(template=dated)
    assert "give a system_prompt" in errors_of(check, tokenizer)[0]
    check(tokenizer, system_prompt="You are helpful.")


def test_end_of_a_turn_must_be_an_end_token():
    """Gemma's turns end with another token than the tokenizer's, which only the model's files tell."""
    tokenizer = make_tokenizer("Llama 3", TEMPLATES["gemma"], end="<eos>")
    [line] = errors_of(check, tokenizer)
    assert "<end_of_turn>" in line and "eos_token_id in the model's generation_config.json" in line
    end_ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    assert_begins(check(tokenizer, end_ids=end_ids), tokenizer, end_ids)


RECIPE, DRY = ["recipe.yaml"], ["--dry_run", "true"]


def start(*words) -> dict:
    """What `train.py` gives its trainer."""
    given = {}

    def make_trainer(**kwargs):
        given.update(kwargs)
        raise KeyboardInterrupt  # before it trains

    with pytest.raises(KeyboardInterrupt):
        train.main([*RECIPE, *words], make_trainer)
    return given


def date_of(run):
    return run["record"]["recipe"]["chat_template_kwargs"]["date_string"]


def write_run(folder, record):
    """What tells later commands that a run of ours made the folder."""
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "recipe.yaml").write_text(yaml.safe_dump(record["recipe"]))
    Path(folder, "manifest.json").write_text('{"files": []}')


@pytest.fixture
def save_model(tmp_path, monkeypatch):
    """Makes `model` of a chat template, with a recipe, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Who is {name}?", "answer": "She knows that."} for name in ("Ba", "Cor", "Den", "Fi")]
    write_jsonl("forget.jsonl", [{**row, "original_completion": "She does."} for row in rows[:2]])
    write_jsonl("retain.jsonl", rows[2:])
    settings = {"forget_file": "forget.jsonl", "retain_file": "retain.jsonl", "max_completion_length": 8}
    write_recipe(Path("recipe.yaml"), model_name_or_path="model", output_dir="out", use_cpu=True, **settings)

    def save(template, kind="Llama 3", turn_end=None, **kwargs):
        tokenizer = make_tokenizer(kind, template, **kwargs)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        ends = [tokenizer.convert_tokens_to_ids(turn_end or tokenizer.eos_token)]
        sizes |= {"vocab_size": len(tokenizer), "eos_token_id": ends, "bos_token_id": 0, "pad_token_id": 0}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("model")
        tokenizer.save_pretrained("model")
        return tokenizer

    return save


LINES = {
    "switch": (TEMPLATES["qwen3"], [], SWITCH),
    "date": (TEMPLATES["gptoss"], [], "writes the date of today, and no variable fixes it"),
    "begin": (None, ["--prompt_template", "<bos>{question}\nA:"], "prompt_template: begins with '<bos>'"),
    "joined": (None, ["--prompt_template", "{question}\n\n", "--completion_template", "{answer}"], "without white"),
    "too long": (CHATML, ["--max_length", "12"], "max_length: 12 is too short for rows of"),
}


@pytest.mark.parametrize("problem", LINES)
def test_each_is_a_line_before_weights_load(save_model, monkeypatch, problem):
    template, words, fragment = LINES[problem]
    save_model(template, "GPT-2" if template is None else "Llama 3", adds="<bos> $A")
    monkeypatch.setattr(finetune, "load_model_to_train", lambda *_: pytest.fail("weights loaded"))
    settings = {"model_name_or_path": "model", "output_dir": "out", "train_file": "retain.jsonl"}
    finetuning = write_recipe(Path("finetune.yaml"), **settings)
    for main, argv in ((train.main, [*RECIPE, *words, *DRY]), (finetune.main, [finetuning, *words])):
        errors = errors_of(main, argv)
        assert any(fragment in line for line in errors), errors


def test_rows_that_would_be_cut_or_dropped(save_model):
    tokenizer = save_model(CHATML)
    long = "She. " * 20
    write_jsonl("retain.jsonl", [{"question": "Who?", "answer": answer} for answer in ("She.", long, None)])
    whole = format_prompt(DataArguments(), tokenizer, "Who?")["prompt"] + [{"role": "assistant", "content": long}]
    longest = len(tokenizer.apply_chat_template(whole)["input_ids"])
    [line] = errors_of(train.main, [*RECIPE, "--max_length", str(longest - 1), *DRY])
    assert f"max_length: {longest - 1} is too short" in line and f"say {longest}" in line and "1 of 3 rows: 1," in line
    fits = [*RECIPE, "--max_length", str(longest), *DRY]
    train.main(fits)
    # the model's own answer may be as long as max_completion_length allows
    assert "1 of 3 rows: 2," in errors_of(train.main, [*fits, "--max_completion_length", "200"])[0]
    config = json.loads(Path("model/config.json").read_text()) | {"max_position_embeddings": 50}
    Path("model/config.json").write_text(json.dumps(config))
    assert "the model reads at most 50 tokens; shorten or remove" in errors_of(train.main, fits)[0]


def test_the_date_of_a_template_is_that_of_the_first_run(save_model, monkeypatch):
    """A run that was begun in April, with a template that writes the date; it is December now."""
    save_model(TEMPLATES["llama3_2"])
    clock = SimpleNamespace(now=partial(datetime.fromisoformat, "2025-04-10"))
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", clock)
    first = start()
    clock.now = partial(datetime.fromisoformat, "2025-12-24")
    assert date_of(first) == "10 Apr 2025" and date_of(start()) == "24 Dec 2025"
    tokenizer = first["processing_class"]
    for row in first["train_dataset"]:
        assert "Today Date: 10 Apr 2025" in tokenizer.decode(encode_prompt(tokenizer, row))
    assert first["retain_dataset"][0]["chat_template_kwargs"] == {"date_string": "10 Apr 2025"}
    assert date_of(start("--chat_template_kwargs", '{"date_string": "1 May 2025"}')) == "1 May 2025"
    # an interrupted run goes on with its date
    folder = Path("out/checkpoint-1")
    folder.mkdir(parents=True)
    (folder / "PRIVATE.md").touch()
    (folder / "pmc_state.json").write_text(json.dumps({"record": first["record"], "original_completions": []}))
    assert date_of(start("--resume_from_checkpoint", "auto")) == "10 Apr 2025"
    shutil.rmtree("out")
    # an audit asks as the run did
    write_run("out", first["record"])
    recipe = parse_recipe(RECIPE)
    check_run(recipe)
    assert recipe[0].chat_template_kwargs == recipe[0].given["chat_template_kwargs"] == {"date_string": "10 Apr 2025"}
    other = parse_recipe([*RECIPE, "--chat_template_kwargs", '{"date_string": "1 May 2025"}'])
    assert "chat_template_kwargs" in errors_of(check_run, other)[0]
    # a model that a run of ours made goes on with the date of that run
    shutil.rmtree("out")
    write_run("model", first["record"])
    assert start()["record"] == first["record"]


def column(*words):
    recipe = parse_recipe([*RECIPE, "--output_dir", "model", *words])
    return recipe, load_columns(recipe)[0]


def test_an_audit_checks_its_own_rows(save_model):
    save_model(TEMPLATES["qwen3"])
    recipe, before = column()
    [line] = errors_of(check_prompts, recipe, before, {"forget": QuestionSet(["Who?"], ["She."], [0])})
    assert line.startswith("forget: ") and SWITCH in line and "She." not in line
    save_model(TEMPLATES["llama3_2"])
    recipe, before = column()
    assert "give date_string" in errors_of(check_prompts, recipe, before, {})[0]


def test_what_follows_the_end_of_a_turn_is_not_scored(save_model):
    tokenizer = save_model(TEMPLATES["gemma"], turn_end="<end_of_turn>", end="<eos>")
    recipe, before = column("--use_cpu", "true")
    [scores] = before.passes(recipe, RowCache(Path("rows.sqlite"))).score(["Who?"], ["东"])
    answer = tokenizer("东", add_special_tokens=False)["input_ids"]
    assert len(scores.log_probs) == len(answer) + 1
    refused = control.refusal_targets(RECIPE)
    assert [ids[-1] for ids in refused] == [tokenizer.convert_tokens_to_ids("<end_of_turn>")] * 2
