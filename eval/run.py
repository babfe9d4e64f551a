"""Audit: `accelerate launch eval/run.py RECIPE [--key value ...]`. Alone in reading answers that are to be forgotten.

Compares the model before and after, a retain-only one and any others: `results.json`, a report, files in `private/`.
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from pmc_rl.config import check_all, exit_on_recipe_error, parse_recipe  # first: no telemetry

# isort: split
from accelerate import PartialState
from rich.console import Console

from eval.attacks.sampling import worst_by_row
from eval.attacks.suite import Attacks
from eval.audit import (
    AuditData,
    Said,
    collect,
    kind_numbers,
    make_judge,
    membership_numbers,
    memorization_numbers,
    tofu_numbers,
    unlearning_numbers,
)
from eval.cache import RowCache
from eval.columns import Recipe, check_retain_only, check_run, load_columns
from eval.data import load_option_sets, load_question_sets, load_unrelated_text
from eval.general_ability import check_tasks, general_ability
from eval.metrics.intervals import not_available
from eval.tables import examples_markdown, print_examples, results_table
from eval.verdict import verdict
from pmc_rl.data import check_prompt_format
from pmc_rl.models import private_folder, read_manifest, write_private

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def load_data(recipe: Recipe) -> tuple[AuditData, list[str], dict]:
    """What the recipe's data holds, a line for everything it does not hold, and the record of what was read."""
    script_args, _, _, eval_args = recipe
    (questions, left_out, read), (options, missing, read_options) = check_all(
        lambda: load_question_sets(script_args, eval_args),
        lambda: load_option_sets(script_args, eval_args),
    )
    text = load_unrelated_text(script_args, eval_args, questions)
    left_out = left_out + [f"answers to compare, {name}: {why}" for name, why in missing.items()]
    record = {"questions": read, "options": read_options}
    return AuditData(questions, options, missing, text), left_out, record


def forget_rows(data: AuditData, said: dict[str, Said], results: dict[str, dict]) -> list[dict]:
    """Each question to forget without its text: its row, words of the truth, and by column what came of it."""
    if "forget" not in data.questions:
        return []
    forget = data.questions["forget"]
    recalls = {name: column.recalls(data.questions, "forget") for name, column in said.items()}
    worst = {name: worst_by_row(column["attacks"]) for name, column in results.items()}
    return [
        {
            "row": row,
            "truth_words": len(forget.answers[i].split()),
            "columns": {
                name: {
                    "recall": recalls[name][i],
                    "words": len(column.answers["forget"][i].text.split()),
                    "kind": results[name]["answer_kinds"]["forget"]["by_row"][i],
                    "worst": None if worst[name] is None else worst[name][i],
                }
                for name, column in said.items()
            },
        }
        for i, row in enumerate(forget.rows)
    ]


def write_json(path: Path, value: dict) -> None:
    """Writes to a temporary name first."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def main(argv: list[str]) -> None:
    """Recipe -> data and models -> passes and attacks, model by model -> numbers -> results, report, table."""
    recipe = script_args, training_args, model_args, eval_args = parse_recipe(argv)
    output_dir = Path(training_args.output_dir)
    check_run(recipe)
    (data, left_out, read), columns, _ = check_all(
        lambda: load_data(recipe),
        lambda: load_columns(recipe),
        lambda: check_tasks(eval_args.lm_eval_tasks) if eval_args.lm_eval_tasks else None,
    )
    forget_questions = data.questions["forget"].questions if "forget" in data.questions else []
    unchecked = check_retain_only(recipe, forget_questions)
    for column in columns:
        check_prompt_format(script_args, column.tokenizer)

    main_process = PartialState().is_main_process
    private = private_folder(output_dir) if main_process else None
    cache = RowCache(private / "cache" / "rows.sqlite") if main_process else None
    passes = {column.name: column.passes(recipe, cache) for column in columns}
    before = passes["before"]
    attacks = Attacks(data, before, training_args, model_args, eval_args, private)
    said, attacked, general, seconds = {}, {}, {}, {}
    for column in columns:
        name, started = column.name, time.perf_counter()
        said[name] = collect(passes[name], data)
        attacked[name] = attacks.run(passes[name], column.model_args, said[name])
        if eval_args.lm_eval_tasks:
            general[name] = general_ability(
                passes[name].loaded(), column.tokenizer, eval_args.lm_eval_tasks, training_args.generation_batch_size
            )
        passes[name].release()
        seconds[name] = time.perf_counter() - started

    judge_name = "retain_only" if "retain_only" in said else "before"
    judge = make_judge(judge_name, passes[judge_name], said[judge_name]) if "holdout" in data.options else None
    results = {
        name: {
            **unlearning_numbers(data, said[name], None if name == "before" else said["before"]),
            "tofu": tofu_numbers(data, said[name], said.get("retain_only")),
            "memorization": memorization_numbers(data, said[name]),
            "membership": membership_numbers(data, said[name], said.get("retain_only")),
            "answer_kinds": kind_numbers(data, said[name], judge),
            "attacks": attacked[name],
            "general_ability": general.get(name, not_available("lm_eval_tasks names no task")),
        }
        for name in said
    }
    if not main_process:
        return
    audit = {
        "models": {column.name: column.folder for column in columns},
        "fingerprints": {name: model.fingerprint for name, model in passes.items()},
        "verdicts": {
            name: verdict(results[name], results.get("retain_only"))
            for name in results
            if name not in ("before", "retain_only")
        },
        "judge": None if judge is None else {"model": judge.name, "perplexity_limit": judge.limit},
        "left_out": left_out + ([unchecked] if unchecked else []),
        "rows": forget_rows(data, said, results),
        "read": read,
        "stages": {column.name: read_manifest(Path(column.folder)) for column in columns},
        "settings": script_args.given,
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "device": str(training_args.device),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "passes": {name: cache.times(model.fingerprint) for name, model in passes.items()},
    }
    write_json(output_dir / "audit.json", audit)
    write_json(output_dir / "results.json", results)
    answers = {name: column.answers for name, column in said.items()}
    write_private(output_dir, "examples.md", examples_markdown(data.questions, answers))

    if training_args.log_completions and "forget" in data.questions:
        print_examples(data.questions, answers, training_args.num_completions_to_print)
    for line in audit["left_out"]:
        print(f"Left out: {line}.")
    for name, column in results.items():
        for set_name, scores in column["sets"].items():
            if scores["ended"] < 0.5:
                print(
                    f"Warning: {1 - scores['ended']:.0%} of the answers {name} to {set_name} hit "
                    "max_completion_length; a run-on answer has recall for free."
                )
    print(f"Wrote {output_dir / 'results.json'}.")
    print(f"Private files left: {private} (hold what is to be forgotten; delete the folder when it has been read).")
    for name, value in audit["verdicts"].items():
        print(f"Verdict on {name}: {value['forgetting']}; calibration: {value['calibration']}.")
    Console().print(results_table(results))


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
