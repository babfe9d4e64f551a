"""Tokenizers and models: checks before weights load, adapters, 4 and 8 bits, merging."""

import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)
from trl import ModelConfig, get_quantization_config

from pmc_rl.adapters import merge, restore_conv1d
from pmc_rl.config import RunConfig
from pmc_rl.errors import RecipeError, all_problems, nearest_path, one_line
from pmc_rl.output import is_finished_run

BITS = ("load_in_4bit", "load_in_8bit")
logger = logging.get_logger(__name__)


def load_tokenizer(model_args: ModelConfig, tokenizer_name_or_path: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, checked against the model's config; a missing pad token becomes the end token."""
    model, vocab_size = model_args.model_name_or_path, load_config(model_args).get_text_config().vocab_size
    if model_args.use_peft and _is_adapter(model_args):
        advice = "merge it into its base model first (peft's merge_and_unload) and give the merged model"
        raise RecipeError([f"use_peft: {model!r} is an adapter; a second one, saved alone, loses it: {advice}"])
    name = tokenizer_name_or_path or model
    advice = "give the tokenizer's folder or Hub name with tokenizer_name_or_path"
    try:
        revision = model_args.model_revision if tokenizer_name_or_path is None else "main"
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecipeError([f"no tokenizer can be loaded from {name!r} ({one_line(error)}); {advice}"]) from error
    problem = None
    if not tokenizer("Question: who?", add_special_tokens=False)["input_ids"]:
        problem = "turns text into nothing (are its files missing?)"
    elif tokenizer.eos_token_id is None:
        problem = "has no end token, so no answer could ever end"
    elif len(tokenizer) > vocab_size:
        problem = f"has {len(tokenizer)} tokens, the model {model!r} only {vocab_size}: they do not belong together"
    if problem:
        raise RecipeError([f"the tokenizer of {name!r} {problem}; {advice}"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        PartialState().print(f"The tokenizer has no pad token: its end token {tokenizer.eos_token!r} is used.")
    return tokenizer


def load_config(model_args: ModelConfig) -> PreTrainedConfig:
    """The model's config; of an adapter folder that of its base."""
    name, base = model_args.model_name_or_path, _base_of(model_args.model_name_or_path)
    try:
        return AutoConfig.from_pretrained(base, revision=model_args.model_revision)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        what = f"no model can be loaded from {name!r} ({one_line(error)}){nearest_path(Path(name))}"
        raise RecipeError([f"model_name_or_path: {what}"]) from error


def load_end_ids(model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an answer of the model, from its files; no weights are loaded."""
    return end_token_ids(_load_generation_config(model_args), tokenizer.eos_token_id)


def end_token_ids(config: GenerationConfig, eos_token_id: int) -> list[int]:
    """Every id that ends an answer: the tokenizer's end token and those of the model's generation config, sorted."""
    configured = config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else configured
    return sorted({eos_token_id, *configured})


def check_model(model_args: ModelConfig, args: RunConfig) -> None:
    """
    Refuses a model that cannot be trained as the recipe says, or not be saved again, without reading weights. Warns of
    a `dtype` that runs but trains badly or slowly.
    """
    with all_problems() as check:
        check(check_files, model_args)
        check(_check_generation_config, model_args)
        check(_check_quantization, model_args, use_cpu=args.use_cpu)
    dtype = training_dtype(model_args, args)
    if dtype == torch.bfloat16 and not model_args.use_peft and args.learning_rate < 1e-4:
        logger.warning(
            f"dtype is bfloat16 for full fine-tuning at learning rate {args.learning_rate}: most updates are smaller "
            "than a bfloat16 weight can take in. Use dtype: float32 with bf16: true."
        )
    if dtype == torch.float32 and model_args.use_peft and args.bf16:
        slow = "the frozen base is cast again at every decoding step"
        logger.warning(
            f"use_peft with dtype float32 under bf16: {slow}; use dtype: bfloat16; adapters stay in float32."
        )


def check_files(model_args: ModelConfig) -> None:
    """
    Refuses a local folder, or an adapter's base, without whole safetensors or with a broken generation config, and an
    adapter that is no part of the weights. Warns of one trained on another base than it is loaded onto.
    """
    name, base = model_args.model_name_or_path, _base_of(model_args.model_name_or_path)
    if name != base and PeftConfig.from_pretrained(name).is_prompt_learning:
        what = "is a learned prompt, which cannot be merged into its base model; give a model or a LoRA adapter"
        raise RecipeError([f"model_name_or_path: {name!r} {what}"])
    for folder in filter(os.path.isdir, dict.fromkeys([name, base])):
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            advice = "load the model in a place you trust and save it with save_pretrained"
            why = "holds no safetensors; other formats can run code when they are read"
            raise RecipeError([f"model_name_or_path: {folder!r} {why}: {advice}"])
        for file in files:
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise RecipeError([f"model_name_or_path: {file} is broken ({one_line(error)})"]) from error
    if os.path.isdir(base):
        _load_generation_config(model_args)
    trained_in = [key for key in BITS if recipe_in(name).get(key) and not vars(model_args)[key]]
    if name != base and trained_in:
        what = "is put on a base that is not: another model than the trained one"
        logger.warning(
            f"{name!r}: an adapter trained with {trained_in[0]}: true {what}; say so too, or give its merged/."
        )


def recipe_in(folder: str | Path) -> dict:
    """The recipe of the run of ours that a folder holds; empty where it holds none."""
    if not is_finished_run(Path(folder)):
        return {}
    return yaml.safe_load(Path(folder, "recipe.yaml").read_text(encoding="utf-8"))


def _load_generation_config(model_args: ModelConfig) -> GenerationConfig:
    """As transformers finds it: the base model's file, else by its config."""
    base = _base_of(model_args.model_name_or_path)
    try:
        return GenerationConfig.from_pretrained(base, revision=model_args.model_revision)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        file = Path(base, "generation_config.json")
        if file.exists():
            raise RecipeError([f"model_name_or_path: {file} is broken ({one_line(error)})"]) from error
        return GenerationConfig.from_model_config(load_config(model_args))


def _check_generation_config(model_args: ModelConfig) -> None:
    generation_config = _load_generation_config(model_args)
    try:
        generation_config.validate(strict=True)
    except ValueError as error:  # transformers is as strict on saving, when the work is done
        what = f"the generation config of {model_args.model_name_or_path!r} cannot be saved again"
        raise RecipeError([f"{what}: {one_line(error)}"]) from error


def stored_quantization(model_args: ModelConfig) -> dict[str, bool]:
    """How the weights of a model, or of an adapter's base, are stored: values of `load_in_4bit`, `load_in_8bit`."""
    config = load_config(model_args).to_dict().get("quantization_config") or {}
    method = config.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        what = f"{model_args.model_name_or_path!r} is quantized by {method}, which cannot be trained here"
        raise RecipeError([f"model_name_or_path: {what}; give the model that it was made from"])
    return {key: bool(config.get(key)) for key in BITS}


def _check_quantization(model_args: ModelConfig, use_cpu: bool) -> None:
    for key, is_stored in stored_quantization(model_args).items():
        if is_stored and not vars(model_args)[key]:
            what = f"{model_args.model_name_or_path!r} holds quantized weights"
            raise RecipeError([f"model_name_or_path: {what}; say {key}: true"])
    if not is_quantized(model_args):
        return
    errors = []
    if not model_args.use_peft:
        what = "say use_peft: true to train an adapter"
        if _is_adapter(model_args):
            what = "give the merged model, which save_merged: true writes to merged/, without this key"
        errors.append(f"quantized weights cannot be trained; {what}")
    if find_spec("bitsandbytes") is None:
        errors.append("the package bitsandbytes is not installed; pip install -e '.[quantization]'")
    if not use_cpu and model_args.dtype == "float32":
        errors.append("computes in dtype, and float32 is slow; say dtype: bfloat16")
    if errors:
        key = BITS[0] if model_args.load_in_4bit else BITS[1]
        raise RecipeError([f"{key}: {error}" for error in errors])


def is_quantized(model_args: ModelConfig) -> bool:
    return model_args.load_in_4bit or model_args.load_in_8bit


def _base_of(name: str) -> str:
    """The base model of an adapter folder, else the name itself."""
    if not os.path.isfile(os.path.join(name, "adapter_config.json")):
        return name
    try:
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"model_name_or_path: the adapter {name!r} is broken ({one_line(error)})"]) from error
    if base is None:
        raise RecipeError([f"model_name_or_path: the adapter {name!r} does not name its base_model_name_or_path"])
    return base


def _is_adapter(model_args: ModelConfig) -> bool:
    return _base_of(model_args.model_name_or_path) != model_args.model_name_or_path


def _load_base(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        quantization.bnb_4bit_compute_dtype = dtype
    base = _base_of(model_args.model_name_or_path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=model_args.model_revision,
            dtype=dtype,
            attn_implementation=model_args.attn_implementation,
            use_safetensors=True,
            quantization_config=quantization,
            device_map={"": device} if quantization else None,
        )
    except OSError as error:  # what the Hub has is not known before
        what = f"{base!r} cannot be loaded; only safetensors are read ({one_line(error)})"
        raise RecipeError([f"model_name_or_path: {what}"]) from error
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # on a CPU, sampling would pack the weights for a kernel without gradients, silently
            module.support_avx512bf16_for_cpu = False
    # a CPU would copy a frozen bfloat16 head for each row of which the last tokens are taken: 56 MB of SmolLM2's
    model.get_output_embeddings().register_forward_pre_hook(lambda head, args: tuple(x.contiguous() for x in args))
    return model if quantization else model.to(device)


def load_model(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | PeftModel:
    """
    A causal language model, quantized if the recipe says so: all linear layers but the head. A folder with an adapter
    is loaded onto its base model, not merged: merging rounds.
    """
    model, name = _load_base(model_args, dtype, device), model_args.model_name_or_path
    return PeftModel.from_pretrained(model, name) if _is_adapter(model_args) else model


def load_merged(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """
    As [`load_model`], in `dtype`, an adapter merged into its base. A quantized base is dequantized first: merging into
    quantized weights rounds them again, and into the original ones gives another model than the one that was trained.
    """
    model, name = _load_base(model_args, dtype, device), model_args.model_name_or_path
    if is_quantized(model_args):
        model = model.dequantize().to(torch.float32)  # rounded once, at the end
    if _is_adapter(model_args):
        model = merge(PeftModel.from_pretrained(model, name))
    if is_quantized(model_args):
        restore_conv1d(model)
    return model.to(dtype).requires_grad_(True)  # peft and bitsandbytes leave weights frozen


def merged_copy(model: PeftModel, model_args: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A trained adapter, merged by [`load_merged`] on the CPU; the model stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_merged(replace(model_args, model_name_or_path=folder), dtype, torch.device("cpu"))


def load_model_to_train(model_args: ModelConfig, args: RunConfig) -> PreTrainedModel:
    """As [`load_model`], in the dtype to train in; an adapter is merged, since training starts from what it made."""
    load = load_model if is_quantized(model_args) else load_merged
    return load(model_args, training_dtype(model_args, args), args.device)


def training_dtype(model_args: ModelConfig, args: RunConfig) -> torch.dtype:
    """The recipe's `dtype`; float32 on a CPU without bf16."""
    if model_args.dtype is None or (args.use_cpu and not args.bf16):
        return torch.float32
    return getattr(torch, model_args.dtype)


def check_processes(args: RunConfig) -> None:
    """One process a GPU, each with the whole model."""
    if args.world_size == 1 and args.n_gpu > 1:
        all_of_them = f"accelerate launch --multi_gpu --num_processes {args.n_gpu} uses all"
        raise RecipeError([f"{args.n_gpu} GPUs are visible to one process: {all_of_them}, CUDA_VISIBLE_DEVICES=0 one"])
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            why = "sampling gathers all weights for every token, and saving has not been tested"
            advice = "use --multi_gpu, with use_peft or load_in_4bit where memory is small"
            raise RecipeError([f"launched with {name}, which is not supported: {why}; {advice}"])
