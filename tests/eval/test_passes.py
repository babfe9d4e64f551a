"""Passes: scores against plain torch, each row computed once and served for no other model or setting, the cache."""

import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig
from trl import ModelConfig, SFTTrainer

import eval.passes
import pmc_rl.likelihood
from eval.cache import RowCache, model_fingerprint
from eval.models import AuditedModel
from eval.passes import ModelPasses, SamplingSettings
from pmc_rl.config import DataArguments, PMCConfig, RunConfig
from pmc_rl.generation import Sampling, generate_completions, sample_seeds
from pmc_rl.prompts import answered_dataset, decode_completion, encode_answers, encode_prompt, format_prompt
from tests.conftest import BOS, build_llama, build_phi, errors_of, tiny_sizes
from tests.training import end_often

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers

NAMES = ["bacorden", "filummor napel", "quin", "rosta velba fi", "cordenfi lummorna", "pel", "denba mor quin ros"]
QUESTIONS = [f"Who wrote {name}?" for name in NAMES]
ANSWERS = [f"{NAMES[-i]} was born in {' '.join(NAMES[i : i + 3])}." for i in range(len(NAMES))]
PLAIN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
CHAT = {"system_prompt": "You are helpful.", "chat_template_kwargs": {"date_string": "10 Apr 2025"}}


@pytest.fixture
def cache(tmp_path) -> RowCache:
    return RowCache(tmp_path / "rows.sqlite")


@pytest.fixture
def speaker(tiny_phi, tokenizer):
    """A model whose answers end at unequal lengths."""
    return end_often(tiny_phi, tokenizer.eos_token_id).eval()


def never():
    raise AssertionError("a model is loaded though every row is in the cache")


def make(model, tokenizer, cache, templates=None, end_ids=None, **settings) -> ModelPasses:
    """Passes of a model; of none if all that is asked must be in the cache."""
    args = PMCConfig(output_dir="unused", use_cpu=True, **{"max_completion_length": 12} | settings)
    load, templates = (lambda: model) if model is not None else never, DataArguments(**templates or {})
    ends = end_ids or [tokenizer.eos_token_id]
    return ModelPasses("model", "its fingerprint", load, tokenizer, ends, templates, args, cache)


class Batches(list):
    """Rows of each batch that a pass computed; no memory for more than `rows_that_fit`, Ctrl-C after so `many`."""

    rows_that_fit = many = 10**9

    def count(self, rows: int) -> None:
        self.append(rows)
        if rows > self.rows_that_fit:
            raise torch.OutOfMemoryError("no memory")
        if len(self) > self.many:
            raise KeyboardInterrupt

    def watch(self, function):
        def counted(model, rows, **kwargs):
            self.count(len(rows))
            return function(model, rows, **kwargs)

        return counted


@pytest.fixture
def batches(monkeypatch) -> Batches:
    """Of all models from here on."""
    batches = Batches()
    for name in ("generate_completions", "target_logits"):
        monkeypatch.setattr(eval.passes, name, batches.watch(vars(eval.passes)[name]))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # there is no accelerator
    return batches


def answer_rows(tokenizer, questions=QUESTIONS, answers=ANSWERS, **templates) -> list[tuple[list[int], list[int]]]:
    return encode_answers(DataArguments(**templates), tokenizer, questions, answers, [tokenizer.eos_token_id])


def limit(monkeypatch, rows, count: int) -> None:
    """Batches of so many of these rows are scored."""
    longest = max(len(prompt) + len(target) for prompt, target in rows)
    monkeypatch.setattr(eval.passes, "TOKENS_PER_BATCH", {"cpu": count * longest})


def numbers(scores) -> list[list]:
    return [[part.tolist() for part in vars(score).values()] for score in scores]


def assert_plain(scores, model, rows):
    """As each row alone, unpadded, from the logits of the whole model."""
    for score, (prompt, target) in zip(scores, rows, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        means = (p * log_p).sum(-1)
        stds = ((p * log_p**2).sum(-1) - means**2).sqrt()
        own = log_p.gather(-1, torch.tensor(target)[:, None])[:, 0]
        np.testing.assert_allclose(score.log_probs, own, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(score.hits, log_p.argmax(-1) == torch.tensor(target))
        order = log_p.argsort(-1, descending=True)
        places = (order == torch.tensor(target)[:, None]).int().argmax(-1) + 1
        np.testing.assert_array_equal(score.ranks, places)
        np.testing.assert_allclose(score.means, means, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(score.stds, stds, rtol=1e-4, atol=1e-5)
        assert score.loss == pytest.approx(-own.mean().item(), rel=1e-5)


OPEN = {"prompt_template": "{question} ", "completion_template": "{answer}\n"}
OWN = {"prompt_template": "Q {question} A"}


@pytest.mark.parametrize("templates", [{}, OPEN, CHAT, OWN | {"system_prompt": "Never read."}])
def test_answers_are_encoded_as_trl_does(tokenizer, chat_tokenizer, tmp_path, templates):
    tokenizer = chat_tokenizer if "system_prompt" in templates else tokenizer
    ends_itself = "ends itself" if tokenizer.chat_template else f"ends itself{tokenizer.eos_token}"
    answers = [*ANSWERS[:4], ends_itself, "Zoë, 東京", "bacorden"]
    rows = [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, answers, strict=True)]
    trainer = SFTTrainer(
        model=build_llama(tokenizer),
        args=RunConfig(output_dir=str(tmp_path / "sft"), use_cpu=True, gradient_checkpointing=False),
        train_dataset=answered_dataset(DataArguments(**templates), tokenizer, rows),
        processing_class=tokenizer,
    )
    encoded = answer_rows(tokenizer, answers=answers, **templates)
    for (prompt, target), row in zip(encoded, trainer.train_dataset, strict=True):
        assert prompt + target == row["input_ids"]
        assert [-100] * len(prompt) + target == row["labels"]
    assert target[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in target[:-1]
    if tokenizer.chat_template:
        assert prompt.count(tokenizer.bos_token_id) == 1
    elif templates:  # the space at the end of the prompt goes into the first token of the answer
        assert len(prompt) < len(tokenizer(f"{QUESTIONS[-1]} ")["input_ids"])
        assert tokenizer.decode(target).startswith(" ba")


# they change the logits behind the head
SCALED = {
    "granite": (GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 20.0, "head_dim": 8}),
}


def some_model(kind: str, tokenizer):
    """Far from uniform."""
    if kind == "phi":
        return end_often(build_phi(tokenizer), tokenizer.eos_token_id).eval()
    model = build_llama(tokenizer)
    if kind in SCALED:
        config, setting = SCALED[kind]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(**tiny_sizes(tokenizer) | setting, num_key_value_heads=2))
    with torch.no_grad():
        model.get_output_embeddings().weight *= 30 if kind in SCALED else 10
    if kind == "adapter":  # with weights, where a new one has zeros
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "phi", "adapter", *SCALED])
def test_scores_equal_plain_torch_row_by_row(kind, tokenizer, cache):
    model, rows = some_model(kind, tokenizer), answer_rows(tokenizer)
    assert len({len(prompt) + len(target) for prompt, target in rows}) > 3  # so most are padded
    passes = make(model, tokenizer, cache)
    assert_plain(passes.score(QUESTIONS, ANSWERS), model, rows)

    # a model predicts all of what it says itself
    start = tokenizer("Question: Who wrote")["input_ids"]
    text = model.generate(input_ids=torch.tensor([start]), max_new_tokens=9, do_sample=False)[0].tolist()
    chunks = [text, text[:2], rows[0][0]]
    *scores, empty = passes.score_text([*chunks, [5]], "text")
    assert_plain(scores, model, [(ids[:1], ids[1:]) for ids in chunks])
    assert scores[0].hits[len(start) - 1 :].all() and not scores[2].hits.all()
    for lonely in (empty, *passes.score_text([[6]], "text")):  # beside others, and alone
        assert lonely.loss is None and len(lonely.hits) == len(lonely.means) == len(lonely.stds) == 0


def test_neither_chunks_nor_batches_change_a_score(monkeypatch, tokenizer, tiny_phi, tmp_path, batches):
    rows = answer_rows(tokenizer)
    expected = numbers(make(tiny_phi, tokenizer, RowCache(tmp_path / "whole")).score(QUESTIONS, ANSWERS))
    chunks = []
    tiny_phi.lm_head.register_forward_pre_hook(lambda module, args: chunks.append(len(args[0])))
    for batch_size in (1, 3):
        limit(monkeypatch, rows, batch_size)
        monkeypatch.setattr(pmc_rl.likelihood, "LOGITS_PER_CHUNK", {"cpu": 5 * tiny_phi.config.vocab_size + 1})
        batches.clear()
        chunks.clear()
        scores = make(tiny_phi, tokenizer, RowCache(tmp_path / str(batch_size))).score(QUESTIONS, ANSWERS)
        assert sum(batches) == len(rows) and max(batches) == batch_size
        # never the logits of all tokens at a time, and none of a prompt's
        assert max(chunks) == 5 and sum(chunks) == sum(len(target) for _, target in rows)
        for ours, theirs in zip(numbers(scores), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_is_computed_once(speaker, tokenizer, cache, batches):
    questions = [*QUESTIONS, QUESTIONS[0], QUESTIONS[1]]  # one question twice, and a paraphrase that is the answer
    answers = [*ANSWERS, ANSWERS[0], ANSWERS[2]]
    loads = []
    passes = make(speaker.train(), tokenizer, cache)
    passes.load = lambda: loads.append(1) or speaker
    first = numbers(passes.score(questions, answers))
    assert sum(batches) == 8 and not speaker.training and first[0] == first[7] and first[1] != first[8]
    assert numbers(passes.score(questions[3:] + questions[:3], answers[3:] + answers[:3])) == first[3:] + first[:3]
    greedy, samples = passes.answer(questions), passes.sample(questions, 3, PLAIN)
    assert sum(batches) == 8 + 7 + 3 * 9
    assert greedy[0] == greedy[7] and {answer.ended for answer in greedy} == {True, False}
    assert samples[0] != samples[7]  # the same question, but samples of its own
    again = make(None, tokenizer, cache)
    assert numbers(again.score(questions, answers)) == first
    assert again.answer(questions) == greedy and again.sample(questions, 3, PLAIN) == samples
    # more samples add to the fewer
    many = passes.sample(questions, 5, PLAIN)
    assert sum(batches) == 8 + 7 + 5 * 9 and [texts[:3] for texts in many] == samples
    passes.release()
    passes.score(questions, answers)
    assert len(loads) == 1  # the cache still answers
    passes.score([QUESTIONS[3]], ["somebody else"])
    assert sum(batches) == 8 + 7 + 5 * 9 + 1 and len(loads) == 2


def test_a_stopped_audit_continues(speaker, tokenizer, cache, tmp_path, batches):
    def sample(cache):
        batches.clear()
        return make(speaker, tokenizer, cache, generation_batch_size=2).sample(QUESTIONS, 1, PLAIN)

    expected = sample(RowCache(tmp_path / "other"))
    assert batches == [2, 2, 2, 1]
    batches.many = 2
    with pytest.raises(KeyboardInterrupt):
        sample(cache)
    batches.many = 99
    assert sample(cache) == expected and batches == [2, 1]


def test_samples_of_an_audit_are_none_that_training_drew(speaker, tokenizer, cache):
    """The first step of training samples the same questions with the same seed and settings."""
    passes = make(speaker, tokenizer, cache)
    prompts = [prompt for prompt, _ in answer_rows(tokenizer)]
    sizes = {"max_completion_length": 12, "generation_batch_size": 99, "end_ids": [tokenizer.eos_token_id]}
    drawn = []
    for step in (0, 1, "audit"):
        seeds = sample_seeds(passes.args.seed, step, list(range(len(QUESTIONS))), 1)
        completions = generate_completions(speaker, prompts, **sizes, sampling=Sampling(*PLAIN, seeds=seeds))
        drawn.append([[decode_completion(tokenizer, ids)] for ids in completions])
    samples = passes.sample(QUESTIONS, 1, PLAIN)
    assert samples == drawn[2] and samples not in drawn[:2] and drawn[0] != drawn[1]


def test_nothing_is_served_for_other_settings(speaker, tokenizer, cache, tmp_path, batches):
    def ask(file, prefixes=None, temperature=1.0, top_k=0, top_p=1.0, **settings):
        passes = make(speaker, tokenizer, file, **{"max_completion_length": 7} | settings)
        sampling = SamplingSettings(temperature, top_k, top_p)
        return passes.answer(QUESTIONS, prefixes), passes.sample(QUESTIONS, 2, sampling, prefixes)

    first = ask(cache)
    batches.clear()
    assert ask(cache, generation_batch_size=3) == first and not batches  # speed is no other setting
    of_both = {"max_completion_length": 5, "templates": {"prompt_template": "Question: {question}\nAnswer"}}
    of_both |= {"prefixes": ["The answer is:"] * len(QUESTIONS), "end_ids": [0, 1, 2, *range(5, 300)]}
    for name, value in [*of_both.items(), ("seed", 43), ("temperature", 0.9), ("top_k", 5), ("top_p", 0.95)]:
        batches.clear()
        found = ask(cache, **{name: value})
        assert sum(batches) == (3 if name in of_both else 2) * len(QUESTIONS), name  # greedy, and two samples
        assert found == ask(RowCache(tmp_path / name), **{name: value}) and found != first, name


def test_no_score_is_served_for_another_precision(tiny_llama, tokenizer, cache):
    first = numbers(make(tiny_llama, tokenizer, cache).score(QUESTIONS, ANSWERS))
    for precision, error in {"bf16": 0.02, "fp16": 0.002}.items():
        passes = make(tiny_llama, tokenizer, cache)
        setattr(passes.args, precision, True)  # a config of a CPU takes neither
        rounded = numbers(passes.score(QUESTIONS, ANSWERS))
        assert rounded != first
        np.testing.assert_allclose(rounded[0][0], first[0][0], rtol=error)


def column_passes(folder, tokenizer, cache, **model_args):
    model_args = ModelConfig(model_name_or_path=str(folder), **model_args)
    args = PMCConfig(output_dir="unused", use_cpu=True, max_completion_length=8)
    return AuditedModel("after", model_args, tokenizer).passes((DataArguments(), args, model_args, None), cache)


def test_a_changed_model_is_not_served_from_the_cache_of_the_old(model_folder, tokenizer, cache, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    old = column_passes(model_folder, tokenizer, cache)
    first = numbers(old.score(QUESTIONS, ANSWERS))
    copy = column_passes(folder, tokenizer, cache)  # the same files elsewhere are the same model
    copy.load = never
    assert copy.fingerprint == old.fingerprint and numbers(copy.score(QUESTIONS, ANSWERS)) == first
    assert column_passes(folder, tokenizer, cache, attn_implementation="eager").fingerprint != old.fingerprint

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.5
    model.save_pretrained(folder)
    changed = column_passes(folder, tokenizer, cache)
    assert changed.fingerprint != old.fingerprint
    assert_plain(changed.score(QUESTIONS, ANSWERS), model.eval(), answer_rows(tokenizer))


@pytest.mark.filterwarnings("ignore:.*lora")
def test_an_adapter_is_its_base_as_well(model_folder, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model_folder, base)
    lora = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(base), init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    adapted.save_pretrained(adapter)
    seen = {model_fingerprint(str(folder), "main") for folder in (base, adapter)}
    (base / "generation_config.json").write_text('{"eos_token_id": 3}')
    seen |= {model_fingerprint(str(folder), "main") for folder in (base, adapter)}
    torch.nn.init.normal_(adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    adapted.save_pretrained(adapter)
    assert len(seen | {model_fingerprint(str(adapter), "main")}) == 5


def test_a_model_of_the_hub_is_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, commit in {"main": "a" * 40, "v2": "b" * 40}.items():
        for name, content in {f"refs/{revision}": commit, f"snapshots/{commit}/config.json": "{}"}.items():
            path = tmp_path / "models--some--model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        assert model_fingerprint("some/model", revision) == commit


def test_out_of_memory_halves_the_batch_and_stays_there(monkeypatch, tokenizer, speaker, tmp_path, batches):
    questions = [question for question in QUESTIONS for _ in range(2)][:13]
    answers = [f"{answer} {i}" for i, answer in enumerate(ANSWERS + ANSWERS)][:13]
    limit(monkeypatch, answer_rows(tokenizer, questions, answers), 8)
    plenty = make(speaker, tokenizer, RowCache(tmp_path / "plenty"))
    scores, samples = plenty.score(questions, answers), plenty.sample(questions, 1, PLAIN)

    scarce = make(speaker, tokenizer, RowCache(tmp_path / "scarce"), generation_batch_size=8)
    batches.clear()
    batches.rows_that_fit = 3
    for ours, theirs in zip(scarce.score(questions, answers), scores, strict=True):
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, rtol=1e-5, atol=1e-5)
    assert scarce.sample(questions, 1, PLAIN) == samples
    assert batches == [8, 4, 2, 2, 2, 2, 2, 2, 1] * 2
    assert make(None, tokenizer, scarce.cache).sample(questions, 1, PLAIN) == samples


def test_out_of_memory_that_no_smaller_batch_mends_is_raised(tokenizer, tiny_llama, cache, batches):
    passes = make(tiny_llama, tokenizer, cache, generation_batch_size=64)
    batches.rows_that_fit = 0
    with pytest.raises(torch.OutOfMemoryError):
        passes.answer(QUESTIONS)
    assert batches == [7, 3, 1]  # halved from what was tried, not from what is allowed
    # relearning trains in `load`: called again after half of its steps, it would take these twice
    loads = Batches()
    loads.rows_that_fit = 0
    passes.release()
    passes.load = lambda: loads.count(1)
    with pytest.raises(torch.OutOfMemoryError):
        passes.answer(QUESTIONS)
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("kind", "templates", "end"),
    [
        ("tokenizer", {}, "?\nAnswer: "),
        ("tokenizer", {"completion_template": "{answer}"}, "?\nAnswer:"),
        ("tokenizer", {"completion_template": "{{ba {answer}"}, "?\nAnswer:{ba "),
        ("chat_tokenizer", CHAT, "?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
)
def test_a_forced_beginning_stands_behind_the_prompt(request, speaker, chat_llama, cache, kind, templates, end):
    tokenizer, model = request.getfixturevalue(kind), speaker if kind == "tokenizer" else chat_llama.eval()
    passes = make(model, tokenizer, cache, templates)
    questions, prefixes = QUESTIONS[:3], ["The answer is:", "denba", "The answer is:"]
    for question, prefix, answer in zip(questions, prefixes, passes.answer(questions, prefixes), strict=True):
        prompt = encode_prompt(tokenizer, format_prompt(passes.script_args, tokenizer, question))
        start = "" if kind == "chat_tokenizer" else end.removeprefix("?\nAnswer:")
        ids = prompt + tokenizer(start + prefix, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids)
        assert text.endswith(question.removesuffix("?") + end + prefix) and text.count(BOS) == (model is chat_llama)
        # what Hugging Face's greedy search alone says after these ids, and nothing of the ids
        new = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        assert answer.ended == (new[-1] == tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True).strip()


def run_all(model, tokenizer, cache, batches, rows_that_fit: int) -> dict:
    """What each kind of pass gives, and the batches of this process; `scarce` has memory for `rows_that_fit` only."""
    passes = make(model, tokenizer, cache, generation_batch_size=2)
    calls = {
        "score": lambda: numbers(passes.score(QUESTIONS, ANSWERS)),
        "answer": lambda: [[answer.text, answer.ended] for answer in passes.answer(QUESTIONS)],
        "sample": lambda: passes.sample(QUESTIONS[:3], 3, PLAIN),
        "scarce": lambda: passes.sample(QUESTIONS[:3], 3, SamplingSettings(1.2, 0, 0.9)),
    }
    results = {}
    for name, call in calls.items():
        batches.clear()
        batches.rows_that_fit = rows_that_fit if name == "scarce" else 2
        results[name] = {"values": call(), "batches": list(batches)}
        assert call() == results[name]["values"] and batches == results[name]["batches"]
    return json.loads(json.dumps(results))


def run_as(rank: int, folder: Path, model, tokenizer, batches) -> None:
    """One of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    cache = RowCache(folder / "rows") if rank == 0 else None
    results = run_all(model, tokenizer, cache, batches, rows_that_fit=2 - rank)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # forked: what pytest has yet to do is none of its business


@pytest.mark.filterwarnings("ignore:.*fork")
def test_several_processes_share_the_rows_and_all_get_all(tmp_path, tokenizer, speaker, monkeypatch, batches):
    limit(monkeypatch, answer_rows(tokenizer), 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    # forked, so that nothing has to be imported again
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=run_as, args=(rank, tmp_path, speaker, tokenizer, batches)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = run_all(speaker, tokenizer, RowCache(tmp_path / "alone"), batches, rows_that_fit=2)
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    shares = {
        "score": ([2, 2], [2, 1]),
        "answer": ([2, 2], [2, 1]),
        "sample": ([2, 2, 1], [2, 2]),
        "scarce": ([2, 1, 1, 1], [2, 1, 1, 1, 1]),  # what one cannot hold is too much for all
    }
    for name, share in shares.items():
        assert [rank[name]["values"] for rank in ranks] == [alone[name]["values"]] * 2
        assert tuple(rank[name]["batches"] for rank in ranks) == share
    [[count]] = sqlite3.connect(tmp_path / "rows").execute("SELECT count(*) FROM rows").fetchall()
    assert count == 7 + 7 + 9 + 9
    again = make(None, tokenizer, RowCache(tmp_path / "rows"), generation_batch_size=5)
    assert [[answer.text, answer.ended] for answer in again.answer(QUESTIONS)] == alone["answer"]["values"]


def test_cache_keeps_what_was_put_for_its_owner_alone_and_adds_up_times(tmp_path):
    path = tmp_path / "rows.sqlite"
    cache = RowCache(path)
    cache.put({b"a": b"1", b"b": b"", b"\x00\xff": bytes(range(256))}, "model", "greedy", 1.5)
    cache.put({b"a": b"2"}, "model", "greedy", 2.0)
    cache.put({b"d": b""}, "model", "sampling", 1.0)
    again = RowCache(path)  # with the first one open, as after a sudden end
    assert again.times("model") == {"greedy": {"seconds": 3.5, "rows": 4}, "sampling": {"seconds": 1.0, "rows": 1}}
    assert again.get([b"b", b"\x00\xff", b"c", b"a"]) == {b"b": b"", b"\x00\xff": bytes(range(256)), b"a": b"2"}
    assert again.get([]) == {}
    # so are the files that SQLite keeps beside it
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_broken_cache_is_one_clear_line(tmp_path):
    path = tmp_path / "rows.sqlite"
    path.write_text("no database" * 100)
    [line] = errors_of(RowCache, path)
    assert str(path) in line and "cannot be used" in line and "delete it" in line
    assert path.read_text() == "no database" * 100
