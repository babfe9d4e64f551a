"""Memory of a run by part, estimated from settings and the shapes of a model on the meta device; loads no weights."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl import ModelConfig

from pmc_rl.adapters import add_adapter
from pmc_rl.config import PMCConfig
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.likelihood import LOGITS_PER_CHUNK, TOKENS_PER_BATCH
from pmc_rl.models import is_quantized

# Tokens and vocabulary entries of the tiles in which TRL's fused head makes logits (trl.kernels.chunked_logprob).
LOGITS_TILE = (4096, 32768)
# Bytes a logit of a tile takes on a CPU, where no Triton kernel works in place: eight float32 copies and a mask.
CPU_BYTES_PER_LOGIT = 33
# What Python, torch and the other libraries take on a CPU; on an accelerator their memory is another one.
CPU_PROGRAM_BYTES = 3 * 2**28
# It trains, it generates or it scores: only the largest of these parts counts.
IN_TURNS = ("activations", "KV cache", "scores by the model before")


@dataclass
class ParameterCounts:
    """
    Numbers of parameters.

    Args:
        base (`int`): all of the model without an adapter, tied ones once.
        linear (`int`): of these, matrices of linear layers other than the head: what bitsandbytes quantizes.
        linear_rows (`int`): rows of these matrices, that is their outputs.
        trainable (`int`): those of the adapter, or all of `base`.
    """

    base: int
    linear: int
    linear_rows: int
    trainable: int


def count_parameters(config: PreTrainedConfig, model_args: ModelConfig) -> ParameterCounts:
    """
    Counts on the meta device, where a model has shapes and no memory.

    Raises:
        RecipeError: from such a config no causal language model can be made, or the adapter does not fit it.
    """
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                config,
                attn_implementation=model_args.attn_implementation,
            )
        except (ValueError, ImportError) as error:
            names = "model_name_or_path, attn_implementation"
            raise RecipeError([f"{names}: no model can be made ({one_line(error)})"]) from error
        head = model.get_output_embeddings()
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
        base = sum(parameter.numel() for parameter in model.parameters())
        if model_args.use_peft:
            model = add_adapter(model, model_args)
    return ParameterCounts(
        base=base,
        linear=sum(layer.weight.numel() for layer in linear),
        linear_rows=sum(layer.out_features for layer in linear),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


def weight_bytes(counts: ParameterCounts, model_args: ModelConfig, dtype: torch.dtype) -> int:
    """
    Bytes of the base model; what is not quantized is in `dtype`.

    4 bit: half a byte, and float32 maxima of blocks of 64; nested, these take 8 bit and float32 maxima of 256 of them
    (Dettmers et al. 2023, arXiv 2305.14314, section 3). 8 bit: one byte, and a float32 maximum a row.
    """
    linear = counts.linear * dtype.itemsize
    if model_args.load_in_4bit:
        maxima = 1 / 64 + 4 / (64 * 256) if model_args.use_bnb_nested_quant else 4 / 64
        linear = round(counts.linear * (0.5 + maxima))
    elif model_args.load_in_8bit:
        linear = counts.linear + 4 * counts.linear_rows
    return linear + (counts.base - counts.linear) * dtype.itemsize


def layer_activation_bytes(config: PreTrainedConfig, rows: int, length: int, itemsize: int, eager: bool) -> int:
    """
    Bytes that autograd keeps of one decoder layer: rows x length x (30 hidden + 5 itemsize x intermediate).

    The form is that of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), s b h (34 + 5 a s / h) at 16 bit, but
    these are fused kernels, and transformers keeps nearly twice as much. The constants here are measured
    (`saved_tensors_hooks`, Phi and Llama, with LoRA and without), 0 to 25 % too large. Eager attention keeps scores.
    """
    settings = config.get_text_config()
    intermediate = _intermediate_size(config)
    scores = 7 * rows * settings.num_attention_heads * length**2 if eager else 0
    return rows * length * (30 * settings.hidden_size + 5 * itemsize * intermediate) + scores


def _intermediate_size(config: PreTrainedConfig) -> int:
    settings = config.get_text_config()
    size = settings.to_dict().get("intermediate_size") or 4 * settings.hidden_size  # GPT-2 and the like: null
    return max(size) if isinstance(size, list) else size  # Gemma 3n: one a layer


def kv_bytes_per_row(
    config: PreTrainedConfig, prompt_length: int, max_completion_length: int, dtype: torch.dtype
) -> int:
    """
    Bytes of a generated row's keys and values: 2 x layers x KV heads x size of a head x tokens x bytes.

    Without attention the state, whatever the length: layers x inner size (twice the hidden one) x state x bytes.
    """
    settings = config.get_text_config()
    given = settings.to_dict()  # not all architectures have all of these keys
    heads = given.get(settings.attribute_map.get("num_attention_heads", "num_attention_heads"))
    if heads is None:
        return 2 * settings.num_hidden_layers * settings.hidden_size * given.get("state_size", 1) * dtype.itemsize
    head_size = given.get("head_dim") or settings.hidden_size // heads
    tokens = prompt_length + max_completion_length
    heads = given.get("num_key_value_heads") or heads
    return 2 * settings.num_hidden_layers * heads * head_size * tokens * dtype.itemsize


def sampling_bytes_per_row(config: PreTrainedConfig, top_k: int) -> int:
    """
    Bytes a row while [`~pmc_rl.generation.InverseCDFSampler`] picks a token: logits, their float32 copy, probabilities
    and the result; without `top_k` also all of them sorted, with their int64 tokens, and cumulated twice.
    """
    return config.get_text_config().vocab_size * 4 * (4 if top_k else 9)


def auto_generation_batch_size(free_bytes: int, bytes_per_row: int) -> int:
    """
    Rows of a `generate` call: the largest power of two, 1 to 4096, that takes at most 80 % of what is free.

    Args:
        free_bytes (`int`): free memory, less what is still to come and then stays, such as the optimizer's state.
        bytes_per_row (`int`): [`kv_bytes_per_row`] + [`sampling_bytes_per_row`].
    """
    # a fifth is left for activations of the prompts, and for gaps: the cache grows token by token
    rows = min(4096, max(1, free_bytes * 4 // 5 // bytes_per_row))
    return 2 ** (rows.bit_length() - 1)


def estimate_memory(
    counts: ParameterCounts,
    config: PreTrainedConfig,
    model_args: ModelConfig,
    training_args: PMCConfig,
    *,
    dtype: torch.dtype,
    prompt_length: int,
    generation_batch_size: int,
    asks_original: bool,
    num_processes: int = 1,
) -> dict[str, int]:
    """
    Estimates the memory of one process, by part.

    Args:
        dtype (`torch.dtype`): of what is not quantized, from [`~pmc_rl.models.training_dtype`].
        prompt_length (`int`): longest prompt in tokens.
        asks_original (`bool`): whether a reward asks the model before unlearning.

    Returns:
        `dict[str, int]`: bytes; the parts of `IN_TURNS` are not there at the same time.
    """
    args, settings = training_args, config.get_text_config()
    parts = {"weights": weight_bytes(counts, model_args, dtype)}
    if args.use_cpu:
        parts["Python and its libraries"] = CPU_PROGRAM_BYTES

    # adapters are float32; gradients are as their weights
    trained = 4 if model_args.use_peft else dtype.itemsize
    # AdamW's two moments: a byte each in 8 bit, always float32 in the paged ones, else as their weights
    moments = 2 if "8bit" in args.optim else 8 if "paged" in args.optim else 2 * trained
    if model_args.use_peft:
        parts["adapter and optimizer"] = counts.trainable * (2 * trained + moments)
    else:
        parts["gradients and optimizer"] = counts.trainable * (trained + moments)

    if num_processes > 1:
        parts["gradients in DDP's buckets"] = counts.trainable * trained

    autocast = args.bf16 or args.fp16
    if autocast and dtype == torch.float32 and not is_quantized(model_args):
        parts["16-bit weights of autocast"] = 2 * counts.linear
    if not model_args.use_peft and (asks_original or args.log_kl):
        parts["model before unlearning"] = counts.base * (dtype.itemsize if args.use_cpu else 2)

    rows = args.per_device_train_batch_size * (args.num_selected + (args.retain_weight > 0))
    length = prompt_length + args.max_completion_length
    itemsize = 2 if autocast else dtype.itemsize
    layer = layer_activation_bytes(config, rows, length, itemsize, model_args.attn_implementation == "eager")
    tokens, entries = LOGITS_TILE
    # without Triton, the prompts are scored too
    tile = min(rows * (length if args.use_cpu else args.max_completion_length), tokens)
    tile *= min(settings.vocab_size, entries) * (itemsize + CPU_BYTES_PER_LOGIT * args.use_cpu)
    activations = settings.num_hidden_layers * layer
    if args.gradient_checkpointing:  # what goes into each layer, and the inside of the one that is made again
        activations = settings.num_hidden_layers * rows * length * settings.hidden_size * dtype.itemsize + layer
    parts["activations"] = activations + tile

    if asks_original:
        # of one layer what goes in, queries, keys and values, what comes out, the inside of its MLP; logits and their
        # float32 copies
        tokens = TOKENS_PER_BATCH["cpu" if args.use_cpu else "accelerator"]
        inside = 6 * settings.hidden_size + 3 * _intermediate_size(config)
        chunk = LOGITS_PER_CHUNK["cpu" if args.use_cpu else "accelerator"]
        parts["scores by the model before"] = tokens * inside * itemsize + 12 * chunk

    # of `dtype` also under autocast, where rotary embeddings make the keys float32 again
    per_row = kv_bytes_per_row(config, prompt_length, args.max_completion_length, dtype)
    parts["KV cache"] = generation_batch_size * (per_row + sampling_bytes_per_row(config, args.top_k))
    return parts


def held_bytes(parts: dict[str, int]) -> int:
    """Bytes of [`estimate_memory`] that stay from step to step."""
    return sum(size for name, size in parts.items() if name not in IN_TURNS)


def accelerator_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes; None where nobody tells (a CPU, MPS)."""
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).mem_get_info(device)
