"""Audit: `accelerate launch eval/run.py RECIPE [--key value ...]`. Alone in reading answers that are to be forgotten.

Compares the model before and after, a retain-only one and any others: `results.json`, a report, files in `private/`.
"""

import json
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pmc_rl.errors import check_all, exit_on_recipe_error  # first: no telemetry
from pmc_rl.recipe import parse_recipe

# isort: split
from accelerate import PartialState

from eval.attacks.run import Attacks
from eval.attacks.sampling import sampling_settings, worst_by_row
from eval.cache import RowCache
from eval.data import AuditData, load_data
from eval.general_ability import check_tasks, general_ability
from eval.metrics.intervals import not_available
from eval.models import Column, Recipe, check_data, check_prompts, check_retain_only, check_run, load_columns
from eval.passes import ModelPasses
from eval.report.report import write_report
from eval.results import (
    Said,
    collect,
    kind_numbers,
    make_judge,
    membership_numbers,
    memorization_numbers,
    refusal_phrases,
    tofu_numbers,
    unlearning_numbers,
)
from eval.tables import data_lines, examples_markdown, print_examples, print_outcome
from eval.verdict import known_counts, verdict
from pmc_rl.models import training_dtype
from pmc_rl.output import (
    private_folder,
    published,
    published_read,
    published_recipe,
    read_manifest,
    read_training_log,
    write_private,
    write_text,
)
from rewards.text import words

AUTO_BATCH_SIZE = 64  # rows a generate call with generation_batch_size: auto
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def forget_rows(data: AuditData, said: dict[str, Said], results: dict[str, dict]) -> list[dict]:
    """Each question to forget without its text: its row, words of the truth, and by column what came of it."""
    if "forget" not in data.questions:
        return []
    forget = data.questions["forget"]
    worst = {name: worst_by_row(column["attacks"]) for name, column in results.items()}
    return [
        {
            "row": row,
            "truth_words": len(words(forget.answers[i])),
            "columns": {
                name: {
                    "recall": column["sets"]["forget"]["recall_by_row"][row],
                    "words": len(words(said[name].answers["forget"][i].text)),
                    "kind": column["answer_kinds"]["forget"]["kind_by_row"][row],
                    "worst": None if worst[name] is None else worst[name][row],
                }
                for name, column in results.items()
            },
        }
        for i, row in enumerate(forget.rows)
    ]


def without_rows(value):
    """Results without the numbers of single rows: with the published model they would tell a guessed answer right."""
    if isinstance(value, list):
        return [without_rows(part) for part in value]
    if isinstance(value, dict):
        return {key: without_rows(part) for key, part in value.items() if not key.endswith("_by_row")}
    return value


def worst_texts(passes: ModelPasses, data: AuditData, said: Said, attacks: dict, recipe: Recipe) -> list[dict] | None:
    """The questions that leak most under sampling, with the sample that leaks; from the cache, the worst first."""
    if "forget" not in data.questions or "not_available" in attacks["sampling"]:
        return None
    forget = data.questions["forget"]
    settings = sampling_settings(recipe[1])
    name = max(settings, key=lambda name: attacks["sampling"][name]["worst_case"]["mean"])
    run = attacks["sampling"][name]
    samples = passes.sample(forget.questions, recipe[3].attack_samples, settings[name], what=f"sampling, {name}")
    rows = [
        {
            "row": row,
            "question": forget.questions[i],
            "truth": forget.answers[i],
            "greedy": said.answers["forget"][i].text,
            "attack": f"sampling, {name}",
            "worst": samples[i][run["worst_sample_by_row"][row]],
            "recall": run["worst_by_row"][row],
        }
        for i, row in enumerate(forget.rows)
    ]
    return sorted(rows, key=lambda row: -row["recall"])


def attack_settings(recipe: Recipe) -> dict:
    """What the attacks were run with, defaults included."""
    _, training_args, _, eval_args = recipe
    return {
        "attack_samples": eval_args.attack_samples,
        "sampling": {name: asdict(settings) for name, settings in sampling_settings(training_args).items()},
        "prefixes": eval_args.prefixes,
        "first_words": eval_args.first_words,
        "unrelated_text": eval_args.unrelated_file or "questions and answers of real_authors and world_facts",
        "relearning_steps": eval_args.relearning_steps,
        "relearning_learning_rate": eval_args.relearning_learning_rate or training_args.learning_rate,
    }


def ask(recipe: Recipe, columns: list[Column], passes: dict[str, ModelPasses], data: AuditData, private: Path):
    """Passes and attacks, model after model: what each said, its attacks, and its seconds."""
    _, training_args, model_args, eval_args = recipe
    attacks = Attacks(data, passes["before"], training_args, model_args, eval_args, private)
    said, attacked, seconds = {}, {}, {}
    for column in columns:
        name, own, started = column.name, passes[column.name], time.perf_counter()
        said[name] = collect(own, data)
        attacked[name] = attacks.run(own, column.model_args, said[name])
        own.release()
        seconds[name] = time.perf_counter() - started
    return said, attacked, seconds


def ability(passes: ModelPasses, tasks: list[str]) -> dict:
    """The lm-eval tasks of one model, which answers the main process alone."""
    if not tasks:
        return not_available("lm_eval_tasks names no task")
    scores = general_ability(passes.loaded(), passes.tokenizer, tasks)
    passes.release()
    return scores


def main(argv: list[str]) -> None:
    """Recipe -> data and models -> passes and attacks, model by model -> numbers -> results, report, table."""
    recipe = script_args, training_args, model_args, eval_args = parse_recipe(argv)
    if training_args.generation_batch_size == "auto":  # halved where memory is too small for it
        training_args.generation_batch_size = AUTO_BATCH_SIZE
    output_dir = Path(training_args.output_dir)
    if training_args.dry_run:
        PartialState().print("\n".join(data_lines(load_data(script_args, eval_args))))
        return
    check_run(recipe)
    data, columns, _ = check_all(
        lambda: load_data(script_args, eval_args),
        lambda: load_columns(recipe),
        lambda: check_tasks(eval_args.lm_eval_tasks) if eval_args.lm_eval_tasks else None,
    )
    data.left_out += check_data(recipe, data.read["questions"])
    data.left_out += check_retain_only(recipe, columns, data.forget_questions)
    log = read_training_log(output_dir)
    check_all(*(lambda column=column: check_prompts(recipe, column, data.questions) for column in columns))

    private = private_folder(output_dir)
    (private / "cache").mkdir(mode=0o700, exist_ok=True)
    cache = RowCache(private / "cache" / "rows.sqlite") if PartialState().is_main_process else None
    passes = {column.name: column.passes(recipe, cache) for column in columns}
    said, attacked, seconds = ask(recipe, columns, passes, data, private)
    retain_only = said.get("retain_only")
    refusals = refusal_phrases(script_args.reward_kwargs)
    judge_name = "retain_only" if retain_only else "before"
    judge = make_judge(judge_name, passes[judge_name], said[judge_name]) if "holdout" in data.options else None
    results = {
        name: {
            **unlearning_numbers(data, said[name], None if name == "before" else said["before"]),
            "tofu": tofu_numbers(data, said[name], retain_only),
            "memorization": memorization_numbers(data, said[name]),
            "membership": membership_numbers(data, said[name], retain_only),
            "answer_kinds": kind_numbers(data, said[name], judge, refusals),
            "attacks": attacked[name],
        }
        for name in said
    }
    if judge is not None:
        judge.passes.release()
    if not PartialState().is_main_process:  # the others have no more to do, so none waits for lm-eval
        return
    for column in columns:
        started = time.perf_counter()
        results[column.name]["general_ability"] = ability(passes[column.name], eval_args.lm_eval_tasks)
        results[column.name]["known"] = known_counts(results[column.name])
        seconds[column.name] += time.perf_counter() - started
    audited = [name for name in results if name not in ("before", "retain_only")]
    audit = {
        "models": {column.name: published(column.folder) for column in columns},
        "fingerprints": {name: model.fingerprint for name, model in passes.items()},
        "verdicts": {name: verdict(results[name], results["before"], results.get("retain_only")) for name in audited},
        "judge": None if judge is None else {"model": judge.name, "perplexity_limit": judge.limit},
        "left_out": published(data.left_out),
        "read": {part: published_read(records) for part, records in data.read.items()},
        "stages": {column.name: read_manifest(Path(column.folder)) for column in columns},
        "settings": published_recipe(script_args.given),
        "seed": training_args.seed,
        "dtype": str(training_dtype(model_args, training_args)),
        "attack_settings": published_recipe(attack_settings(recipe)),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "device": str(training_args.device),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "passes": {name: cache.times(model.fingerprint) for name, model in passes.items()},
    }
    texts = None
    if eval_args.with_texts:
        texts = worst_texts(passes["after"], data, said["after"], attacked["after"], recipe)
    rows = forget_rows(data, said, results)
    results = published(without_rows(results))
    write_report(output_dir, results, audit, log, rows, texts)
    answers = {name: column.answers for name, column in said.items()}
    write_private(output_dir, "rows.json", json.dumps(rows, indent=2) + "\n")
    write_private(output_dir, "examples.md", examples_markdown(data.questions, answers))
    write_text(output_dir / "audit.json", json.dumps(audit, indent=2) + "\n")
    # last: an audit that has it is complete
    write_text(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    if training_args.log_completions and "forget" in data.questions:
        print_examples(data.questions, answers, training_args.num_completions_to_print)
    print_outcome(results, audit, output_dir)


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
