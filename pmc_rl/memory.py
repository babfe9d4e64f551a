"""Memory of a run: by part, estimated from settings and the shapes of a model on the meta device; and its peak."""

import resource
import sys
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl import ModelConfig

from pmc_rl.adapters import add_adapter
from pmc_rl.config import PMCConfig
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.models import is_quantized, training_dtype

# Tokens and vocabulary entries of the tiles in which TRL's fused head makes logits (trl.kernels.chunked_logprob).
LOGITS_TILE = (4096, 32768)
# Bytes a logit of a tile takes on a CPU, where no Triton kernel works in place: eight float32 copies and a mask.
CPU_BYTES_PER_LOGIT = 33
# What Python, torch and the other libraries take on a CPU; on an accelerator their memory is another one.
CPU_PROGRAM_BYTES = 3 * 2**28
# A run trains or generates: only the larger of these parts counts.
IN_TURNS = ("activations", "KV cache")


class ParameterCounts(NamedTuple):
    base: int  # all of the model without an adapter, tied ones once
    linear: int  # of these, matrices of linear layers other than the head: what bitsandbytes quantizes
    linear_rows: int  # rows of these matrices, that is their outputs
    trainable: int  # those of the adapter, or all of `base`


def count_parameters(config: PreTrainedConfig, model_args: ModelConfig) -> ParameterCounts:
    """Counts on the meta device, where a model has shapes and no memory; refuses an adapter that does not fit it."""
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation=model_args.attn_implementation)
        except (ValueError, ImportError) as error:
            keys = "model_name_or_path, attn_implementation"
            raise RecipeError([f"{keys}: no model can be made ({one_line(error)})"]) from error
        head = model.get_output_embeddings()
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
        base = sum(parameter.numel() for parameter in model.parameters())
        sizes = sum(layer.weight.numel() for layer in linear), sum(layer.out_features for layer in linear)
        if model_args.use_peft:
            model = add_adapter(model, model_args)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ParameterCounts(base, *sizes, trainable)


def weight_bytes(counts: ParameterCounts, model_args: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the base model; what is not quantized is in `dtype`."""
    linear = counts.linear * dtype.itemsize
    if model_args.load_in_4bit:
        # float32 maxima of blocks of 64; nested, these take 8 bit and float32 maxima of 256 of them (Dettmers et al.
        # 2023, arXiv 2305.14314, section 3)
        maxima = 1 / 64 + 4 / (64 * 256) if model_args.use_bnb_nested_quant else 4 / 64
        linear = round(counts.linear * (0.5 + maxima))
    elif model_args.load_in_8bit:
        linear = counts.linear + 4 * counts.linear_rows  # a float32 maximum a row
    return linear + (counts.base - counts.linear) * dtype.itemsize


def layer_activation_bytes(config: PreTrainedConfig, rows: int, length: int, itemsize: int, eager: bool) -> int:
    """
    Bytes that autograd keeps of one decoder layer. The form is that of Korthikanti et al. 2022 (arXiv 2205.05198,
    section 4.1), the constants are measured (`saved_tensors_hooks`, Phi and Llama, with LoRA and without), 0 to 25 %
    too large. Eager attention keeps scores.
    """
    settings = config.get_text_config()
    intermediate = settings.to_dict().get("intermediate_size") or 4 * settings.hidden_size  # GPT-2 and the like: null
    intermediate = max(intermediate) if isinstance(intermediate, list) else intermediate  # Gemma 3n: one a layer
    scores = 7 * rows * settings.num_attention_heads * length**2 if eager else 0
    return rows * length * (30 * settings.hidden_size + 5 * itemsize * intermediate) + scores


def kv_bytes_per_row(config: PreTrainedConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes of a generated row's keys and values; without attention of its state, whatever the length."""
    settings = config.get_text_config()
    given = settings.to_dict()  # not all architectures have all of these keys
    heads = given.get(settings.attribute_map.get("num_attention_heads", "num_attention_heads"))
    if heads is None:  # the inner size is twice the hidden one
        return 2 * settings.num_hidden_layers * settings.hidden_size * given.get("state_size", 1) * dtype.itemsize
    head_size = given.get("head_dim") or settings.hidden_size // heads
    kv_heads = given.get("num_key_value_heads") or heads
    return 2 * settings.num_hidden_layers * kv_heads * head_size * length * dtype.itemsize


def sampling_bytes_per_row(config: PreTrainedConfig, top_k: int) -> int:
    """Bytes a row while [`~pmc_rl.generation.InverseCDFSampler`] picks a token."""
    # logits, their float32 copy, probabilities, the result; else also sorted, with int64 tokens, and cumulated twice
    return config.get_text_config().vocab_size * 4 * (4 if top_k else 9)


def estimate_memory(
    counts: ParameterCounts,
    config: PreTrainedConfig,
    model_args: ModelConfig,
    args: PMCConfig,
    prompt_length: int,
    asks_original: bool,
    num_processes: int = 1,
) -> dict[str, int]:
    """
    Bytes of one process by part, the KV cache of a single row. `prompt_length` is that of the longest prompt,
    in tokens, `asks_original` whether a reward asks the model before unlearning.
    """
    settings, dtype = config.get_text_config(), training_dtype(model_args, args)
    autocast = args.bf16 or args.fp16
    parts = {"weights": weight_bytes(counts, model_args, dtype)}
    if args.use_cpu:
        parts["Python and its libraries"] = CPU_PROGRAM_BYTES
    trained = 4 if model_args.use_peft else dtype.itemsize  # adapters are float32; gradients are as their weights
    # AdamW's two moments: a byte each in 8 bit, always float32 in the paged ones, else as their weights
    moments = 2 if "8bit" in args.optim else 8 if "paged" in args.optim else 2 * trained
    name, weight = ("adapter", trained) if model_args.use_peft else ("gradients", 0)
    parts[f"{name} and optimizer"] = counts.trainable * (weight + trained + moments)
    if num_processes > 1:
        parts["gradients in DDP's buckets"] = counts.trainable * trained
    if autocast and dtype == torch.float32 and not is_quantized(model_args):
        parts["16-bit weights of autocast"] = 2 * counts.linear
    if not model_args.use_peft and (asks_original or args.asks_original):
        parts["model before unlearning"] = counts.base * (dtype.itemsize if args.use_cpu else 2)

    rows = args.per_device_train_batch_size * (args.num_selected + args.num_retained * (args.retain_weight > 0))
    length = prompt_length + args.max_completion_length
    itemsize = 2 if autocast else dtype.itemsize
    layer = layer_activation_bytes(config, rows, length, itemsize, model_args.attn_implementation == "eager")
    activations = settings.num_hidden_layers * layer
    if args.gradient_checkpointing:  # what goes into each layer, and the inside of the one that is made again
        activations = settings.num_hidden_layers * rows * length * settings.hidden_size * dtype.itemsize + layer
    tokens, entries = LOGITS_TILE
    scored = rows * (length if args.use_cpu else args.max_completion_length)  # without Triton, the prompts too
    bytes_per_logit = itemsize + (CPU_BYTES_PER_LOGIT if args.use_cpu else 0)
    logits = min(scored, tokens) * min(settings.vocab_size, entries) * bytes_per_logit
    if args.retain_loss == "kl":  # those of all rows and their gradients are kept whole, in float32
        logits = 2 * 4 * rows * length * settings.vocab_size
    parts["activations"] = activations + logits
    # of `dtype` also under autocast, where rotary embeddings make the keys float32 again
    parts["KV cache"] = kv_bytes_per_row(config, length, dtype) + sampling_bytes_per_row(config, args.top_k)
    return parts


def held_bytes(parts: dict[str, int]) -> int:
    """Bytes of [`estimate_memory`] that stay from step to step."""
    return sum(size for name, size in parts.items() if name not in IN_TURNS)


def peak_memory(device: torch.device) -> float:
    """GiB that this process has needed at most: of tensors on an accelerator, on a CPU resident."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def accelerator_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes; None where nobody tells (a CPU, MPS)."""
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).mem_get_info(device)
