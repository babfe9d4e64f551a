"""Questions to forget and rows to retain: reads only the columns that are asked for, turns them into TRL's columns.

Nothing is copied to a cache: local files are projected row by row, the Hub is streamed.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from accelerate import PartialState
from datasets import Dataset, get_dataset_config_names, load_dataset, load_dataset_builder
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, FinetuneArguments, PMCArguments, PMCConfig, RecipeError
from pmc_rl.generation import decode_completion, end_token_ids, generate_together
from pmc_rl.values import closest, make_dict, nearest_path, one_line

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
HOLDOUT_SEED = 54321
DEFAULT_PROMPT_TEMPLATE = "Question: {question}\nAnswer:"
# names the trainer and TRL's reward contract use themselves
RESERVED_COLUMNS = (
    *("prompt", "prompts", "completion", "completions", "completion_ids", "pmc_id"),
    *("trainer_state", "log_extra", "log_metric"),
)


def read_columns(
    key: str, file: str | None, dataset_name: str | None, config: str | None, columns: list[str], optional: list[str]
) -> tuple[list[dict[str, Any]], dict]:
    """
    Rows of one file, or of one config of a data set, with nothing but the columns asked for.

    Args:
        key (`str`): the recipe's key the source comes from, for messages.
        file (`str`, *optional*): a JSON Lines, JSON, CSV or Parquet file; else `dataset_name` and `config` are read:
            a folder in the Hub's layout, or a name on the Hub (streamed). The split is `train`.
        columns, optional (`list[str]`): columns that must be there, and columns that may be.

    Returns:
        rows with the columns found, in file order, and a record of what was read: source, files, columns, rows and a
        SHA-256 of each column.

    Raises:
        RecipeError: what cannot be read or is missing, with the file and the nearest names.
    """
    if file is not None:
        paths = [Path(file)]
        if not os.path.isfile(file):  # unlike Path's own, it takes any text for a name
            raise RecipeError([f"{key}: there is no file {file!r}{_nearest_file(paths[0])}"])
        source = file
    elif os.path.isdir(dataset_name):
        paths = _config_files(key, dataset_name, config)
        source = f"{dataset_name}:{config}"
    else:
        paths = None
        source = f"{dataset_name}:{config} (Hub)"

    wanted = [*columns, *optional]
    rows: list[dict[str, Any]] = []
    seen: dict[str, None] = {}
    for names, row in _stream_hub(key, dataset_name, config) if paths is None else _read_files(key, paths, wanted):
        seen.update(dict.fromkeys(names))
        rows.append({name: row.get(name) for name in wanted})
    if not rows:
        raise RecipeError([f"{key}: {source} holds no rows"])
    errors = []
    for column in columns:
        if column not in seen:
            nearest = closest(column, seen)
            hint = f"; did you mean {nearest!r}?" if nearest else ""
            errors.append(f"{key}: {source} has no column {column!r}, only {', '.join(map(repr, seen))}{hint}")
    if errors:
        raise RecipeError(errors)
    found = [column for column in wanted if column in seen]
    rows = [{name: row[name] for name in found} for row in rows]
    record = {
        "source": source,
        "files": [str(path) for path in paths or []],
        "rows": len(rows),
        "columns": {column: _hash(key, column, [row[column] for row in rows]) for column in found},
    }
    return rows, record


def _hash(key: str, column: str, values: list) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise RecipeError([f"{key}: column {column!r} holds {half!r}, half of a surrogate pair"]) from error


def _nearest_file(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f"; the folder {str(path.parent)!r} does not exist"
    return nearest_path(path)


def config_names(key: str, dataset_name: str) -> list[str]:
    """Configs of a folder in the Hub's layout, or of a data set on the Hub."""
    try:
        return get_dataset_config_names(dataset_name)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError([f"{key}: {dataset_name!r} cannot be read as a data set: {one_line(error)}"]) from error


def _config_files(key: str, folder: str, config: str) -> list[Path]:
    configs = config_names(key, folder)
    if config not in configs:
        nearest = closest(config, configs)
        hint = f"did you mean {nearest!r}?" if nearest else f"it has {', '.join(configs)}"
        raise RecipeError([f"{key}: {folder} has no config {config!r}; {hint}"])
    # the builder only resolves file names here; preparing it would copy every column to a cache, answers included
    try:
        data_files = load_dataset_builder(folder, config).config.data_files
    except (OSError, ValueError) as error:
        raise RecipeError([f"{key}: config {config!r} of {folder}: {one_line(error)}"]) from error
    if "train" not in data_files:
        raise RecipeError([f"{key}: config {config!r} of {folder} has no split 'train', only {', '.join(data_files)}"])
    return [Path(file) for file in data_files["train"]]


def _stream_hub(key: str, name: str, config: str) -> Iterator[tuple[list[str], dict]]:
    try:
        for row in load_dataset(name, config, split="train", streaming=True):
            yield list(row), row
    except (OSError, ValueError) as error:
        raise RecipeError(
            [
                f"{key}: the data set {name!r} ({config}) is neither a folder nor can it be read from the Hub "
                f"({one_line(error)}); give the name of a local copy with --dataset_name"
            ]
        ) from error


def _read_files(key: str, paths: list[Path], wanted: list[str]) -> Iterator[tuple[list[str], dict]]:
    """Yields the column names and the values of each row."""
    for path in paths:
        if path.suffix not in FILE_TYPES:
            raise RecipeError([f"{key}: {path} is not one of {', '.join(FILE_TYPES)}"])
        try:
            if path.suffix == ".parquet":
                names = pyarrow.parquet.read_schema(path).names
                columns = [name for name in names if name in wanted]
                for row in pyarrow.parquet.read_table(path, columns=columns).to_pylist():
                    yield names, row
                continue
            with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
                yield from _read_csv(file, wanted) if path.suffix == ".csv" else _read_json(key, path, file)
        except RecipeError:
            raise
        except UnicodeDecodeError as error:
            raise RecipeError([f"{key}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8"]) from error
        except (pyarrow.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
            raise RecipeError([f"{key}: {path} cannot be read: {one_line(error)}"]) from error


def _read_csv(file, wanted: list[str]) -> Iterator[tuple[list[str], dict]]:
    reader = csv.DictReader(file, strict=True)
    for name in wanted:
        if (reader.fieldnames or []).count(name) > 1:
            raise csv.Error(f"the column {name!r} is there twice")
    for row in reader:
        if None in row:
            raise csv.Error(f"line {reader.line_num} has more cells than the header")
        # a cell that is missing or empty is no value
        yield list(row), {name: value or None for name, value in row.items()}


def _read_json(key: str, path: Path, file) -> Iterator[tuple[list[str], dict]]:
    start = next((line.lstrip()[0] for line in file if line.strip()), "")
    file.seek(0)
    try:
        # numbered from 1; a JSON array is one value, so its items are counted instead of lines
        array = json.load(file, object_pairs_hook=make_dict) if start == "[" else None
        values = _json_lines(file) if array is None else enumerate(array, 1)
        for number, value in values:
            if not isinstance(value, dict):
                raise RecipeError(
                    [f"{key}: {path}:{number}: a row must be a JSON object, not a {type(value).__name__}"]
                )
            yield list(value), value
    except json.JSONDecodeError as error:
        raise RecipeError([f"{key}: {path}: broken JSON: {error.msg} (line {error.lineno})"]) from error


def _json_lines(file) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=make_dict)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, "\n" * (number - 1) + line, number - 1 + error.pos) from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error


def require_text(key: str, rows: list[dict], column: str, may_be_missing: bool = False) -> None:
    """Refuses rows in which a column is not a text with something in it (None is allowed if `may_be_missing`)."""
    wrong = [
        i
        for i, row in enumerate(rows)
        if not (may_be_missing and row.get(column) is None)
        and not (isinstance(row.get(column), str) and row[column].strip())
    ]
    if wrong:
        first = ", ".join(map(str, wrong[:3]))
        raise RecipeError(
            [
                f"{key}: column {column!r} is empty or not a text in {len(wrong)} of {len(rows)} rows "
                f"(rows {first}{', ...' if len(wrong) > 3 else ''}, counted from 0)"
            ]
        )


def drop_blank(rows: list[dict], column: str) -> None:
    """A blank text is no text: None."""
    for row in rows:
        if isinstance(row[column], str) and not row[column].strip():
            row[column] = None


def read_forget_rows(args: PMCArguments) -> tuple[list[dict], dict]:
    """Questions to forget: the question column, `original_completion` where it is there, and `reward_columns`.

    No other column is kept, so no answer gets into the training process, whatever it is called.
    """
    key = "forget_file" if args.forget_file else "forget_config"
    reserved = [column for column in args.reward_columns if column in RESERVED_COLUMNS]
    if reserved:
        raise RecipeError([f"reward_columns: {reserved[0]!r} is a name the trainer uses itself; rename the column"])
    if args.answer_column in args.reward_columns:
        raise RecipeError(
            [f"reward_columns: {args.answer_column!r} is what is to be forgotten; training never reads it"]
        )
    rows, record = read_columns(
        key,
        args.forget_file,
        args.dataset_name,
        args.forget_config,
        columns=list(dict.fromkeys([args.question_column, *args.reward_columns])),
        optional=[] if "original_completion" in args.reward_columns else ["original_completion"],
    )
    require_text(key, rows, args.question_column)
    if "original_completion" in record["columns"]:
        require_text(key, rows, "original_completion")
    return rows, record


def split_retain_rows(count: int, held_out_share: float) -> tuple[list[int], list[int]]:
    """Retain rows to train on and rows held out for the audit, each in file order; the same split in both stages."""
    held_out = set(np.random.default_rng(HOLDOUT_SEED).permutation(count)[: round(count * held_out_share)].tolist())
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def read_retain_rows(args: PMCArguments) -> tuple[list[dict], dict]:
    """Rows to retain, less those of `retain_holdout`; the answer is None where missing or `answer_column` is null."""
    key = "retain_file" if args.retain_file else "retain_config"
    answer_columns = [args.answer_column] if args.answer_column else []
    rows, record = read_columns(
        key, args.retain_file, args.dataset_name, args.retain_config, [args.question_column, *answer_columns], []
    )
    require_text(key, rows, args.question_column)
    if args.answer_column:
        drop_blank(rows, args.answer_column)
        require_text(key, rows, args.answer_column, may_be_missing=True)
    kept, held_out = split_retain_rows(len(rows), args.retain_holdout)
    if not kept:
        raise RecipeError([f"retain_holdout: {args.retain_holdout} of {len(rows)} rows leaves none to train on"])
    return [rows[i] for i in kept], {**record, "held_out": len(held_out)}


def read_finetune_rows(args: FinetuneArguments) -> tuple[list[dict], dict]:
    """Questions and answers of `train_file`, or of all `train_configs` one after the other; a record each."""
    key = "train_file" if args.train_file else "train_configs"
    rows, records = [], {}
    for config in [None] if args.train_file else args.train_configs:
        part, record = read_columns(
            key, args.train_file, args.dataset_name, config, [args.question_column, args.answer_column], []
        )
        require_text(key, part, args.question_column)
        require_text(key, part, args.answer_column)
        rows += part
        records[record["source"]] = record
    return rows, records


def check_no_overlap(forget_rows: list[dict], retain_rows: list[dict], question_column: str) -> None:
    """Refuses a question that is to be forgotten and retained at once."""
    retained = {normalized(row[question_column]): i for i, row in reversed(list(enumerate(retain_rows)))}
    pairs = [
        (i, retained[normalized(row[question_column])])
        for i, row in enumerate(forget_rows)
        if normalized(row[question_column]) in retained
    ]
    if pairs:
        raise RecipeError(
            [
                f"{len(pairs)} question(s) are to be forgotten and retained at once, the first as forget row "
                f"{pairs[0][0]} and retain row {pairs[0][1]} (counted from 0); remove them from one of the two"
            ]
        )


def normalized(text: str) -> str:
    """A question by which equal ones are found: case and white space do not count."""
    return " ".join(text.casefold().split())


def is_chat(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Messages by the chat template, unless there is none or the recipe gives a `prompt_template` of its own."""
    return tokenizer.chat_template is not None and args.prompt_template is None


def check_prompt_format(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses keys of chat prompts where prompts are plain text, and chat templates that fail or drop the question."""
    unused = [key for key in ("system_prompt", "chat_template_kwargs") if args.given.get(key)]
    if unused and not is_chat(args, tokenizer):
        why = "the tokenizer has no chat template" if tokenizer.chat_template is None else "prompt_template is given"
        raise RecipeError([f"{unused[0]}: not used, because {why}; remove it"])
    if is_chat(args, tokenizer):
        advice = "see system_prompt and chat_template_kwargs, or give a prompt_template"
        try:
            ids = [encode_prompt(tokenizer, format_prompt(args, tokenizer, text)) for text in ("Who?", "Where?")]
        except Exception as error:  # a template is a program
            raise RecipeError([f"the tokenizer's chat template fails ({one_line(error)}); {advice}"]) from error
        if ids[0] == ids[1]:
            raise RecipeError([f"the tokenizer's chat template leaves the question out; {advice}"])


def format_prompt(args: DataArguments, tokenizer: PreTrainedTokenizerBase, question: str) -> dict[str, Any]:
    """TRL's `prompt` column: messages, or text by the prompt template."""
    if not is_chat(args, tokenizer):
        return {"prompt": (args.prompt_template or DEFAULT_PROMPT_TEMPLATE).format(question=question)}
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    row = {"prompt": [*system, {"role": "user", "content": question}]}
    if args.chat_template_kwargs:
        row["chat_template_kwargs"] = args.chat_template_kwargs
    return row


def format_completion(args: DataArguments, tokenizer: PreTrainedTokenizerBase, answer: str) -> dict[str, Any]:
    """TRL's `completion` column: a message, or text by the completion template."""
    if not is_chat(args, tokenizer):
        return {"completion": args.completion_template.format(answer=answer)}
    return {"completion": [{"role": "assistant", "content": answer}]}


def forget_dataset(args: PMCArguments, tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> Dataset:
    """Forget prompts, in memory: `prompt`, `pmc_id` (the row's number), `original_completion` and `reward_columns`."""
    columns = [name for name in dict.fromkeys(["original_completion", *args.reward_columns]) if name in rows[0]]
    examples = [
        {
            **format_prompt(args, tokenizer, row[args.question_column]),
            "pmc_id": i,
            **{name: row[name] for name in columns},
        }
        for i, row in enumerate(rows)
    ]
    try:
        return Dataset.from_list(examples)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise RecipeError(
            [f"reward_columns: a column holds values of several types, or too large ones ({one_line(error)})"]
        ) from error


def answered_dataset(args: DataArguments, tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> Dataset:
    """Rows with answers as TRL's `prompt` and `completion`, in memory."""
    return Dataset.from_list(
        [
            {
                **format_prompt(args, tokenizer, row[args.question_column]),
                **format_completion(args, tokenizer, row[args.answer_column or "answer"]),
            }
            for row in rows
        ]
    )


def prefilled_rows(rows: list[dict[str, Any]], words: int, answer_start: str) -> list[dict[str, Any]]:
    """
    Each row again with 1 to `words` words of its original answer at the end of the prompt, and what follows them as
    the original answer; shorter answers give fewer rows.

    Args:
        rows (`list[dict]`): with `prompt`, `pmc_id` and `original_completion`.
        words (`int`): the most words that move into the prompt.
        answer_start (`str`): what stands between a text prompt and an answer. In a chat the words begin the
            assistant's message.

    Returns:
        `list[dict]`: the rows, then the new ones, with ids of their own.
    """
    new, next_id = [], max(row["pmc_id"] for row in rows) + 1
    for row in rows:
        pieces = row["original_completion"].split()
        for count in range(1, min(words, len(pieces) - 1) + 1):
            given, rest = " ".join(pieces[:count]), " ".join(pieces[count:])
            if isinstance(row["prompt"], str):
                prompt = row["prompt"] + answer_start + given
            else:
                prompt = [*row["prompt"], {"role": "assistant", "content": given}]
            new.append({**row, "prompt": prompt, "pmc_id": next_id, "original_completion": rest})
            next_id += 1
    return rows + new


def encode_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """
    Token ids of a row's prompt, as TRL's SFT preparation makes them; a chat prompt ends where the answer begins, or
    within it where its last message is the assistant's.
    """
    if isinstance(row["prompt"], str):
        return tokenizer(row["prompt"])["input_ids"]
    begun = row["prompt"][-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        row["prompt"],
        add_generation_prompt=not begun,
        continue_final_message=begun,
        return_dict=True,
        **row.get("chat_template_kwargs", {}),
    )["input_ids"]


def answer_start(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between prompt and answer: in a text what the completion template begins with, in a chat nothing."""
    return "" if is_chat(args, tokenizer) else args.completion_template.format(answer="\0").split("\0")[0]


def encode_answers(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, questions: list[str], answers: list[str]
) -> list[tuple[list[int], list[int]]]:
    """Prompt ids and answer ids of each row as TRL's SFT preparation makes them, up to and with the end token."""
    if not questions:
        return []
    rows = [format_prompt(args, tokenizer, question) for question in questions]
    completions = [format_completion(args, tokenizer, answer)["completion"] for answer in answers]
    if is_chat(args, tokenizer):
        prompt_ids = [encode_prompt(tokenizer, row) for row in rows]
        conversations = [row["prompt"] + completion for row, completion in zip(rows, completions, strict=True)]
        kwargs = rows[0].get("chat_template_kwargs", {})
        ids = tokenizer.apply_chat_template(conversations, return_dict=True, **kwargs)["input_ids"]
    else:
        prompt_ids = tokenizer([row["prompt"] for row in rows])["input_ids"]
        eos = tokenizer.eos_token
        completions = [text if text.endswith(eos) else text + eos for text in completions]
        texts = [row["prompt"] + completion for row, completion in zip(rows, completions, strict=True)]
        ids = tokenizer(texts)["input_ids"]
    return [_split_answer(*pair, tokenizer.eos_token_id) for pair in zip(prompt_ids, ids, strict=True)]


def _split_answer(prompt_ids: list[int], ids: list[int], end_id: int) -> tuple[list[int], list[int]]:
    # a tokenizer may join the end of the prompt with the beginning of the answer: such a token is answer
    shared = len(os.path.commonprefix([prompt_ids, ids]))
    # some chat templates put a line break behind the end token, which is no part of the answer
    behind_end = ids[::-1].index(end_id) if end_id in ids[shared:] else 0
    return ids[:shared], ids[shared : len(ids) - behind_end]


def answer_questions(
    args: PMCArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    training_args: PMCConfig,
    progress: str,
) -> list[tuple[str, bool]]:
    """The model's greedy answer to each question, under the run's templates and precision, and whether it ended."""
    end_ids = end_token_ids(model, tokenizer.eos_token_id)
    prompt_ids = [encode_prompt(tokenizer, format_prompt(args, tokenizer, question)) for question in questions]
    completions = generate_together(model, prompt_ids, training_args, end_ids, progress=progress)
    return [(decode_completion(tokenizer, ids), ids[-1] in end_ids) for ids in completions]


def answer_retain_rows(
    args: PMCArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    training_args: PMCConfig,
) -> list[dict]:
    """
    Rows with, for those without an answer, the model's own greedy one before unlearning: what it says is to be kept.

    Answers that are empty or cut at the limit would teach the model to say nothing or to stop anywhere: left out.
    """
    column = args.answer_column or "answer"
    missing = [i for i, row in enumerate(rows) if row.get(column) is None]
    if not missing:
        return rows
    questions = [rows[i][args.question_column] for i in missing]
    own = answer_questions(args, model, tokenizer, questions, training_args, "answers of retain rows that have none")
    answers = {i: text if ended else None for i, (text, ended) in zip(missing, own, strict=True)}
    answered = [
        {**row, column: answers[i]} if i in answers else row for i, row in enumerate(rows) if answers.get(i, column)
    ]
    PartialState().print(
        f"{len(missing)} retain rows had no answer and got the model's own; "
        f"{len(rows) - len(answered)} of them left out: empty, or cut at max_completion_length."
    )
    if not answered:
        raise RecipeError(["no retain row is left; raise max_completion_length or give answers"])
    return answered
