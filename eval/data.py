"""Question sets and answer options of the audit. The only place that reads answers to be forgotten."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.metrics.unlearning import FORGET_SETS, UTILITY_SETS
from pmc_rl.config import EvalArguments, PMCArguments
from pmc_rl.data import drop_blank, normalized, require_text, split_retain_rows
from pmc_rl.reading import config_names, read_columns
from pmc_rl.values import RecipeError, one_line
from rewards.rouge import check_references

# The PMC paper's retain sample: 400 draws with replacement from the retain rows, with this seed.
RETAIN_DRAWS = 400
RETAIN_SEED = 12345

QUESTION_SETS = (*FORGET_SETS, "retain", "retain_holdout", *UTILITY_SETS[1:])
OPTION_SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")


@dataclass
class QuestionSet:
    """Questions with their true answers; row i of the set is row `rows[i]` of what was read."""

    questions: list[str]
    answers: list[str]
    rows: list[int]

    def part(self, start: int, stop: int) -> "QuestionSet":
        """Rows `start` to `stop` of the set."""
        return QuestionSet(self.questions[start:stop], self.answers[start:stop], self.rows[start:stop])


@dataclass
class OptionSet:
    """
    Questions with the answers whose probabilities are compared; all lists have one entry a row.

    `paraphrases` is None where the data has none, and so is `wrong`; of real_authors and world_facts the answer stands
    for the paraphrase.
    """

    questions: list[str]
    answers: list[str]
    paraphrases: list[str] | None
    wrong: list[list[str]] | None


@dataclass
class Source:
    """Where a set comes from: the recipe's key, and a file or a config of `dataset_name`."""

    key: str
    file: str | None
    config: str | None


def load_question_sets(args: PMCArguments, eval_args: EvalArguments) -> tuple[dict[str, QuestionSet], list[str], dict]:
    """
    Reads the recipe's sets: those of `QUESTION_SETS`.

    Returns:
        the sets by name; a line for every set that is left out, with the reason; a record of what was read, by set.

    Raises:
        RecipeError: a set named in `eval_sets` is not there, or a file is broken.
    """
    sets, left_out, records, errors = {}, [], {}, []
    for name in QUESTION_SETS:
        unasked = name == "retain_holdout" and not args.retain_holdout and eval_args.eval_sets is None
        if unasked or not _wanted(name, eval_args):
            continue
        try:
            loaded = _question_set(args, name)
            if isinstance(loaded, str):
                left_out.append(f"{name}: {loaded}")
            else:
                sets[name], records[name] = loaded
        except RecipeError as error:
            errors += error.errors
    if eval_args.eval_sets is not None:
        errors += [f"eval_sets: {line}" for line in left_out]
    if not sets and not errors:
        errors.append(f"no question set can be audited ({'; '.join(left_out)})")
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))  # two sets of one broken file say the same
    return sets, left_out, records


def load_option_sets(
    args: PMCArguments, eval_args: EvalArguments
) -> tuple[dict[str, OptionSet], dict[str, str], dict]:
    """
    Reads what the teacher-forced pass scores: those of `OPTION_SETS`.

    Returns:
        the sets by name; for every set that is not there the reason; a record of what was read, by set.

    Raises:
        RecipeError: a file is broken.
    """
    sets, missing, records, errors = {}, {}, {}, []
    for name in OPTION_SETS:
        if not _wanted("forget" if name == "holdout" else name, eval_args):
            missing[name] = "eval_sets does not name it"
            continue
        try:
            loaded = _option_set(args, eval_args, name)
            if isinstance(loaded, str):
                missing[name] = loaded
            else:
                sets[name], records[name] = loaded
        except RecipeError as error:
            errors += error.errors
    if "holdout" in sets:
        known = {normalized(q) for name in ("forget", "retain") if name in sets for q in sets[name].questions}
        seen = sum(normalized(question) in known for question in sets["holdout"].questions)
        if seen:
            errors.append(
                f"holdout_file: {seen} of its questions are to be forgotten or retained; no model may know them"
            )
    if errors:
        raise RecipeError(list(dict.fromkeys(errors)))
    return sets, missing, records


def load_unrelated_text(eval_args: EvalArguments, sets: dict[str, QuestionSet]) -> str | None:
    """Text that has nothing to do with the forget rows: of a file, else the everyday facts; None without either."""
    if eval_args.unrelated_file is None:
        facts = [rows for name, rows in sets.items() if name in ("real_authors", "world_facts")]
        lines = [f"{q} {a}" for rows in facts for q, a in zip(rows.questions, rows.answers, strict=True)]
        return "\n".join(lines) or None
    path = Path(eval_args.unrelated_file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"unrelated_file: {str(path)!r} cannot be read as text: {one_line(error)}"]) from error
    if not text.strip():
        raise RecipeError([f"unrelated_file: {str(path)!r} is empty"])
    return text


def _wanted(name: str, eval_args: EvalArguments) -> bool:
    return eval_args.eval_sets is None or name in eval_args.eval_sets


def _question_set(args: PMCArguments, name: str) -> tuple[QuestionSet, dict] | str:
    """The set and its record, or why the data has no such set."""
    group = name.removesuffix("_paraphrased").removesuffix("_holdout")
    if name == "retain_holdout" and args.retain_holdout == 0:
        return "retain_holdout is 0"
    source = _source(args, group, perturbed=name == "forget_paraphrased")
    if isinstance(source, str):
        return source
    columns = ["question", "answer"]
    if name == "forget_paraphrased":
        columns = ["paraphrased_question", "paraphrased_answer"]
    elif group in ("forget", "retain"):
        columns = [args.question_column, args.answer_column]
    question_column, answer_column = columns
    # what an own file does not have is left out, and no error; paraphrases are optional everywhere
    optional = columns if source.file or name == "forget_paraphrased" else []
    rows, record = _read(args, source, [column for column in columns if column not in optional], optional)
    absent = [column for column in columns if column not in record["columns"]]
    if absent:
        return _lacks(source, absent)
    require_text(source.key, rows, question_column)
    if group == "retain":  # training lets the model answer these itself
        drop_blank(rows, answer_column)
    require_text(source.key, rows, answer_column, may_be_missing=group == "retain")
    indices = list(range(len(rows)))
    if group == "retain":
        indices = split_retain_rows(len(rows), args.retain_holdout)[name == "retain_holdout"]
    indices = [i for i in indices if rows[i][answer_column] is not None]
    if not indices:
        return "no row has an answer"
    if name == "retain" and len(indices) > RETAIN_DRAWS:
        indices = [indices[i] for i in np.random.default_rng(RETAIN_SEED).integers(0, len(indices), RETAIN_DRAWS)]
    try:
        check_references([rows[i][answer_column] for i in indices], indices)
    except ValueError as error:
        raise RecipeError([f"{source.key}, set {name!r}: {error}"]) from error
    questions = [rows[i][question_column] for i in indices]
    return QuestionSet(questions, [rows[i][answer_column] for i in indices], indices), record


def _option_set(args: PMCArguments, eval_args: EvalArguments, name: str) -> tuple[OptionSet, dict] | str:
    """The set and its record, or why the data has no such set."""
    source = _holdout_source(args, eval_args) if name == "holdout" else _source(args, name, perturbed=True)
    if isinstance(source, str) and name in ("forget", "retain"):
        source = _source(args, name, perturbed=False)  # without options there is still the answer
    if isinstance(source, str):
        return source
    own = source.file is not None or source.config in (args.forget_config, args.retain_config)
    question, answer = (args.question_column, args.answer_column) if own else ("question", "answer")
    further = [] if name == "holdout" else ["paraphrased_answer", "perturbed_answer"]
    if source.file:  # what it does not have is left out, and no error
        rows, record = _read(args, source, [], [question, answer, *further])
    else:
        rows, record = _read(args, source, [question, answer], further)
    absent = [column for column in (question, answer) if column not in record["columns"]]
    if absent:
        return _lacks(source, absent)
    require_text(source.key, rows, question)
    if name == "retain" and own:
        drop_blank(rows, answer)
        rows = [rows[i] for i in split_retain_rows(len(rows), args.retain_holdout)[0] if rows[i][answer] is not None]
        if not rows:
            return "no row has an answer"
        draws = np.random.default_rng(RETAIN_SEED).permutation(len(rows))[:RETAIN_DRAWS]
        rows = [rows[i] for i in sorted(draws)]
    require_text(source.key, rows, answer)
    has = record["columns"]
    if "paraphrased_answer" in has:
        require_text(source.key, rows, "paraphrased_answer")
    if "perturbed_answer" in has:
        _require_texts(source.key, rows, "perturbed_answer")
    answers = [row[answer] for row in rows]
    if name in ("real_authors", "world_facts"):
        paraphrases = answers
    else:
        paraphrases = [row["paraphrased_answer"] for row in rows] if "paraphrased_answer" in has else None
    wrong = [row["perturbed_answer"] for row in rows] if "perturbed_answer" in has else None
    return OptionSet([row[question] for row in rows], answers, paraphrases, wrong), record


def _source(args: PMCArguments, name: str, perturbed: bool) -> Source | str:
    """Where a set's rows are, in the wording with further options if `perturbed`; or why there are none."""
    if name in ("forget", "retain") and args.answer_column is None:
        return "answer_column is null, so there are no true answers"
    if name == "forget" and args.forget_file:
        return Source("forget_file", args.forget_file, None)
    if name == "retain" and args.retain_file:
        return Source("retain_file", args.retain_file, None)
    if name == "retain" and not args.retain_config:
        return "the recipe retains nothing"
    key = {"forget": "forget_config", "retain": "retain_config"}.get(name, "dataset_name")
    if name in ("forget", "retain") and not perturbed:
        return Source(key, None, args.forget_config if name == "forget" else args.retain_config)
    config = f"{args.forget_config}_perturbed" if name == "forget" else f"{name}_perturbed" if perturbed else name
    return _config_source(args, key, config)


def _config_source(args: PMCArguments, key: str, config: str) -> Source | str:
    if args.dataset_name is None:
        return "the recipe names no dataset_name"
    if config not in config_names("dataset_name", args.dataset_name):
        return f"{args.dataset_name} has no config {config!r}"
    return Source(key, None, config)


def _holdout_source(args: PMCArguments, eval_args: EvalArguments) -> Source | str:
    """Rows no model saw: a file, or TOFU's `holdoutXX` beside `forgetXX`."""
    if args.answer_column is None:
        return "answer_column is null, so there are no true answers"
    if eval_args.holdout_file:
        return Source("holdout_file", eval_args.holdout_file, None)
    if not args.forget_config or not args.forget_config.startswith("forget"):
        return "give questions and answers that no model saw with holdout_file"
    return _config_source(args, "forget_config", args.forget_config.replace("forget", "holdout", 1))


def _lacks(source: Source, columns: list[str]) -> str:
    return f"{source.file or source.config} has no column{'s' * (len(columns) > 1)} {' and '.join(columns)}"


def _read(args: PMCArguments, source: Source, columns: list[str], optional: list[str]) -> tuple[list[dict], dict]:
    return read_columns(source.key, source.file, args.dataset_name, source.config, columns, optional)


def _require_texts(key: str, rows: list[dict], column: str) -> None:
    """Refuses rows in which a column is not a list of texts with at least one."""
    wrong = [
        i
        for i, row in enumerate(rows)
        if not (
            isinstance(row[column], list)
            and row[column]
            and all(isinstance(text, str) and text.strip() for text in row[column])
        )
    ]
    if wrong:
        raise RecipeError(
            [f"{key}: column {column!r} is not a list of texts in {len(wrong)} of {len(rows)} rows (row {wrong[0]})"]
        )
