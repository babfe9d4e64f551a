"""The plan of a run: counts and bytes against real models, caches and trainers, and what is printed."""

import gc
import math
import tempfile
from functools import partial
from itertools import accumulate

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PhiConfig,
    Trainer,
)
from trl import ModelConfig
from trl.trainer.utils import add_fused_lm_head

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.memory import (
    count_parameters,
    estimate_memory,
    held_bytes,
    kv_bytes_per_row,
    layer_activation_bytes,
    sampling_bytes_per_row,
    weight_bytes,
)
from pmc_rl.models import load_model
from pmc_rl.plan import auto_generation_batch_size, count_steps, make_plan, plan_lines
from tests.training import lora, make_trainer

SIZES = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2)
TIED = LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=64, tie_word_embeddings=True)
PHI = PhiConfig(**SIZES)
GPT2 = GPT2Config(vocab_size=320, n_embd=128, n_layer=2, n_head=4)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, TIED, PHI], ids=["llama", "tied", "phi"])
PLAIN = ModelConfig()
ADAPTER = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}


def make_config(tmp_path, **values) -> PMCConfig:
    """Without its own checks, which refuse bf16 where there is no accelerator."""
    args = PMCConfig(output_dir=str(tmp_path / "out"), use_cpu=True)
    for name, value in values.items():
        setattr(args, name, value)
    return args


@CONFIGS
def test_parameters_are_those_of_a_real_model(config):
    model = AutoModelForCausalLM.from_config(config)
    linear = [module.weight for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    linear = [weight for weight in linear if weight is not model.lm_head.weight]
    counts = count_parameters(config, PLAIN)
    assert counts.base == counts.trainable == sum(p.numel() for p in model.parameters())
    assert counts.linear == sum(weight.numel() for weight in linear)
    assert counts.linear_rows == sum(len(weight) for weight in linear)
    assert weight_bytes(counts, PLAIN, torch.bfloat16) == 2 * counts.base
    model = get_peft_model(model, lora(use_dora=True))
    adapted = count_parameters(config, ModelConfig(**ADAPTER, use_dora=True))
    assert adapted == counts._replace(trainable=model.get_nb_trainable_parameters()[0])


# what a recipe says, and what says the same to peft
SAME = [["q_proj"], ["model.layers.0.self_attn.q_proj"], r".*\.1\..*_proj", "all-linear", None]
OTHER = [("q_proj", ["q_proj"]), ([r".*\.(q|k)_proj"], ["q_proj", "k_proj"]), (["all-linear"], "all-linear")]
MODULES = [(LLAMA, given, given) for given in SAME] + [(LLAMA, *pair) for pair in OTHER]


@pytest.mark.parametrize(("config", "given", "targets"), [*MODULES, (GPT2, ["c_attn"], ["c_attn"])])
def test_modules_of_an_adapter_in_every_form(config, given, targets):
    model = get_peft_model(AutoModelForCausalLM.from_config(config), lora(target_modules=targets))
    counts = count_parameters(config, ModelConfig(use_peft=True, lora_r=4, lora_target_modules=given))
    assert counts.trainable == model.get_nb_trainable_parameters()[0]


def test_counting_allocates_nothing():
    """A model of 8 x 10**12 parameters is counted, so none is there."""
    config = LlamaConfig(**SIZES | {"hidden_size": 2**18, "intermediate_size": 2**20, "num_hidden_layers": 8})
    assert count_parameters(config, ModelConfig(**ADAPTER)).base > 8 * 10**12


@CONFIGS
def test_kv_bytes_are_those_of_a_real_cache(config):
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        cache, rows = DynamicCache(config=config), 3
        with torch.no_grad():
            model(torch.zeros(rows, 12, dtype=torch.long), past_key_values=cache, use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == rows * kv_bytes_per_row(config, 12, dtype)


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["llama", "phi"])
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_4bit use_bnb_nested_quant", "load_in_8bit"])
def test_quantized_weights_are_those_bitsandbytes_holds(tmp_path, config, bits):
    pytest.importorskip("bitsandbytes")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model_args = ModelConfig(model_name_or_path=str(tmp_path), **dict.fromkeys(bits.split(), True))
    model = load_model(model_args, torch.bfloat16, torch.device("cpu"))
    held = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # without the tables of values, a kilobyte a matrix, which no real model would notice
            state = module.weight.quant_state
            held += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        elif type(module).__name__ == "Linear8bitLt":
            held += module.weight.SCB.nbytes
    assert weight_bytes(count_parameters(config, PLAIN), model_args, torch.bfloat16) == pytest.approx(held, rel=0.02)


@pytest.fixture
def memory(tmp_path):
    """Counts and parts of an estimate, on a GPU unless `use_cpu`, with bfloat16 autocast."""

    def estimate(model=None, dtype="bfloat16", asks_original=False, config=PHI, num_processes=1, **kwargs):
        settings = {"use_cpu": False, "bf16": True, "per_device_train_batch_size": 4}
        args = make_config(tmp_path, **settings | kwargs)
        model_args = ModelConfig(dtype=dtype, **(ADAPTER | model if model is not None else {}))
        counts = count_parameters(config, model_args)
        parts = estimate_memory(counts, config, model_args, args, 40, asks_original, num_processes)
        assert all(isinstance(size, int) and size > 0 for size in parts.values())
        return counts, parts

    return estimate


def test_parts_of_full_fine_tuning_and_of_an_adapter(memory):
    counts, parts = memory(dtype="float32", asks_original=True)
    assert parts["gradients and optimizer"] == 12 * counts.base
    assert parts["16-bit weights of autocast"] == 2 * counts.linear
    assert parts["model before unlearning"] == 2 * counts.base
    assert held_bytes(parts) == 4 * counts.base + 12 * counts.base + 2 * counts.linear + 2 * counts.base
    assert memory(log_kl=True, use_cpu=True, bf16=False)[1]["model before unlearning"] == 4 * counts.base
    assert memory(dtype="float32", optim="paged_adamw_8bit")[1]["gradients and optimizer"] == 6 * counts.base
    assert memory(optim="adamw_torch")[1]["gradients and optimizer"] == 6 * counts.base
    # an adapter shares the model before, and several processes hold gradients twice
    for model in ({}, {"load_in_4bit": True}):
        counts, parts = memory(model, asks_original=True, log_kl=True)
        assert "model before unlearning" not in parts and "16-bit weights of autocast" not in parts
        assert parts["adapter and optimizer"] == 16 * counts.trainable
    two = memory(model, num_processes=2)[1]
    assert held_bytes(two) - held_bytes(parts) == two["gradients in DDP's buckets"] == 4 * counts.trainable


def test_activations_and_cache_follow_the_settings(memory):
    def activations(**kwargs):
        return memory(**kwargs)[1]["activations"]

    assert activations(gradient_checkpointing=True) < activations(gradient_checkpointing=False)
    assert activations(retain_weight=0.0) < activations(num_selected=3) == activations(per_device_train_batch_size=8)
    assert activations(num_selected=3) == activations(num_retained=3) < activations(num_retained=3, retain_loss="kl")
    assert activations(max_completion_length=200) > activations()
    cache = memory(top_k=0, max_completion_length=60)[1]["KV cache"]
    assert cache == kv_bytes_per_row(PHI, 100, torch.bfloat16) + sampling_bytes_per_row(PHI, 0)
    assert memory(top_k=50, max_completion_length=60)[1]["KV cache"] < cache
    # Mamba names no attention heads: what it keeps of a row does not grow with the text
    config = MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, state_size=8)
    short, long = (memory(config=config, max_completion_length=n)[1]["KV cache"] for n in (20, 200))
    assert short == long == 2 * 2 * 64 * 8 * 2 + sampling_bytes_per_row(config, 0)


def peak_bytes(step) -> int:
    """The most that is allocated at once while a step is made, on a CPU."""
    gc.collect()  # what earlier tests left is not to be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(("make", "attention"), [(LlamaConfig, "sdpa"), (PhiConfig, "sdpa"), (PhiConfig, "eager")])
def test_activations_of_a_layer_are_close_to_what_one_more_takes(make, attention):
    peaks, ids = [], torch.zeros(2, 128, dtype=torch.long)
    for layers in (1, 2):
        config = make(**SIZES | {"num_hidden_layers": layers})
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).get_decoder()
        peaks.append(peak_bytes(partial(model, ids, use_cache=False)))
    estimated = layer_activation_bytes(config, 2, 128, itemsize=4, eager=attention == "eager")
    assert 0.99 < estimated / (peaks[1] - peaks[0]) < 1.3


def test_a_frozen_head_in_bfloat16_is_not_copied_for_each_row(tmp_path):
    config = LlamaConfig(**SIZES | {"vocab_size": 8192}, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(ModelConfig(model_name_or_path=str(tmp_path)), torch.bfloat16, torch.device("cpu"))
    model.requires_grad_(False)
    rows = torch.zeros(32, 4, dtype=torch.long)
    with torch.no_grad():
        peak = peak_bytes(partial(model, rows, use_cache=False, logits_to_keep=1))
    assert peak < 8 * model.lm_head.weight.nbytes


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_activations_on_a_cpu_are_the_peak_of_a_step(memory, checkpointing, adapter):
    """Also of the head, whose logits are the larger part: no kernel works in place there, and prompts are scored."""
    config = LlamaConfig(**SIZES | {"vocab_size": 32768}, num_key_value_heads=2)
    settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": checkpointing}
    settings |= {"max_completion_length": 24, "per_device_train_batch_size": 1}
    counts, parts = memory({} if adapter else None, config=config, **settings)
    model = LlamaForCausalLM(config)
    add_fused_lm_head(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if adapter:
        model = get_peft_model(model, lora())
    batch = dict.fromkeys(["input_ids", "labels"], torch.zeros(2, 40 + 24, dtype=torch.long))
    peak = peak_bytes(lambda: model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum().backward())
    assert 0.9 < (parts["activations"] + 4 * counts.trainable) / peak < 1.4  # with the gradients


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**38), st.integers(1, 2**33))
def test_auto_batch_size_is_bounded_and_grows(free, more, per_row):
    rows = auto_generation_batch_size(free, per_row)
    assert 1 <= rows <= 4096 and rows & (rows - 1) == 0
    assert rows == 1 or rows * per_row <= 0.8 * free
    assert rows == 4096 or 2 * rows * per_row > 0.8 * free - 1
    assert rows <= auto_generation_batch_size(free + more, per_row)


# recipes/phi.yaml, where neither columns nor rewards matter
PHI_RECIPE = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "num_train_epochs": 40}
PHI_RECIPE |= {"num_generations": 5, "top_k": 50, "max_completion_length": 160, "generation_batch_size": 128}
PHI_RECIPE |= {"prefill_share": 0.5}
PHI_15 = PhiConfig(
    vocab_size=51200, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32
)


def plan_of(tmp_path, config=PHI, model=None, num_questions=400, device_memory=None, num_processes=1, **kwargs):
    """The lines of a plan by how they begin."""
    training_args = make_config(tmp_path, **PHI_RECIPE | kwargs)
    model_args = ModelConfig(**(model or ADAPTER))
    counts = count_parameters(config, model_args)
    sizes = {"prompt_length": 60, "asks_original": False, "device_memory": device_memory}
    plan = make_plan(counts, config, model_args, training_args, **sizes, num_processes=num_processes)
    script_args = PMCArguments(forget_config="forget10", retain_config="retain90")
    numbers = {"num_questions": num_questions, "num_retain_rows": 3600, "num_processes": num_processes}
    lines = plan_lines(plan, script_args, training_args, **numbers)
    return {name.strip(): rest for name, _, rest in (line.partition(": ") for line in lines)}


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.1, 0.5, 1, 2.5, 3]))
@settings(max_examples=25)
def test_steps_are_those_of_the_trainer(questions, batch, accumulated, epochs):
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    # the Trainer makes the folder
    args = PMCConfig(output_dir=tempfile.gettempdir(), use_cpu=True, num_train_epochs=epochs, **sizes)
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=Dataset.from_dict({"x": list(range(questions))}))
    loader = torch.utils.data.DataLoader(trainer.train_dataset, batch_size=batch)
    _, per_epoch, _, _, _, _, max_steps = trainer.set_initial_training_values(args, loader)
    assert count_steps(args, questions, 1) == (per_epoch, max_steps)
    args.max_steps = 7
    assert count_steps(args, questions, 1) == (per_epoch, 7)
    assert count_steps(args, questions, 2)[0] == math.ceil(math.ceil(questions / batch / 2) / accumulated)


def test_steps_and_samples_are_those_of_a_run(tmp_path, tiny_llama, tokenizer):
    """7 questions in windows of 2 x 2: the last window of an epoch has three. Drawn answers solve nothing."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "selection": "bradley_terry"}
    settings |= {"num_generations": 3, "max_completion_length": 4, "allow_unfinished": True, "num_train_epochs": 1.5}
    trainer = make_trainer(tmp_path, tiny_llama, tokenizer, **settings)
    trainer.train()
    plan = plan_of(tmp_path, num_questions=7, **settings)
    assert f"{trainer.state.global_step} steps" in plan["steps"]
    assert plan["samples"].endswith(f"at most {trainer.sampler.num_samples}")


def test_the_plan_of_the_phi_recipe(tmp_path):
    plan = plan_of(tmp_path)
    assert plan["questions"] == "400 from forget10; 50% of the visits begin within an answer"
    batch = "16 a device x 4 accumulated x 1 process = 64 questions + 64 rows to retain, of 3,600"
    assert plan["effective batch"] == batch
    assert plan["steps"] == "7 steps an epoch x 40 epochs = 280 steps"
    # 280 x 64 x 5 would be 89,600, but the last window of an epoch has 32 questions
    assert "at most 80,000; fewer as questions are solved" in plan["samples"]
    assert plan["generate calls"] == "at most 3 a step, of up to 128 rows"
    assert "accelerator" not in plan

    plan = plan_of(tmp_path, max_steps=250, prefill_share=0.0, retain_weight=0.0, num_selected=2)
    assert plan["steps"] == "max_steps = 250 steps, that is 35.71 epochs of 7"
    assert plan["effective batch"].endswith("= 64 questions of up to 2 answers")
    assert "at most 71,600" in plan["samples"]  # 35 x 400 + 5 x 64 visits, 5 samples each
    assert plan["questions"] == "400 from forget10"
    plan = plan_of(tmp_path, selection="bradley_terry", log_kl=True, num_processes=2)
    assert "solved" not in plan["samples"] and "x 2 processes = 128 questions" in plan["effective batch"]
    assert "at most 4 a step" in plan["generate calls"]  # one for log_kl


def gib(text: str) -> float:
    return float(text.split()[0])


def test_the_parts_add_up(tmp_path):
    settings = {"config": PHI_15, "model": {"dtype": "float32"}}
    for size in (128, 4):  # with few rows the activations are the larger part
        plan = plan_of(tmp_path, **settings, generation_batch_size=size)
        names = ("weights", "Python and its libraries", "gradients and optimizer", "activations", "KV cache")
        weights, program, optimizer, activations, cache = (gib(plan[name]) for name in names)
        assert (cache > activations) == (size == 128)
        total = gib(plan["total, with the larger of activations and KV cache"])
        assert total == pytest.approx(weights + program + optimizer + max(activations, cache), abs=0.03)
    assert plan["parameters"] == "1,418,270,720; trained: 1,418,270,720"
    for free, ending in ((total + 0.01, ""), (total - 0.01, " - too little")):
        memory = (int(free * 2**30), 80 * 2**30)
        plan = plan_of(tmp_path, **settings, generation_batch_size=4, device_memory=memory)
        assert plan["accelerator"] == f"{free:.2f} GiB free of 80.00{ending}"


def test_auto_takes_what_the_rest_leaves(tmp_path):
    auto = {"generation_batch_size": "auto", "config": PHI_15, "model": {"dtype": "float32"}}
    for free in (26, 32, 80):
        plan = plan_of(tmp_path, **auto, device_memory=(free * 2**30, 80 * 2**30))
        left = free - gib(plan["weights"]) - gib(plan["gradients and optimizer"])
        assert 0.39 * left < gib(plan["KV cache"]) < 0.81 * left
    assert "of up to 64 rows" in plan_of(tmp_path, **auto)["generate calls"]
    assert "of up to 1 rows" in plan_of(tmp_path, **auto, device_memory=(2**30, 2**31))["generate calls"]
