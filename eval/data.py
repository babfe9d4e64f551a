"""Question sets of the audit. The only place that reads answers to be forgotten."""

from dataclasses import dataclass

import numpy as np

from eval.metrics.unlearning import FORGET_SETS, UTILITY_SETS
from pmc_rl.config import EvalArguments, PMCArguments, RecipeError
from pmc_rl.data import config_names, drop_blank, read_columns, require_text
from rewards.rouge import check_references

# The PMC paper's retain sample: 400 draws with replacement from the retain rows, with this seed.
RETAIN_DRAWS = 400
RETAIN_SEED = 12345


@dataclass
class QuestionSet:
    """Questions with their true answers; row i of the set is row `rows[i]` of what was read."""

    questions: list[str]
    answers: list[str]
    rows: list[int]


def load_question_sets(args: PMCArguments, eval_args: EvalArguments) -> tuple[dict[str, QuestionSet], list[str], dict]:
    """
    Reads the recipe's sets: `forget`, `forget_paraphrased`, `retain`, `real_authors`, `world_facts`.

    Returns:
        the sets by name; a line for every set that is left out, with the reason; a record of what was read, by set.

    Raises:
        RecipeError: a set named in `eval_sets` is not there, or a file is broken.
    """
    sets, left_out, records, errors = {}, [], {}, []
    for name in FORGET_SETS + UTILITY_SETS:
        if eval_args.eval_sets is not None and name not in eval_args.eval_sets:
            continue
        try:
            source = _source(args, name)
            if isinstance(source, str):
                left_out.append(f"{name}: {source}")
                continue
            key, file, config, question_column, answer_column = source
            rows, records[name] = read_columns(
                key, file, args.dataset_name, config, [question_column, answer_column], []
            )
            require_text(key, rows, question_column)
            if name == "retain":  # training lets the model answer these itself
                drop_blank(rows, answer_column)
            require_text(key, rows, answer_column, may_be_missing=name == "retain")
            answered = [i for i, row in enumerate(rows) if row[answer_column] is not None]
            if not answered:
                left_out.append(f"{name}: no row has an answer")
                continue
            if name == "retain" and len(answered) > RETAIN_DRAWS:
                draws = np.random.default_rng(RETAIN_SEED).integers(0, len(answered), RETAIN_DRAWS)
                answered = [answered[i] for i in draws]
            try:
                check_references([rows[i][answer_column] for i in answered], answered)
            except ValueError as error:
                raise RecipeError([f"{key}, set {name!r}: {error}"]) from error
            sets[name] = QuestionSet(
                questions=[rows[i][question_column] for i in answered],
                answers=[rows[i][answer_column] for i in answered],
                rows=answered,
            )
        except RecipeError as error:
            errors += error.errors
    if eval_args.eval_sets is not None:
        errors += [f"eval_sets: {line}" for line in left_out]
    if not sets and not errors:
        errors.append(f"no question set can be audited ({'; '.join(left_out)})")
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))  # two sets of one broken file say the same
    return sets, left_out, records


def _source(args: PMCArguments, name: str) -> tuple[str, str | None, str | None, str, str] | str:
    """Recipe key, file, config, question and answer column of a set; or why the data has no such set."""
    if name in ("forget", "retain") and args.answer_column is None:
        return "answer_column is null, so there are no true answers"
    columns = (args.question_column, args.answer_column)
    if name == "forget" and not args.forget_file:
        return "forget_config", None, args.forget_config, *columns
    if name == "forget":
        return _file_source("forget_file", args.forget_file, columns)
    if name == "retain" and args.retain_config:
        return "retain_config", None, args.retain_config, *columns
    if name == "retain":
        return (
            _file_source("retain_file", args.retain_file, columns)
            if args.retain_file
            else "the recipe retains nothing"
        )
    paraphrased = ("paraphrased_question", "paraphrased_answer")
    if name == "forget_paraphrased" and args.forget_file:
        return _file_source("forget_file", args.forget_file, paraphrased)
    config = f"{args.forget_config}_perturbed" if name == "forget_paraphrased" else name
    if args.dataset_name is None:
        return "the recipe names no dataset_name"
    if config not in config_names("dataset_name", args.dataset_name):
        return f"{args.dataset_name} has no config {config!r}"
    if name == "forget_paraphrased":
        return "forget_config", None, config, *paraphrased
    return "eval_sets", None, config, "question", "answer"


def _file_source(key: str, file: str, columns: tuple[str, str]) -> tuple[str, str, None, str, str] | str:
    _, record = read_columns(key, file, None, None, [], list(columns))
    missing = [column for column in columns if column not in record["columns"]]
    plural = "s" if len(missing) > 1 else ""
    return f"{file} has no column{plural} {' and '.join(missing)}" if missing else (key, file, None, *columns)
