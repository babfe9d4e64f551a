"""What a run would do and need: steps, samples and memory, told before weights load."""

from math import ceil
from typing import NamedTuple

from transformers import PreTrainedConfig
from trl import ModelConfig

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.memory import IN_TURNS, ParameterCounts, estimate_memory, held_bytes
from pmc_rl.reading import listed

CPU_GENERATION_BATCH_SIZE = 64  # `auto` without an accelerator


class Plan(NamedTuple):
    counts: ParameterCounts
    parts: dict[str, int]  # bytes
    generation_batch_size: int  # rows a `generate` call
    device_memory: tuple[int, int] | None  # free and total bytes of the accelerator


def count_steps(args: PMCConfig, num_questions: int, num_processes: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run, as transformers' Trainer counts: a short last window is a step."""
    batches = ceil(num_questions / (args.per_device_train_batch_size * num_processes))
    per_epoch = ceil(batches / args.gradient_accumulation_steps)
    return per_epoch, args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * per_epoch)


def auto_generation_batch_size(free_bytes: int, bytes_per_row: int) -> int:
    """Rows of a `generate` call: the largest power of two, 1 to 4096, that takes at most 80 % of what is free."""
    # a fifth is left for activations of the prompts, and for gaps: the cache grows token by token
    rows = min(4096, max(1, free_bytes * 4 // 5 // bytes_per_row))
    return 2 ** (rows.bit_length() - 1)


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
    """Estimates memory before weights load, and fits the rows of a `generate` call into what will be left."""
    parts = estimate_memory(counts, config, model_args, training_args, prompt_length, asks_original, num_processes)
    rows = training_args.generation_batch_size
    if rows == "auto":
        rows = CPU_GENERATION_BATCH_SIZE
        if device_memory is not None:
            rows = auto_generation_batch_size(device_memory[0] - held_bytes(parts), parts["KV cache"])
    parts["KV cache"] *= rows
    return Plan(counts, parts, rows, device_memory)


def plan_lines(
    plan: Plan,
    script_args: PMCArguments,
    args: PMCConfig,
    *,
    num_questions: int,
    num_retain_rows: int,
    num_processes: int,
) -> list[str]:
    """The plan of a run, to be printed."""
    questions = f"{num_questions:,} from {', '.join(listed(script_args.forget_config or script_args.forget_file))}"
    if args.prefill_share:
        questions += f"; {args.prefill_share:.0%} of the visits begin within an answer"

    per_process = args.per_device_train_batch_size * args.gradient_accumulation_steps
    window = per_process * num_processes
    batch = f"{args.per_device_train_batch_size} a device x {args.gradient_accumulation_steps} accumulated"
    batch += f" x {num_processes} process{'es' if num_processes > 1 else ''} = {window} questions"
    if args.num_selected > 1:
        batch += f" of up to {args.num_selected} answers"
    if args.retain_weight > 0:
        batch += f" + {window * args.num_retained} rows to retain, of {num_retain_rows:,}"

    per_epoch, total_steps = count_steps(args, num_questions, num_processes)
    steps = f"{per_epoch:,} steps an epoch x {args.num_train_epochs:g} epochs = {total_steps:,} steps"
    if args.max_steps > 0:
        steps = f"max_steps = {total_steps:,} steps, that is {total_steps / per_epoch:.4g} epochs of {per_epoch:,}"

    epochs, rest = divmod(total_steps, per_epoch)  # all windows of an epoch are full but the last
    samples = args.num_generations * (epochs * num_questions + rest * window)
    solvable = args.selection == "best" and not args.normalize_rewards
    rows = plan.generation_batch_size
    calls = ceil(per_process * args.num_generations / rows) + (ceil(per_process / rows) if args.log_kl else 0)
    return [
        f"questions: {questions}",
        f"effective batch: {batch}",
        f"steps: {steps}",
        f"samples: {args.num_generations} a question and visit = at most {samples:,}"
        + ("; fewer as questions are solved" if solvable else ""),
        f"generate calls: at most {calls:,} a step, of up to {rows:,} rows",
        f"parameters: {plan.counts.base:,}; trained: {plan.counts.trainable:,}",
        *_memory_lines(plan),
        "answers: training reads none to forget; eval/run.py with --dry_run true names rows the audit cannot use",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    total = held_bytes(plan.parts) + max(plan.parts[name] for name in IN_TURNS)
    sizes = plan.parts | {f"total, with the larger of {' and '.join(IN_TURNS)}": total}
    lines = ["memory, estimated:", *(f"  {name}: {_readable(size)}" for name, size in sizes.items())]
    if plan.device_memory is not None:
        free, all_of_it = plan.device_memory
        fits = "" if total <= free else " - too little"
        lines.append(f"accelerator: {free / 2**30:.2f} GiB free of {all_of_it / 2**30:.2f}{fits}")
    return lines


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
