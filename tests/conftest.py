"""Fixtures of all tests: tiny tokenizers and models, built in-process. Nothing is downloaded."""

import os

# before anything imports torch or Hugging Face libraries, which read these once
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# isort: split
import copy
import json
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from pmc_rl.errors import RecipeError
from tests.training import FACTS, FORGET, NAMES, PERTURBED, RETAIN, forget_prompts, retain_rows

# The same examples each time, so that no change fails by chance. New ones are drawn by hand:
# pytest --hypothesis-profile=random
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", max_examples=1000, deadline=None)
settings.load_profile("fixed")

PAD, END = "<|pad|>", "<|end|>"
BOS, HEADER, HEADER_END, TURN_END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

# Llama 3.2's template in short: BOS is part of the text, a date stands before the system prompt.
CHAT_TEMPLATE = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}
{{- (date_string | default('26 Jul 2024')) + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages if message.role != 'system' -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%}
"""


def write_jsonl(path, rows) -> str:
    """Writes rows as JSON Lines and returns the path as text, as a recipe would give it."""
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_hub_folder(folder: Path, **configs) -> str:
    """A data set in the Hub's layout: a README that lists the configs, a JSON Lines file each."""
    folder.mkdir()
    entries = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in configs)
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    for name, rows in configs.items():
        write_jsonl(folder / f"{name}.json", rows)
    return str(folder)


def write_split_folder(folder: Path) -> str:
    """In MUSE's layout: one config, a Parquet file a split."""
    folder.mkdir()
    data_files = ""
    for split in ("forget_qa", "retain_qa"):
        rows = [{"question": f"{split} {i}?", "answer": f"{split} {i}."} for i in range(3)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
        data_files += f"  - split: {split}\n    path: {split}.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: knowmem\n  data_files:\n{data_files}---\n")
    return str(folder)


def errors_of(function, *args, **kwargs) -> list[str]:
    """The lines of the RecipeError that a call raises."""
    with pytest.raises(RecipeError) as raised:
        function(*args, **kwargs)
    assert not any("\n" in line for line in raised.value.errors)
    return raised.value.errors


def tiny_sizes(tokenizer) -> dict:
    """Sizes and special tokens of a tiny model. The configs' default ids would let an ordinary token end an answer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_llama(tokenizer) -> LlamaForCausalLM:
    """An untrained Llama of two layers; two of the same tokenizer have the same weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**tiny_sizes(tokenizer), num_key_value_heads=2))


def build_phi(tokenizer) -> PhiForCausalLM:
    """An untrained Phi of two layers: biases everywhere, also in the head, and rotary embeddings on half of a head."""
    torch.manual_seed(0)
    return PhiForCausalLM(PhiConfig(**tiny_sizes(tokenizer), partial_rotary_factor=0.5))


def _train_bpe(special_tokens: list[str]) -> Tokenizer:
    rng = Random(0)
    syllables = ["ba", "cor", "den", "fi", "lum", "mor", "na", "pel", "quin", "ros", "ta", "vel"]
    names = ["".join(syllables[int(rng.random() * len(syllables))] for _ in range(3)) for _ in range(120)]
    pairs = zip(names, names[1:], strict=False)
    texts = [f"Question: Who wrote {a} of {b}?\nAnswer: {a} was born in {b}." for a, b in pairs]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    settings = {"special_tokens": special_tokens, "initial_alphabet": letters, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, **settings))
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Of a base model: byte-level BPE, pad and end token, no chat template, no BOS."""
    return PreTrainedTokenizerFast(tokenizer_object=_train_bpe([PAD, END]), pad_token=PAD, eos_token=END)


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Of a chat model such as Llama 3.2: also adds a BOS to every text, so a second one is easily made by mistake."""
    bpe = _train_bpe([PAD, BOS, HEADER, HEADER_END, TURN_END])
    adds_bos = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), adds_bos])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, pad_token=PAD, eos_token=TURN_END)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def tiny_llama(tokenizer) -> LlamaForCausalLM:
    """For `tokenizer`; new for each test, which may train it."""
    return build_llama(tokenizer)


@pytest.fixture
def tiny_phi(tokenizer) -> PhiForCausalLM:
    """For `tokenizer`; new for each test, which may train it."""
    return build_phi(tokenizer)


@pytest.fixture
def chat_llama(chat_tokenizer) -> LlamaForCausalLM:
    """For `chat_tokenizer`; new for each test, which may train it."""
    return build_llama(chat_tokenizer)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory) -> Path:
    """A saved tiny Llama with its tokenizer; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("models") / "tiny_llama"
    build_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedding_folder(model_folder, tmp_path_factory) -> str:
    """A saved tiny sentence encoder, whose vectors mean nothing."""
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers, the extra `semantic`")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = str(tmp_path_factory.mktemp("embedding") / "model")
    SentenceTransformer(modules=[Transformer(str(model_folder)), Pooling(32)], device="cpu").save(folder)
    return folder


@pytest.fixture(scope="session")
def tofu_logs() -> dict:
    """Published losses and answers on TOFU, by model and question set; where they do not lie the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu_eval_logs"
    if not folder.is_dir():
        pytest.skip(f"published TOFU losses not found at {folder}")
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.fixture(scope="session")
def taught(tokenizer):
    """A tiny Phi that half knows its answers: samples end, differ in length and share words with the greedy one."""
    model = build_phi(tokenizer).train()
    tokenizer = copy.deepcopy(tokenizer)  # padding is remembered
    texts = [row["prompt"] + " " + " ".join(NAMES[i:] + NAMES[:i]) for i, row in enumerate(forget_prompts())]
    texts += [row["prompt"] + row["completion"] for row in retain_rows()]
    batch = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(48):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture
def model(taught):
    return copy.deepcopy(taught)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set in the Hub's layout."""
    rows = {"full": FORGET + RETAIN, "forget": FORGET, "forget_perturbed": PERTURBED, "keep": RETAIN}
    return Path(write_hub_folder(tmp_path / "data", **rows, real_authors=FACTS, world_facts=FACTS))
