"""Questions and answers as the model reads them: TRL's columns by template, texts, token ids. No model."""

import os
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, PMCArguments
from pmc_rl.errors import RecipeError, one_line
from rewards.text import names_in, question_of, split_after, unicode_words, words

DEFAULT_PROMPT_TEMPLATE = "Question: {question}\nAnswer:"


class EncodedRow(NamedTuple):
    """The prompt as it is sampled from, and prompt and answer as TRL's SFT preparation has them: texts, then ids."""

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]


def is_chat(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Messages by the chat template, unless there is none or the recipe gives a `prompt_template` of its own."""
    return tokenizer.chat_template is not None and args.prompt_template is None


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
    prompts = [format_prompt(args, tokenizer, row[args.question_column]) for row in rows]
    further = [{"pmc_id": i} | {name: row[name] for name in columns} for i, row in enumerate(rows)]
    try:
        return Dataset.from_list([prompt | rest for prompt, rest in zip(prompts, further, strict=True)])
    except (pyarrow.ArrowException, OverflowError) as error:
        what = f"a column holds values of several types, or too large ones ({one_line(error)})"
        raise RecipeError([f"reward_columns: {what}"]) from error


def answered_dataset(args: DataArguments, tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> Dataset:
    """Rows with answers as TRL's `prompt` and `completion`, in memory."""
    prompts = [format_prompt(args, tokenizer, row[args.question_column]) for row in rows]
    completions = [format_completion(args, tokenizer, row[args.answer_column or "answer"]) for row in rows]
    return Dataset.from_list([prompt | completion for prompt, completion in zip(prompts, completions, strict=True)])


def visited_row(
    row: dict[str, Any], visit: int, share: float, seed: int, num_questions: int, answer_start: str
) -> dict[str, Any]:
    """
    A forget row as it is asked at its `visit` (from 0): as it is, or, at a `share` of the visits, evenly spread, with
    the first words of its original answer at the end of the prompt, what follows them as the original answer, and an
    id of its own. How many words is drawn anew each time, from one up to all but the last, each number as likely.
    `answer_start` as in [`begin_answer`].
    """
    phase = np.random.default_rng([seed, row["pmc_id"]]).random()
    if int((visit + 1) * share + phase) == int(visit * share + phase):
        return row
    last = max(1, len(words(row["original_completion"])) - 1)
    cut = int(np.random.default_rng([seed, row["pmc_id"], visit]).integers(1, last, endpoint=True))
    given, rest = split_after(row["original_completion"], cut)
    if not unicode_words(rest):  # nothing, or only a sign, that no reward could compare
        return row
    begun = begin_answer(row, given, answer_start)
    return {**begun, "pmc_id": row["pmc_id"] + cut * num_questions, "original_completion": rest}


def begin_answer(row: dict[str, Any], words: str, answer_start: str) -> dict[str, Any]:
    """A row whose prompt goes on with the first words of an answer, in a text behind `answer_start`."""
    if isinstance(row["prompt"], str):
        return {**row, "prompt": row["prompt"] + answer_start + words}
    return {**row, "prompt": [*row["prompt"], {"role": "assistant", "content": words}]}


def answer_start(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between prompt and answer: in a text what the completion template begins with, in a chat nothing."""
    return "" if is_chat(args, tokenizer) else args.completion_template.format(answer="\0").split("\0")[0]


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], **kwargs) -> str:
    """
    A row's prompt as text. A chat ends where the answer begins, or within it where its last message is the
    assistant's; `kwargs` are further ones of `apply_chat_template`.
    """
    if isinstance(row["prompt"], str):
        return row["prompt"]
    begun = row["prompt"][-1]["role"] == "assistant"
    kwargs |= {"tokenize": False, "add_generation_prompt": not begun, "continue_final_message": begun}
    return tokenizer.apply_chat_template(row["prompt"], **row.get("chat_template_kwargs", {}), **kwargs)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Token ids of a row's prompt, as TRL's SFT preparation makes them."""
    is_text = isinstance(row["prompt"], str)
    return tokenizer(render_prompt(tokenizer, row), add_special_tokens=is_text)["input_ids"]


def encode_rows(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, questions: list[str], answers: list[str]
) -> list[EncodedRow]:
    if not questions:
        return []
    prompts, texts = [], []
    for question, answer in zip(questions, answers, strict=True):
        row, completion = format_prompt(args, tokenizer, question), format_completion(args, tokenizer, answer)
        text = row["prompt"] + completion["completion"]
        if is_chat(args, tokenizer):
            text = tokenizer.apply_chat_template(text, tokenize=False, **row.get("chat_template_kwargs", {}))
        elif not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
        prompts.append(render_prompt(tokenizer, row))
        texts.append(text)
    ids = tokenizer(prompts + texts, add_special_tokens=not is_chat(args, tokenizer))["input_ids"]
    return [EncodedRow(*row) for row in zip(prompts, texts, ids[: len(texts)], ids[len(texts) :], strict=True)]


def encode_answers(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    answers: list[str],
    end_ids: list[int],
) -> list[tuple[list[int], list[int]]]:
    """
    Prompt ids and answer ids of each row, end token included. In a chat the first of `end_ids`, all ids that end an
    answer, does so, as in sampling: what the template writes behind it is no part of the answer.
    """
    encoded = []
    for row in encode_rows(args, tokenizer, questions, answers):
        # an answer of a strange kind may be joined with the end of the prompt, or be changed by the chat template
        shared = len(os.path.commonprefix([row.prompt_ids, row.ids]))
        end = end_of_answer(row.ids, shared, end_ids) if is_chat(args, tokenizer) else len(row.ids)
        encoded.append((row.ids[:shared], row.ids[shared:end]))
    return encoded


def end_of_answer(ids: list[int], start: int, end_ids: list[int]) -> int:
    """Where the answer that begins at `start` stops, behind its end token; the length where it has none."""
    return next((i + 1 for i in range(start, len(ids)) if ids[i] in end_ids), len(ids))


def name_tokens(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Ids of the tokens that begin a name of a row's original answer which its question does not hold, as it stands
    there and alone."""
    names = names_in(question_of(row["prompt"]), row["original_completion"])
    texts = [row["original_completion"], *(name for _, name in names)]
    begins = [[start for start, _ in names], *([0] for _ in names)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    found = set()
    for ids, spans, starts in zip(encoded["input_ids"], encoded["offset_mapping"], begins, strict=True):
        found.update(ids[i] for i, (first, end) in enumerate(spans) if any(first <= start < end for start in starts))
    return sorted(found)


def decode_completion(tokenizer, completion_ids: list[int]) -> str:
    """The text of an answer, without end tokens and outer white space."""
    return tokenizer.decode(completion_ids, skip_special_tokens=True).strip()
