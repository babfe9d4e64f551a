"""Tokenizers and models: checks before weights load, adapters, 4 and 8 bits, merging."""

import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)
from trl import ModelConfig

from pmc_rl.adapters import merge, restore_conv1d
from pmc_rl.config import RunConfig
from pmc_rl.errors import RecipeError, all_problems, nearest_path, one_line
from pmc_rl.generation import end_token_ids

logger = logging.get_logger(__name__)


def load_tokenizer(model_args: ModelConfig, tokenizer_name_or_path: str | None) -> PreTrainedTokenizerBase:
    """
    The tokenizer, checked against the model's config before weights load. A missing pad token becomes the end token.

    Raises:
        RecipeError: there is no such model or tokenizer, the tokenizer has no end token, turns text into nothing (a
            folder without tokenizer files loads as an empty one) or has more tokens than the model.
    """
    config = load_config(model_args)
    if model_args.use_peft and _is_adapter(model_args):
        raise RecipeError(
            [
                f"use_peft: {model_args.model_name_or_path!r} is an adapter; a second one, saved alone, loses it: "
                "merge it into its base model first (peft's merge_and_unload) and give the merged model"
            ]
        )
    name = tokenizer_name_or_path or model_args.model_name_or_path
    advice = "give the tokenizer's folder or Hub name with tokenizer_name_or_path"
    try:
        revision = model_args.model_revision if tokenizer_name_or_path is None else "main"
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecipeError([f"no tokenizer can be loaded from {name!r} ({one_line(error)}); {advice}"]) from error
    errors = []
    if not tokenizer("Question: who?", add_special_tokens=False)["input_ids"]:
        errors.append(f"the tokenizer of {name!r} turns text into nothing (are its files missing?); {advice}")
    elif tokenizer.eos_token_id is None:
        errors.append(f"the tokenizer of {name!r} has no end token, so no answer could ever end; {advice}")
    elif len(tokenizer) > config.get_text_config().vocab_size:
        errors.append(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, the model {model_args.model_name_or_path!r} only "
            f"{config.get_text_config().vocab_size}: they do not belong together; {advice}"
        )
    if errors:
        raise RecipeError(errors)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        PartialState().print(f"The tokenizer has no pad token: its end token {tokenizer.eos_token!r} is used.")
    return tokenizer


def load_config(model_args: ModelConfig) -> PreTrainedConfig:
    """The model's config; of an adapter folder that of its base."""
    name = model_args.model_name_or_path
    try:
        return AutoConfig.from_pretrained(_base_of(name), revision=model_args.model_revision)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise RecipeError(
            [f"model_name_or_path: no model can be loaded from {name!r} ({one_line(error)}){nearest_path(Path(name))}"]
        ) from error


def load_end_ids(model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an answer of the model, from its files; no weights are loaded."""
    return end_token_ids(_load_generation_config(model_args), tokenizer.eos_token_id)


def check_model(model_args: ModelConfig, args: RunConfig) -> None:
    """
    Looks at a model to train, without reading weights. Warns of a `dtype` that runs but trains badly or slowly.

    Raises:
        RecipeError: a local folder has no whole safetensors; its generation config is broken, or could not be saved
            again; an adapter cannot be merged; quantization is not as the weights are stored, or lacks an adapter to
            train, its package, or a 16-bit type to compute in.
    """
    with all_problems() as check:
        check(check_files, model_args)
        check(_check_generation_config, model_args)
        check(_check_quantization, model_args, args)
    _warn_of_dtype(model_args, args)


def check_files(model_args: ModelConfig) -> None:
    """
    Refuses a local folder, or an adapter's base, without whole safetensors or with a broken generation config, and an
    adapter that is no part of the weights.
    """
    if _is_adapter(model_args) and PeftConfig.from_pretrained(model_args.model_name_or_path).is_prompt_learning:
        raise RecipeError(
            [
                f"model_name_or_path: {model_args.model_name_or_path!r} is a learned prompt, which cannot be merged "
                "into its base model; give a model or a LoRA adapter"
            ]
        )
    for folder in dict.fromkeys([model_args.model_name_or_path, _base_of(model_args.model_name_or_path)]):
        if not os.path.isdir(folder):
            continue
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise RecipeError(
                [
                    f"model_name_or_path: {folder!r} holds no safetensors; other formats can run code when they are "
                    "read: load the model in a place you trust and save it with save_pretrained"
                ]
            )
        for file in files:
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise RecipeError([f"model_name_or_path: {file} is broken ({one_line(error)})"]) from error
    if os.path.isdir(_base_of(model_args.model_name_or_path)):
        _load_generation_config(model_args)


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
        raise RecipeError(
            [f"the generation config of {model_args.model_name_or_path!r} cannot be saved again: {one_line(error)}"]
        ) from error


def stored_quantization(model_args: ModelConfig) -> dict[str, bool]:
    """
    How the weights of a model, or of an adapter's base, are stored: values of `load_in_4bit` and `load_in_8bit`.

    Raises:
        RecipeError: quantized by another method than those of bitsandbytes.
    """
    config = load_config(model_args).to_dict().get("quantization_config") or {}
    if config.get("quant_method", "bitsandbytes") != "bitsandbytes":
        raise RecipeError(
            [
                f"model_name_or_path: {model_args.model_name_or_path!r} is quantized by {config['quant_method']}, "
                "which cannot be trained here; give the model that it was made from"
            ]
        )
    return {name: bool(config.get(name)) for name in ("load_in_4bit", "load_in_8bit")}


def _check_quantization(model_args: ModelConfig, args: RunConfig) -> None:
    stored = stored_quantization(model_args)
    for name, value in stored.items():
        if value and not vars(model_args)[name]:
            raise RecipeError(
                [f"model_name_or_path: {model_args.model_name_or_path!r} holds quantized weights; say {name}: true"]
            )
    if not is_quantized(model_args):
        return
    name = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    errors = []
    if not model_args.use_peft:
        what = "say use_peft: true to train an adapter"
        if _is_adapter(model_args):
            what = "give the merged model, which save_merged: true writes to merged/, without this key"
        errors.append(f"{name}: quantized weights cannot be trained; {what}")
    if find_spec("bitsandbytes") is None:
        errors.append(f"{name}: the package bitsandbytes is not installed; pip install -e '.[quantization]'")
    if not args.use_cpu and model_args.dtype == "float32":
        errors.append(f"{name}: computes in dtype, and float32 is slow; say dtype: bfloat16")
    if errors:
        raise RecipeError(errors)


def is_quantized(model_args: ModelConfig) -> bool:
    return model_args.load_in_4bit or model_args.load_in_8bit


def _base_of(name: str) -> str:
    """The base model of an adapter folder, else the name itself."""
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        try:
            base = PeftConfig.from_pretrained(name).base_model_name_or_path
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError([f"model_name_or_path: the adapter {name!r} is broken ({one_line(error)})"]) from error
        if base is None:
            raise RecipeError([f"model_name_or_path: the adapter {name!r} does not name its base_model_name_or_path"])
        return base
    return name


def _is_adapter(model_args: ModelConfig) -> bool:
    return _base_of(model_args.model_name_or_path) != model_args.model_name_or_path


def _load_base(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    quantization = {}
    if is_quantized(model_args):
        config = BitsAndBytesConfig(
            load_in_4bit=model_args.load_in_4bit,
            load_in_8bit=model_args.load_in_8bit,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        )
        quantization = {"quantization_config": config, "device_map": {"": device}}
    base = _base_of(model_args.model_name_or_path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=model_args.model_revision,
            dtype=dtype,
            attn_implementation=model_args.attn_implementation,
            use_safetensors=True,
            **quantization,
        )
    except OSError as error:  # what the Hub has is not known before
        raise RecipeError(
            [f"model_name_or_path: {base!r} cannot be loaded; only safetensors are read ({one_line(error)})"]
        ) from error
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # on a CPU, sampling would pack the weights for a kernel without gradients, silently
            module.support_avx512bf16_for_cpu = False
    return model if quantization else model.to(device)


def load_model(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | PeftModel:
    """
    A causal language model, quantized if the recipe says so: all linear layers but the head.

    A folder with an adapter is loaded onto its base model, not merged: merging rounds.
    """
    model, name = _load_base(model_args, dtype, device), model_args.model_name_or_path
    return PeftModel.from_pretrained(model, name) if _is_adapter(model_args) else model


def load_merged(model_args: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """
    As [`load_model`], in `dtype`, an adapter merged into its base.

    A quantized base is dequantized first: merging into quantized weights rounds them again, and merging into the
    original 16-bit ones gives another model than the one that was trained.
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
    """The recipe's `dtype`, float32 on a CPU."""
    if args.use_cpu or model_args.dtype is None:
        return torch.float32
    return getattr(torch, model_args.dtype)


def _warn_of_dtype(model_args: ModelConfig, args: RunConfig) -> None:
    dtype = training_dtype(model_args, args)
    if dtype == torch.bfloat16 and not model_args.use_peft and args.learning_rate < 1e-4:
        logger.warning(
            f"dtype is bfloat16 for full fine-tuning at learning rate {args.learning_rate}: most updates are smaller "
            "than a bfloat16 weight can take in. Use dtype: float32 with bf16: true."
        )
    if dtype == torch.float32 and model_args.use_peft and args.bf16:
        logger.warning(
            "use_peft with dtype float32 under bf16: the frozen base is cast again at every decoding step. "
            "Use dtype: bfloat16; adapters stay in float32."
        )


def check_processes(args: RunConfig) -> None:
    """One process a GPU, each with the whole model."""
    if args.world_size == 1 and args.n_gpu > 1:
        raise RecipeError(
            [
                f"{args.n_gpu} GPUs are visible to one process: accelerate launch --multi_gpu --num_processes "
                f"{args.n_gpu} uses all, CUDA_VISIBLE_DEVICES=0 one"
            ]
        )
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise RecipeError(
                [
                    f"launched with {name}, which is not supported: sampling gathers all weights for every token, and "
                    "saving has not been tested; use --multi_gpu, with use_peft or load_in_4bit where memory is small"
                ]
            )
