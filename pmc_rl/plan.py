"""What a run would do and need: steps, samples and memory, told from settings and shapes; loads no weights."""

from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl import ModelConfig, get_peft_config

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.likelihood import LOGITS_PER_CHUNK, TOKENS_PER_BATCH
from pmc_rl.models import is_quantized, training_dtype
from pmc_rl.values import RecipeError, one_line

# Tokens and vocabulary entries of the tiles in which TRL's fused head makes logits (trl.kernels.chunked_logprob).
LOGITS_TILE = (4096, 32768)
CPU_GENERATION_BATCH_SIZE = 64  # `auto` without an accelerator
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
            try:
                model = get_peft_model(model, get_peft_config(model_args))
            except (ValueError, TypeError) as error:
                raise RecipeError([f"lora_target_modules: {one_line(error)}"]) from error
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
    return settings.to_dict().get("intermediate_size") or 4 * settings.hidden_size  # GPT-2 and the like: null


def kv_bytes_per_row(
    config: PreTrainedConfig, prompt_length: int, max_completion_length: int, dtype: torch.dtype
) -> int:
    """Bytes of a generated row's keys and values: 2 x layers x KV heads x size of a head x tokens x bytes."""
    settings = config.get_text_config()
    given = settings.to_dict()  # older architectures have neither of these keys
    heads = given.get("num_key_value_heads") or settings.num_attention_heads
    head_size = given.get("head_dim") or settings.hidden_size // settings.num_attention_heads
    tokens = prompt_length + max_completion_length
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
    activations = settings.num_hidden_layers * layer
    if args.gradient_checkpointing:  # what goes into each layer, and the inside of the one that is made again
        activations = settings.num_hidden_layers * rows * length * settings.hidden_size * dtype.itemsize + layer
    tokens, entries = LOGITS_TILE
    tile = min(rows * args.max_completion_length, tokens) * min(settings.vocab_size, entries) * itemsize
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


def count_steps(args: PMCConfig, num_questions: int, num_processes: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run, as transformers' Trainer counts: a short last window is a step."""
    batches = ceil(num_questions / (args.per_device_train_batch_size * num_processes))
    per_epoch = ceil(batches / args.gradient_accumulation_steps)
    return per_epoch, args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * per_epoch)


def accelerator_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes; None where nobody tells (a CPU, MPS)."""
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).mem_get_info(device)


@dataclass
class Plan:
    """
    What a run needs.

    Args:
        counts ([`ParameterCounts`]): of its model.
        parts (`dict[str, int]`): of [`estimate_memory`].
        generation_batch_size (`int`): rows a `generate` call, where the recipe says `auto` told from free memory.
        device_memory (`tuple[int, int]`, *optional*): free and total bytes of the accelerator.
    """

    counts: ParameterCounts
    parts: dict[str, int]
    generation_batch_size: int
    device_memory: tuple[int, int] | None


def make_plan(
    counts: ParameterCounts,
    config: PreTrainedConfig,
    model_args: ModelConfig,
    training_args: PMCConfig,
    *,
    prompt_length: int,
    asks_original: bool,
    num_processes: int,
    device_memory: tuple[int, int] | None,
) -> Plan:
    """
    Estimates memory, and fits the rows of a `generate` call into what is free. To be called before weights load.

    Args:
        prompt_length (`int`): longest prompt in tokens.
        asks_original (`bool`): whether a reward asks the model before unlearning.
        device_memory (`tuple[int, int]`, *optional*): free and total bytes of the accelerator.
    """
    estimate = partial(
        estimate_memory,
        counts,
        config,
        model_args,
        training_args,
        dtype=training_dtype(model_args, training_args),
        prompt_length=prompt_length,
        asks_original=asks_original,
        num_processes=num_processes,
    )
    rows = training_args.generation_batch_size
    if rows == "auto":
        rows = CPU_GENERATION_BATCH_SIZE
        if device_memory is not None:
            one = estimate(generation_batch_size=1)
            rows = auto_generation_batch_size(device_memory[0] - held_bytes(one), one["KV cache"])
    return Plan(counts, estimate(generation_batch_size=rows), rows, device_memory)


def plan_lines(
    plan: Plan,
    script_args: PMCArguments,
    args: PMCConfig,
    *,
    num_questions: int,
    num_retain_rows: int,
    num_processes: int,
) -> list[str]:
    """
    The plan of a run, to be printed.

    Args:
        num_questions (`int`): questions to forget, without those that `prefill_words` adds.
    """
    # how many words an answer has is only known when the model has made it: shorter ones give fewer questions
    more = num_questions * args.prefill_words
    return [
        f"questions: {num_questions:,} from {script_args.forget_config or script_args.forget_file}"
        + (f", and at most {more:,} more with the first words of their answers" if more else ""),
        *_step_lines(args, plan.generation_batch_size, num_questions + more, num_retain_rows, num_processes),
        f"parameters: {plan.counts.base:,}; trained: {plan.counts.trainable:,}",
        *_memory_lines(plan.parts, plan.device_memory),
    ]


def _step_lines(args: PMCConfig, rows: int, questions: int, retain_rows: int, processes: int) -> list[str]:
    own = args.per_device_train_batch_size * args.gradient_accumulation_steps  # questions a step of one process
    window, k = own * processes, args.num_generations
    per_epoch, steps = count_steps(args, questions, processes)
    total = f"{per_epoch:,} steps an epoch x {args.num_train_epochs:g} epochs = {steps:,} steps"
    if args.max_steps > 0:
        total = f"max_steps = {steps:,} steps, that is {steps / per_epoch:.4g} epochs of {per_epoch:,}"
    epochs, rest = divmod(steps, per_epoch)
    samples = (epochs * questions + rest * window) * k  # all windows of an epoch are full but the last
    solvable = args.selection == "best" and not args.normalize_rewards
    calls = ceil(own * k / rows) + (ceil(own / rows) if args.log_kl else 0)
    return [
        f"effective batch: {args.per_device_train_batch_size} a device x {args.gradient_accumulation_steps} "
        f"accumulated x {processes} process{'es' if processes > 1 else ''} = {window} questions"
        + (f" of up to {args.num_selected} answers" if args.num_selected > 1 else "")
        + (f" + {window} rows to retain, of {retain_rows:,}" if args.retain_weight > 0 else ""),
        f"steps: {total}",
        f"samples: {k} a question and visit = at most {samples:,}{'; fewer as questions are solved' * solvable}",
        f"generate calls: at most {calls:,} a step, of up to {rows:,} rows",
    ]


def _memory_lines(parts: dict[str, int], device_memory: tuple[int, int] | None) -> list[str]:
    total = held_bytes(parts) + max(size for name, size in parts.items() if name in IN_TURNS)
    sizes = {**parts, f"total, with the largest of {', '.join(name for name in IN_TURNS if name in parts)}": total}
    lines = ["memory, estimated:", *(f"  {name}: {_readable(size)}" for name, size in sizes.items())]
    if device_memory is not None:
        free, all_of_it = (size / 2**30 for size in device_memory)
        lines.append(f"accelerator: {free:.2f} GiB free of {all_of_it:.2f}" + " - too little" * (total > free * 2**30))
    return lines


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
