"""Audit: `accelerate launch eval/run.py RECIPE [--key value ...]`. Alone in reading answers that are to be forgotten.

Compares the model before and after, a retain-only one and any others: `results.json`, a report, files in `private/`.
"""

import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from pmc_rl.errors import RecipeError, all_problems, exit_on_recipe_error  # first: no telemetry
from pmc_rl.recipe import parse_recipe

# isort: split
from accelerate import PartialState

from eval.attacks.run import Attacks
from eval.attacks.sampling import sampling_settings
from eval.cache import RowCache
from eval.columns import (
    collect,
    kind_numbers,
    membership_numbers,
    memorization_numbers,
    perplexity_limit,
    reference_of,
    tofu_numbers,
    unlearning_numbers,
)
from eval.data import load_data
from eval.general_ability import check_tasks, general_ability
from eval.metrics.intervals import not_available
from eval.metrics.semantic import Similarity, load_sentence_encoder
from eval.models import Recipe, check_data, check_prompts, check_retain_only, check_run, load_columns
from eval.report.report import write_report
from eval.results import forget_rows, recall_by_row, without_rows, worst_texts
from eval.tables import data_lines, examples_markdown, print_examples, print_outcome
from eval.tofu_logs import read_retain_logs, tofu_summary
from eval.verdict import known_rows, verdict
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

AUTO_BATCH_SIZE = 64  # rows a generate call with generation_batch_size: auto
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def describe(recipe: Recipe) -> dict:
    """What the models were asked with, as audit.json has it."""
    script_args, training_args, model_args, eval_args = recipe
    attacks = {
        "attack_samples": eval_args.attack_samples,
        "sampling": {name: settings._asdict() for name, settings in sampling_settings(training_args).items()},
        "prefixes": eval_args.prefixes,
        "first_words": eval_args.first_words,
        "wordings": eval_args.wordings,
        "unrelated_text": eval_args.unrelated_file or "questions and answers of real_authors and world_facts",
        "relearning_steps": eval_args.relearning_steps,
        "relearning_learning_rate": eval_args.relearning_learning_rate or training_args.learning_rate,
    }
    return {
        "settings": published_recipe(script_args.given),
        "seed": training_args.seed,
        "dtype": str(training_dtype(model_args, training_args)),
        "attack_settings": published_recipe(attacks),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "device": str(training_args.device),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: list[str]) -> None:
    """Recipe -> data and models -> answers and attacks, model by model -> numbers -> results, report, table."""
    recipe = script_args, training_args, model_args, eval_args = parse_recipe(argv)
    if training_args.generation_batch_size == "auto":  # halved where memory is too small for it
        training_args.generation_batch_size = AUTO_BATCH_SIZE
    output_dir = Path(training_args.output_dir)
    if training_args.dry_run:
        PartialState().print("\n".join(data_lines(load_data(script_args, eval_args))))
        return
    check_run(recipe)
    encoder, reference = None, None
    with all_problems() as check:
        data = check(load_data, script_args, eval_args)
        columns = check(load_columns, recipe)
        if eval_args.lm_eval_tasks:
            check(check_tasks, eval_args.lm_eval_tasks)
        if eval_args.retain_logs_path:
            reference = check(read_retain_logs, eval_args.retain_logs_path)
        if eval_args.sentence_encoder:
            encoder = check(load_sentence_encoder, eval_args.sentence_encoder, str(training_args.device))
    data.left_out += check_data(recipe, data.read["questions"])
    data.left_out += check_retain_only(recipe, columns, data.forget_questions)
    if reference and "forget" in data.options and len(reference.ratios) != (n := len(data.options["forget"].answers)):
        what = f"{len(reference.ratios)} forget rows, the data {n} with all answers"
        raise RecipeError([f"retain_logs_path: {eval_args.retain_logs_path!r} is of {what}; it must be of the same"])
    log = read_training_log(output_dir)
    with all_problems() as check:
        for column in columns:
            check(check_prompts, recipe, column, data.questions)

    private = private_folder(output_dir)
    (private / "cache").mkdir(mode=0o700, exist_ok=True)
    cache = RowCache(private / "cache" / "rows.sqlite") if PartialState().is_main_process else None
    similarity = None if encoder is None else Similarity(encoder, data.options)
    passes = {column.name: column.passes(recipe, cache, similarity) for column in columns}
    attacks = Attacks(data, passes["before"], training_args, model_args, eval_args, private)
    outputs, attacked, seconds = {}, {}, {}
    for column in columns:
        name, started = column.name, time.perf_counter()
        outputs[name] = collect(passes[name], data)
        attacked[name] = attacks.run(passes[name], column.model_args, outputs[name])
        passes[name].release()
        seconds[name] = time.perf_counter() - started

    retain_only = outputs.get("retain_only")
    if retain_only:
        reference = reference_of(data, retain_only)
    judge, limit = None, None
    if "holdout" in data.options:  # gibberish is told by the perplexity under a model that no reward saw
        judge_name = "retain_only" if retain_only else "before"
        judge, limit = passes[judge_name], perplexity_limit(outputs[judge_name])
    results = {
        name: {
            **unlearning_numbers(data, output, None if name == "before" else outputs["before"], similarity),
            "tofu": tofu_numbers(data, output, reference),
            "memorization": memorization_numbers(data, output),
            "membership": membership_numbers(data, output, reference),
            "answer_kinds": kind_numbers(data, output, judge, limit, script_args.reward_kwargs),
            "attacks": attacked[name],
        }
        for name, output in outputs.items()
    }
    if judge is not None:
        judge.release()
    if not PartialState().is_main_process:  # the others have no more to do, so none waits for lm-eval
        return
    for name, column in results.items():
        started = time.perf_counter()
        column["general_ability"] = not_available("lm_eval_tasks names no task")
        if eval_args.lm_eval_tasks:
            asked = passes[name]
            column["general_ability"] = general_ability(asked.loaded(), asked.tokenizer, eval_args.lm_eval_tasks)
            asked.release()
        column["known"] = {"questions": len(known_rows(column)), "of": len(recall_by_row(column))}
        seconds[name] += time.perf_counter() - started
    audited = [name for name in results if name not in ("before", "retain_only")]
    audit = {
        "models": {column.name: published(column.folder) for column in columns},
        "fingerprints": {name: model.fingerprint for name, model in passes.items()},
        "verdicts": {name: verdict(results[name], results["before"], results.get("retain_only")) for name in audited},
        "judge": None if judge is None else {"model": judge.name, "perplexity_limit": limit},
        "left_out": published(data.left_out),
        "read": {part: published_read(records) for part, records in data.read.items()},
        "stages": {column.name: read_manifest(Path(column.folder)) for column in columns},
        **describe(recipe),
        "seconds": seconds,
        "passes": {name: cache.times(model.fingerprint) for name, model in passes.items()},
    }
    forget = {name: output.texts("forget") if "forget" in output.answers else [] for name, output in outputs.items()}
    rows = forget_rows(data, forget, results)
    texts = None
    if eval_args.with_texts:
        after = attacked["after"]["sampling"], sampling_settings(training_args), eval_args.attack_samples
        texts = worst_texts(passes["after"], data, forget["after"], *after)
    results = published(without_rows(results))
    write_report(output_dir, results, audit, log, rows, texts)
    answers = {name: output.answers for name, output in outputs.items()}
    write_private(output_dir, "rows.json", json.dumps(rows, indent=2) + "\n")
    write_private(output_dir, "examples.md", examples_markdown(data.questions, answers))
    write_text(output_dir / "audit.json", json.dumps(audit, indent=2) + "\n")
    write_text(output_dir / "TOFU_SUMMARY.json", json.dumps(tofu_summary(results["after"]), indent=4) + "\n")
    # last: an audit that has it is complete
    write_text(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    if training_args.log_completions and "forget" in data.questions:
        print_examples(data.questions, answers, training_args.num_completions_to_print)
    print_outcome(results, audit, output_dir)


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
