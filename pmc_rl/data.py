"""The rows of a recipe: questions to forget without answers, rows to retain, rows to fine-tune on; their checks."""

import numpy as np

from pmc_rl.config import FinetuneArguments, PMCArguments
from pmc_rl.errors import RecipeError
from pmc_rl.reading import kind_of, listed, read_columns
from pmc_rl.scoring import CONTRACT

HOLDOUT_SEED = 54321
RESERVED_COLUMNS = CONTRACT - {"original_completion"} | {"prompt", "completion"}


def require_text(key: str, rows: list[dict], column: str, may_be_missing: bool = False, several: bool = False) -> None:
    """Refuses rows whose column is no text (`several`: no list of texts); None or blank may be if `may_be_missing`."""

    def fits(value) -> bool:
        if value is None:
            return may_be_missing
        if several:
            return isinstance(value, list) and all(isinstance(text, str) for text in value)
        return isinstance(value, str) and (may_be_missing or bool(value.strip()))

    wrong = [i for i, row in enumerate(rows) if not fits(row[column])]
    if wrong:
        held = ", ".join(f"row {i} holds {kind_of(rows[i][column])}" for i in wrong[:3])
        held += ", ..." if len(wrong) > 3 else ""
        what = f"is {'not a list of texts' if several else 'empty or not a text'} in {len(wrong)} of {len(rows)} rows"
        raise RecipeError([f"{key}: column {column!r} {what} ({held}; counted from 0)"])


def read_forget_rows(args: PMCArguments) -> tuple[list[dict], dict]:
    """Questions to forget: the question column, `original_completion` where it is there, and `reward_columns`.

    No other column is kept, so no answer gets into the training process, whatever it is called.
    """
    for column in args.reward_columns:
        if column in RESERVED_COLUMNS:
            raise RecipeError([f"reward_columns: {column!r} is a name the trainer uses itself; rename the column"])
        if column == args.answer_column:
            raise RecipeError([f"reward_columns: {column!r} is what is to be forgotten; training never reads it"])
    key = "forget_file" if args.forget_file else "forget_config"
    columns, optional = [args.question_column, *args.reward_columns], ["original_completion"]
    rows, record = read_columns(
        key, args.forget_file, args.dataset_name, args.forget_config, columns, optional, args.forget_split
    )
    require_text(key, rows, args.question_column)
    if "original_completion" in record["columns"]:
        require_text(key, rows, "original_completion")
    return rows, record


def split_retain_rows(count: int, held_out_share: float) -> tuple[list[int], list[int]]:
    """Retain rows to train on and rows held out for the audit, each in file order; the same split in both stages."""
    held_out = set(np.random.default_rng(HOLDOUT_SEED).permutation(count)[: round(count * held_out_share)].tolist())
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def retain_columns(args: PMCArguments) -> tuple[str, str | None]:
    """Columns of the retain rows with questions and with answers."""
    return args.retain_question_column or args.question_column, args.retain_answer_column or args.answer_column


def read_retain_rows(args: PMCArguments) -> tuple[list[dict], dict]:
    """
    Rows to retain, less those of `retain_holdout`, under the names of the forget rows' columns; the answer is None
    where it is missing or blank, and left out where no column is named, or `retain_own_answers` wants none.
    """
    key = "retain_file" if args.retain_file else "retain_config"
    question, answer = retain_columns(args)
    answer = None if args.retain_own_answers else answer
    names = {question: args.question_column} | ({answer: args.answer_column or "answer"} if answer else {})
    rows, record = read_columns(
        key, args.retain_file, args.dataset_name, args.retain_config, list(names), [], args.retain_split
    )
    require_text(key, rows, question)
    if answer:
        require_text(key, rows, answer, may_be_missing=True)
        for row in rows:
            row[answer] = row[answer] if row[answer] and row[answer].strip() else None
    kept, held_out = split_retain_rows(len(rows), args.retain_holdout)
    if not kept:
        raise RecipeError([f"retain_holdout: {args.retain_holdout} of {len(rows)} rows leaves none to train on"])
    renamed = [{names[name]: value for name, value in rows[i].items()} for i in kept]
    return renamed, {**record, "held_out": len(held_out)}


def read_finetune_rows(args: FinetuneArguments) -> tuple[list[dict], dict]:
    """Questions and answers of `train_file`, or of `train_configs`, one after the other; a record each."""
    key = "train_file" if args.train_file else "train_configs"
    sources = [(file, None, "train") for file in listed(args.train_file)]
    sources = sources or [(None, config, split) for config in args.train_configs for split in listed(args.train_split)]
    rows, records = [], {}
    for file, config, split in sources:
        columns = [args.question_column, args.answer_column]
        part, record = read_columns(key, file, args.dataset_name, config, columns, [], split)
        if record["source"] in records:
            raise RecipeError([f"{key}: {record['source']} is given twice"])
        for column in columns:
            require_text(key, part, column)
        rows += part
        records[record["source"]] = record
    return rows, records


def check_no_overlap(forget_rows: list[dict], retain_rows: list[dict], question_column: str) -> None:
    """Refuses a question that is to be forgotten and retained at once."""
    retained = {normalized(row[question_column]): i for i, row in reversed(list(enumerate(retain_rows)))}
    forgotten = [normalized(row[question_column]) for row in forget_rows]
    pairs = [(i, retained[question]) for i, question in enumerate(forgotten) if question in retained]
    if pairs:
        first = "as forget row {} and retain row {} (counted from 0)".format(*pairs[0])
        what = f"{len(pairs)} question(s) are to be forgotten and retained at once, the first {first}"
        raise RecipeError([f"{what}; remove them from one of the two"])


def normalized(text: str) -> str:
    """A question by which equal ones are found: case and white space do not count."""
    return " ".join(text.casefold().split())


def retain_rows_at(start: int, count: int, num_rows: int, seed: int) -> list[int]:
    """Rows `start` to `start + count` of an endless stream of permutations of `range(num_rows)`; no state, no RNG."""
    first, last = start // num_rows, (start + count - 1) // num_rows
    passes = [np.random.default_rng([seed, number]).permutation(num_rows) for number in range(first, last + 1)]
    return np.concatenate(passes)[start - first * num_rows :][:count].tolist()
