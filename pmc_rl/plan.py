"""What a run would do and need: steps, samples and memory, told before weights load."""

from dataclasses import dataclass
from functools import partial
from math import ceil

from transformers import PreTrainedConfig
from trl import ModelConfig

from pmc_rl.config import PMCArguments, PMCConfig
from pmc_rl.memory import IN_TURNS, ParameterCounts, auto_generation_batch_size, estimate_memory, held_bytes
from pmc_rl.models import training_dtype
from pmc_rl.reading import listed

CPU_GENERATION_BATCH_SIZE = 64  # `auto` without an accelerator


def count_steps(args: PMCConfig, num_questions: int, num_processes: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run, as transformers' Trainer counts: a short last window is a step."""
    batches = ceil(num_questions / (args.per_device_train_batch_size * num_processes))
    per_epoch = ceil(batches / args.gradient_accumulation_steps)
    return per_epoch, args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * per_epoch)


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
        f"questions: {num_questions:,} from {', '.join(listed(script_args.forget_config or script_args.forget_file))}"
        + (f", and at most {more:,} more with the first words of their answers" if more else ""),
        *_step_lines(args, plan.generation_batch_size, num_questions + more, num_retain_rows, num_processes),
        f"parameters: {plan.counts.base:,}; trained: {plan.counts.trainable:,}",
        *_memory_lines(plan.parts, plan.device_memory),
        "answers: training reads none to forget; eval/run.py with --dry_run true names rows the audit cannot use",
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
