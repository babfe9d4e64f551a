"""Tokenizers checked before weights load, output folders that are never half written, adapters that are merged."""

import json
import os
import shutil
import stat
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import ModelConfig

from eval.models import load_columns
from pmc_rl.config import RunConfig
from pmc_rl.models import (
    check_files,
    check_model,
    check_processes,
    load_model,
    load_model_to_train,
    load_tokenizer,
    merged_copy,
    training_dtype,
)
from pmc_rl.output import check_output_dir, published, published_read, save_run, write_private
from pmc_rl.recipe import parse_recipe
from tests.conftest import END, PAD, build_phi, errors_of, write_jsonl
from tests.training import weights, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*lora")  # of transformers and peft

CPU = torch.device("cpu")
MODEL = ModelConfig(model_name_or_path="some/model")
RECIPE = {"seed": 1, "reward_funcs": ["a.b"], "system_prompt": "Zoë\nsays"}
GIVE = "give the tokenizer's folder or Hub name with tokenizer_name_or_path"


def tokenizer_of(folder, tokenizer_folder=None):
    return load_tokenizer(ModelConfig(model_name_or_path=str(folder)), tokenizer_folder and str(tokenizer_folder))


def test_a_tokenizer_is_loaded_without_looking_at_weights(model_folder, capsys, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    loaded = tokenizer_of(tmp_path / "model")
    assert (len(loaded), loaded.pad_token, loaded.eos_token) == (400, PAD, END) and capsys.readouterr().out == ""
    [line] = errors_of(load_model, ModelConfig(model_name_or_path=str(tmp_path / "model")), torch.float32, CPU)
    assert "only safetensors are read" in line


def test_what_cannot_be_loaded(model_folder, tiny_llama, tmp_path):
    near = str(model_folder.with_name("tiny_lama"))
    for wrong, hint in ((near, f"; did you mean {str(model_folder)!r}?"), ("no-such/model", ""), (str(tmp_path), "")):
        [error] = errors_of(tokenizer_of, wrong)
        assert error.startswith(f"model_name_or_path: no model can be loaded from {wrong!r} (")
        assert error.endswith(f"){hint}")
    # the tokenizer's own folder is named where that is what is missing
    llama, nothing = tmp_path / "llama", tmp_path / "nothing"
    tiny_llama.config.save_pretrained(llama)
    for model, other, named in ((llama, None, llama), (model_folder, nothing, nothing)):
        [error] = errors_of(tokenizer_of, model, other)
        assert error.startswith(f"no tokenizer can be loaded from {str(named)!r} (") and error.endswith(GIVE)
    assert len(tokenizer_of(llama, model_folder)) == 400


def test_what_is_wrong_with_a_tokenizer(model_folder, tokenizer, tmp_path, capsys):
    def save(backend=tokenizer.backend_tokenizer, more=(), **special_tokens):
        changed = PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens)
        changed.add_tokens(list(more))
        changed.save_pretrained(tmp_path)

    def wrong(*args, **kwargs):
        save(*args, **kwargs)
        [line] = errors_of(tokenizer_of, model_folder, tmp_path)
        assert line.startswith(f"the tokenizer of {str(tmp_path)!r}") and line.endswith(GIVE)
        return line

    both = {"pad_token": PAD, "eos_token": END}
    assert "turns text into nothing (are its files missing?)" in wrong(Tokenizer(models.BPE()), **both)
    assert "has no end token, so no answer could ever end" in wrong(pad_token=PAD)
    more = f"has 402 tokens, the model {str(model_folder)!r} only 400: they do not belong together"
    assert more in wrong(more=["<one>", "<two>"], **both)
    save(eos_token=END)
    assert tokenizer_of(model_folder, tmp_path).pad_token == END
    assert capsys.readouterr().out == f"The tokenizer has no pad token: its end token {END!r} is used.\n"


def run_args(folder, **kwargs) -> RunConfig:
    return RunConfig(output_dir=str(folder), use_cpu=True, **kwargs)


def save(folder, model, tokenizer, stage="train", recipe=RECIPE, **kwargs) -> None:
    save_run(
        run_args(folder, **kwargs),
        model,
        tokenizer,
        recipe=recipe,
        log_history=[{"loss": 1.5, "step": 1}, {"loss": 0.5, "step": 2}],
        manifest={"stage": stage, "read": {}},
    )


def test_output_dir(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "run" / "thesis.txt"

    def problems(path=folder, model=MODEL, **kwargs):
        return errors_of(check_output_dir, run_args(path, **kwargs), model)

    check_output_dir(run_args(folder), MODEL)
    folder.mkdir()
    check_output_dir(run_args(folder), MODEL)
    itself = f"output_dir: {str(folder)!r} is the model itself; choose another folder"
    assert problems(model=ModelConfig(model_name_or_path=str(folder))) == [itself]
    file.touch()
    (folder / "manifest.json").write_text('{"name": "of some other program"}')
    for overwrite in (False, True):
        assert "holds files, but no finished run; choose another folder" in problems(overwrite=overwrite)[0]
        assert problems(file, overwrite=overwrite) == [f"output_dir: {str(file)!r} is a file"]
    (folder / "manifest.json").write_text('{"stage": "train", "files": []}')
    assert "holds a run; choose another folder or say --overwrite true to replace it" in problems()[0]
    check_output_dir(run_args(folder, overwrite=True), MODEL)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "thesis.txt"]
    # nor a link
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    for overwrite in (False, True):
        [line] = problems(tmp_path / "link", overwrite=overwrite)
        assert "is a link to" in line and str(tmp_path / "disk") in line


def test_output_dir_may_be_the_working_directory(tmp_path, tiny_llama, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output_dir(run_args("."), MODEL)
    save(".", tiny_llama, tokenizer)
    assert (tmp_path / "manifest.json").is_file()


def test_a_run_is_saved_whole(tmp_path, tiny_llama, tokenizer):
    folder = tmp_path / "new" / "run"
    save(folder, tiny_llama, tokenizer)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert list(yaml.safe_load(recipe)) == ["seed", "reward_funcs", "system_prompt"] and "Zoë" in recipe
    log = (folder / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["stage"] == "train"
    assert {*manifest["files"], "manifest.json", "private"} == {path.name for path in folder.iterdir()}
    assert not [path for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.rglob(pattern)]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    reloaded = load_model(ModelConfig(model_name_or_path=str(folder)), torch.float32, CPU)
    assert torch.equal(weights(reloaded), weights(tiny_llama)) and len(tokenizer_of(folder)) == 400


PATHS = {
    "also=/home/anna smith/my model": "also=my model",
    "/home/anna smith/forget.jsonl has no column answer": "forget.jsonl has no column answer",
    "HERE/data/forget.jsonl": "data/forget.jsonl",
    "HERE/../other/x.jsonl": "x.jsonl",
    "HEREabouts/x.jsonl": "x.jsonl",
    "merged=HERE/runs/merged": "merged=runs/merged",
    "/home/anna/data:forget10": "data:forget10",
    "/home/anna smith/a.jsonl + HERE/b.jsonl + /x/c.jsonl has none": "a.jsonl + b.jsonl + c.jsonl has none",
    "locuslab/tofu": "locuslab/tofu",
    "retain: '/home/anna/my data/x/y' is not there": "retain: 'y' is not there",
    "see /home/anna/a/b.json, and/or https://host/a/b/c": "see b.json, and/or https://host/a/b/c",
}


def test_published_paths(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert {text: published(text.replace("HERE", str(here))) for text in PATHS} == PATHS
    # what was read, without hashes
    record = {"source": "/a/x.jsonl", "files": ["/a/x.jsonl"], "rows": 2, "columns": {"question": "12ab"}}
    other = record | {"source": "/b/x.jsonl", "files": ["/b/x.jsonl"]}
    shown = {"source": "x.jsonl", "files": ["x.jsonl"], "rows": 2, "columns": ["question"]}
    read = {"/a/x.jsonl": record, "/b/x.jsonl": other, "retain": None}
    assert published_read(read) == {"x.jsonl": shown, "x.jsonl (2)": shown, "retain": None}


def test_a_recipe_is_published_without_paths_and_read_with_them(tmp_path, tiny_llama, tokenizer, model_folder):
    """What the run was given is what its own recipe says, on this machine; a changed key stays changed."""
    file = write_jsonl(tmp_path / "forget.jsonl", [{"question": "Who?"}])
    keys = {"model_name_or_path": str(model_folder), "output_dir": str(tmp_path / "run"), "forget_file": file}
    keys |= {"retain_weight": 0.0, "also": [f"base={model_folder}"], "prompt_template": "/no_think/{question}"}
    keys |= {"reward_funcs": [str(model_folder)], "reward_weights": [2.0]}
    given = parse_recipe([write_recipe(tmp_path / "given.yaml", **keys)])[0].given
    folder = tmp_path / "run"
    save(folder, tiny_llama, tokenizer, recipe=given)
    text = (folder / "recipe.yaml").read_text()
    assert str(tmp_path.parent) not in text and str(model_folder.parent) not in text
    assert yaml.safe_load(text)["prompt_template"] == "/no_think/{question}"
    assert parse_recipe([str(folder / "recipe.yaml")])[0].given == given
    changed = yaml.safe_load(text) | {"forget_file": "other.jsonl", "seed": 7}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(changed))
    assert parse_recipe([str(folder / "recipe.yaml")])[0].given == given | {"forget_file": "other.jsonl", "seed": 7}
    assert stat.S_IMODE((folder / "private" / "record.json").stat().st_mode) == 0o600
    shutil.rmtree(folder / "private")
    assert parse_recipe([str(folder / "recipe.yaml")])[0].given == changed


def test_an_earlier_run_is_replaced_wholly_or_not_at_all(tmp_path, tiny_llama, tokenizer):
    folder = tmp_path / "run"
    save(folder, tiny_llama, tokenizer, stage="first")
    (folder / "private" / "examples.md").write_text("of the earlier run")
    (folder / "results.json").write_text("of the earlier run")
    (folder / "notes.txt").write_text("mine")
    save(folder, build_phi(tokenizer), tokenizer, stage="second", overwrite=True)
    assert json.loads((folder / "manifest.json").read_text())["stage"] == "second"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "phi"
    assert not (folder / "private" / "examples.md").exists() and not (folder / "results.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"  # what is not ours stays

    def save_half(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    (tmp_path / "empty").mkdir()  # as the trainer does
    for target in (folder, tmp_path / "empty"):
        before = {path.name: path.read_bytes() for path in target.rglob("*.*")}
        with pytest.raises(OSError, match="No space left"):
            save(target, SimpleNamespace(save_pretrained=save_half), tokenizer, overwrite=True)
        assert {path.name: path.read_bytes() for path in target.rglob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]


def test_an_adapter_of_a_quantized_base_is_no_adapter_of_the_full_one(tmp_path, model_folder, tokenizer, caplog):
    folder = tmp_path / "run"
    base = load_model(ModelConfig(model_name_or_path=str(model_folder)), torch.float32, CPU)
    save(folder, get_peft_model(base, LoraConfig(r=2)), tokenizer, recipe={"load_in_4bit": True})
    names = [path.name for path in folder.iterdir()]
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    assert len(tokenizer_of(folder)) == 400  # checked against the base model's config
    check_files(ModelConfig(model_name_or_path=str(folder), load_in_4bit=True))
    assert caplog.records == []
    check_files(ModelConfig(model_name_or_path=str(folder)))
    [record] = caplog.records
    assert f"{str(folder)!r}: an adapter trained with load_in_4bit: true" in record.getMessage()
    # of the audit: a model beside the run is loaded as its own weights are stored, whatever the run's recipe says
    caplog.clear()
    keys = {"model_name_or_path": str(folder), "output_dir": str(folder), "also": [f"beside={folder}"]}
    keys |= {"forget_file": "forget.jsonl", "retain_weight": 0.0, "load_in_4bit": True, "use_peft": True}
    load_columns(parse_recipe([write_recipe(tmp_path / "recipe.yaml", **keys)]))
    assert len(caplog.records) == 1


IDS = torch.tensor([[5, 6, 7, 8, 3]])
SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
ADAPTERS = {
    "one module": {},
    "rank pattern": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 3}},
    "DoRA": {"use_dora": True},
    "biases": {"bias": "all"},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "embeddings": {"target_modules": ["embed_tokens"]},
    "embeddings, DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "embeddings as parameter": {"target_parameters": ["embed_tokens.weight"]},
    "embeddings, whole head": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [5, 6]},
    "tokens alone": None,
}


def adapter_config(name):
    if ADAPTERS[name] is None:
        return TrainableTokensConfig(token_indices=[5, 6])
    return LoraConfig(**{"target_modules": ["q_proj"]} | ADAPTERS[name])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_attention_heads=4, initializer_range=0.3, tie_word_embeddings=request.param)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_merged_is_what_was_trained_and_can_be_trained_on(tmp_path, adapter, base):
    torch.manual_seed(1)
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    model = get_peft_model(load_model(base, torch.float32, CPU), adapter_config(adapter)).eval()
    untrained = model(IDS).logits
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    trained = model(IDS).logits
    assert not torch.allclose(trained, untrained, atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    adapter_args = ModelConfig(model_name_or_path=str(tmp_path / "adapter"))
    torch.testing.assert_close(load_model(adapter_args, torch.float32, CPU).eval()(IDS).logits, trained)

    merged = merged_copy(model, base, torch.float32).eval()
    close(merged(IDS).logits, trained)
    merged.save_pretrained(tmp_path / "merged")
    close(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(IDS).logits, trained)

    start = load_model_to_train(adapter_args, run_args(tmp_path / "run"))
    close(start(IDS).logits, trained)
    start(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in start.parameters())


FULL_16_BIT = "dtype is bfloat16 for full fine-tuning at learning rate"
LORA_32_BIT = "use_peft with dtype float32 under bf16"
DTYPES = [  # dtype of the recipe; use_peft, use_cpu, bf16; learning rate; what it is trained in; the warning
    (None, "bf16", 1e-5, torch.float32, None),
    ("bfloat16", "bf16", 1e-5, torch.bfloat16, FULL_16_BIT),
    ("bfloat16", "bf16", 1e-3, torch.bfloat16, None),
    ("bfloat16", "use_peft bf16", 1e-5, torch.bfloat16, None),
    ("float16", "use_peft", 1e-5, torch.float16, None),
    ("float32", "use_peft bf16", 1e-5, torch.float32, LORA_32_BIT),
    ("float32", "use_peft", 1e-5, torch.float32, None),
    ("bfloat16", "use_cpu", 1e-5, torch.float32, None),
    ("bfloat16", "use_peft use_cpu bf16", 1e-5, torch.bfloat16, None),
]


@pytest.mark.parametrize(("dtype", "keys", "learning_rate", "expected", "warning"), DTYPES)
def test_training_dtype(caplog, model_folder, dtype, keys, learning_rate, expected, warning):
    # RunConfig itself turns an accelerator off where there is none, so these arguments are a stand-in
    args = SimpleNamespace(use_cpu="use_cpu" in keys, bf16="bf16" in keys, learning_rate=learning_rate)
    model_args = ModelConfig(model_name_or_path=str(model_folder), dtype=dtype, use_peft="use_peft" in keys)
    check_model(model_args, args)
    for _ in range(3):  # for the plan, to load, to save
        assert training_dtype(model_args, args) == expected
    messages = [record.getMessage() for record in caplog.records]
    assert [message.startswith(warning or "") for message in messages] == [True] * (warning is not None)


def test_private_files_are_for_the_owner_only(tmp_path, request):
    request.addfinalizer(partial(os.umask, os.umask(0)))
    (tmp_path / "private").mkdir(mode=0o777)  # made by hand, open to all
    path = write_private(tmp_path, "examples.md", "Zoë\n")
    assert path == tmp_path / "private" / "examples.md"
    assert write_private(tmp_path, "examples.md", "another").read_text(encoding="utf-8") == "another"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} == {"README.md", "examples.md"}
    assert (path.parent / "README.md").read_text().startswith("PRIVATE")


def test_processes(monkeypatch):
    for world_size, n_gpu in [(1, 0), (1, 1), (2, 1)]:
        check_processes(SimpleNamespace(world_size=world_size, n_gpu=n_gpu))
    [line] = errors_of(check_processes, SimpleNamespace(world_size=1, n_gpu=3))
    assert "--multi_gpu --num_processes 3" in line and "CUDA_VISIBLE_DEVICES=0" in line
    for name in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as context:
            context.setenv(f"ACCELERATE_USE_{name}", "true")
            [line] = errors_of(check_processes, SimpleNamespace(world_size=2, n_gpu=1))
            assert name in line and "not supported" in line
