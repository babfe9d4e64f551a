"""Audit: `accelerate launch eval/run.py RECIPE [--key value ...]`. Alone in reading answers that are to be forgotten.

Answers every question greedily with the model before and after (and a retain-only one) and writes `results.json`.
"""

import json
import os
import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

from pmc_rl.config import (  # first: it switches telemetry off
    DataArguments,
    EvalArguments,
    PMCArguments,
    PMCConfig,
    RecipeError,
    check_all,
    exit_on_recipe_error,
    parse_recipe,
)

# isort: split
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trl import ModelConfig

from eval.data import QuestionSet, load_question_sets
from eval.metrics.unlearning import UnlearningMetric
from pmc_rl.data import answer_questions
from pmc_rl.models import (
    check_one_process,
    is_finished_run,
    load_model,
    load_tokenizer,
    training_dtype,
    write_private,
)

EXAMPLES = 20  # rows of each set that is not about forgetting in examples.md
FORGET_AND_RETAIN = ("forget_config", "forget_file", "retain_config", "retain_file")
Recipe = tuple[PMCArguments, PMCConfig, ModelConfig, EvalArguments]


def by_set(sets: dict[str, QuestionSet], answers: list[tuple[str, bool]]) -> dict[str, list[tuple[str, bool]]]:
    """Answers to the questions of all sets, one set after the other, as lists by set."""
    rest = iter(answers)
    return {name: list(islice(rest, len(rows.questions))) for name, rows in sets.items()}


def score_answers(sets: dict[str, QuestionSet], answers: dict[str, list[tuple[str, bool]]]) -> dict:
    """One column of results.json."""
    result = UnlearningMetric(keep_in_memory=True).compute(
        predictions=[text for name in sets for text, _ in answers[name]],
        references=[answer for rows in sets.values() for answer in rows.answers],
        sets=[name for name, rows in sets.items() for _ in rows.answers],
    )
    for name, scores in result["sets"].items():
        scores["empty"] = sum(not text for text, _ in answers[name])
        scores["ended"] = sum(finished for _, finished in answers[name]) / scores["n"]
    return result


def results_table(results: dict[str, dict]) -> Table:
    """The numbers of results.json, a column a model."""
    table = Table(title="Greedy answers, ROUGE-L recall against the true answer")
    table.add_column("")
    for column in results:
        table.add_column(column, justify="right")
    first = next(iter(results.values()))

    def add(label: str, value) -> None:
        table.add_row(label, *(value(column) for column in results.values()))

    for key in ("unlearn_quality", "utility"):
        if first[key] is not None:
            add(f"{key.replace('_', ' ')} %", lambda column, key=key: f"{column[key]:.1f}")
    table.add_section()
    for name, scores in first["sets"].items():
        label = f"{name} recall (n={scores['n']})"
        add(label, lambda column, name=name: f"{column['sets'][name]['rougeL_recall']:.3f}")
    table.add_section()
    add("empty answers", lambda column: str(sum(scores["empty"] for scores in column["sets"].values())))
    for name in first["sets"]:
        add(f"{name} answers that end", lambda column, name=name: f"{column['sets'][name]['ended']:.0%}")
    return table


def examples_markdown(sets: dict[str, QuestionSet], answers: dict[str, dict]) -> str:
    """Question, truth and each model's answer: all rows to forget, the first of the other sets."""
    lines = ["# Examples", "", "PRIVATE: holds what is to be forgotten. Delete it when it has been read.", ""]
    for name, rows in sets.items():
        lines += [f"## {name}", ""]
        for i, (question, truth) in enumerate(zip(rows.questions, rows.answers, strict=True)):
            if i == EXAMPLES and not name.startswith("forget"):
                break
            lines += [f"**{i}. {question}**", "", f"- truth: {truth}"]
            lines += [f"- {column}: {answers[column][name][i][0]}" for column in answers]
            lines.append("")
    return "\n".join(lines)


def print_examples(sets: dict[str, QuestionSet], answers: dict[str, dict], count: int) -> None:
    """A few rows to forget on the terminal."""
    table = Table(title="Questions to forget")
    for column in ("question", "truth", *answers):
        table.add_column(column)
    rows = sets["forget"]
    for i in range(min(count, len(rows.questions))):
        texts = [rows.questions[i], rows.answers[i], *(answers[column]["forget"][i][0] for column in answers)]
        table.add_row(*map(Text, texts), end_section=True)
    Console().print(table)


def write_json(path: Path, value: dict) -> None:
    """Writes to a temporary name first."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def check_run(recipe: Recipe, output_dir: Path, overwrite: bool) -> None:
    """The folder holds a finished run of this recipe, and no results that nobody said may be replaced."""
    if not is_finished_run(output_dir):
        raise RecipeError([f"output_dir: {str(output_dir)!r} holds no finished run; run pmc_rl/train.py first"])
    script_args, _, model_args, _ = recipe
    trained_args, _, trained_model_args, _ = parse_recipe([str(output_dir / "recipe.yaml")])
    pairs = [("model_name_or_path", model_args.model_name_or_path, trained_model_args.model_name_or_path)]
    pairs += [
        (key.name, vars(script_args)[key.name], vars(trained_args)[key.name])
        for key in fields(DataArguments)
        if key.name not in ("given", "answer_column")
    ]
    pairs += [(key, vars(script_args)[key], vars(trained_args)[key]) for key in FORGET_AND_RETAIN]
    errors = [
        f"{key}: {ours!r}, but the run in {str(output_dir)!r} was trained with {trained!r}; "
        f"give {str(output_dir / 'recipe.yaml')!r} as the recipe"
        for key, ours, trained in pairs
        if ours != trained
    ]
    if (output_dir / "results.json").exists() and not overwrite:
        errors.append(f"output_dir: {str(output_dir / 'results.json')!r} exists; say --overwrite true to replace it")
    if errors:
        raise RecipeError(errors)


def main(argv: list[str]) -> None:
    """Recipe -> question sets -> answers of each model -> results.json, private/examples.md and a table."""
    recipe = script_args, training_args, model_args, eval_args = parse_recipe(argv)
    output_dir = Path(training_args.output_dir)
    folders = {"before": model_args.model_name_or_path, "after": str(output_dir)}
    if eval_args.retain_only_model:
        folders["retain_only"] = eval_args.retain_only_model
    # which weights a column has is all that differs; LoRA and its checks are a matter of training
    models = {name: replace(model_args, model_name_or_path=folder, use_peft=False) for name, folder in folders.items()}
    check_run(recipe, output_dir, training_args.overwrite)
    (sets, left_out, records), _, *tokenizers = check_all(
        lambda: load_question_sets(script_args, eval_args),
        lambda: check_one_process(training_args),
        *(lambda args=args: load_tokenizer(args, script_args.tokenizer_name_or_path) for args in models.values()),
    )
    questions = [question for rows in sets.values() for question in rows.questions]
    answers = {}
    for (name, args), tokenizer in zip(models.items(), tokenizers, strict=True):
        model = load_model(args, training_dtype(model_args, training_args), training_args.device)
        own = answer_questions(script_args, model, tokenizer, questions, training_args, f"answers {name}")
        answers[name] = by_set(sets, own)
        del model
    results = {name: score_answers(sets, answers[name]) for name in answers}

    write_json(output_dir / "audit.json", {"models": folders, "left_out": left_out, "read": records})
    write_json(output_dir / "results.json", results)
    private = write_private(output_dir, "examples.md", examples_markdown(sets, answers))

    if training_args.log_completions and "forget" in sets:
        print_examples(sets, answers, training_args.num_completions_to_print)
    for line in left_out:
        print(f"Left out: {line}.")
    for name, column in results.items():
        for set_name, scores in column["sets"].items():
            if scores["ended"] < 0.5:
                print(
                    f"Warning: {1 - scores['ended']:.0%} of the answers {name} to {set_name} hit "
                    "max_completion_length; a run-on answer has recall for free."
                )
    print(f"Wrote {output_dir / 'results.json'}.")
    print(f"Private files left: {private} (holds what is to be forgotten; delete it when it has been read).")
    Console().print(results_table(results))


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
