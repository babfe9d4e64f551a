"""Questions and answers as the model reads them: TRL's columns by template, token ids. No model."""

import os
from typing import Any

import pyarrow
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, PMCArguments
from pmc_rl.errors import RecipeError, one_line
from rewards.text import split_after, unicode_words

DEFAULT_PROMPT_TEMPLATE = "Question: {question}\nAnswer:"


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
    the original answer; shorter answers give fewer rows. Where a script has no spaces, a word is a character.

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
        for count in range(1, words + 1):
            given, rest = split_after(row["original_completion"], count)
            if not unicode_words(rest):  # nothing, or only a sign, that no reward could compare
                break
            begun = begin_answer(row, given, answer_start)
            new.append({**begun, "pmc_id": next_id, "original_completion": rest})
            next_id += 1
    return rows + new


def begin_answer(row: dict[str, Any], words: str, answer_start: str) -> dict[str, Any]:
    """A row whose prompt goes on with the first words of an answer; `answer_start` as in [`prefilled_rows`]."""
    if isinstance(row["prompt"], str):
        return {**row, "prompt": row["prompt"] + answer_start + words}
    return {**row, "prompt": [*row["prompt"], {"role": "assistant", "content": words}]}


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


def encode_rows(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, questions: list[str], answers: list[str]
) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt as it is sampled from, and of prompt and answer as TRL's SFT preparation has them."""
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
    return list(zip(prompt_ids, ids, strict=True))


def encode_answers(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    answers: list[str],
    end_ids: list[int],
) -> list[tuple[list[int], list[int]]]:
    """
    Prompt ids and answer ids of each row, as [`encode_rows`] has them, end token included.

    Args:
        end_ids (`list[int]`): every id that ends an answer. In a chat the first one does, as in sampling: what the
            template writes behind it is no part of the answer.
    """
    encoded = []
    for prompt_ids, ids in encode_rows(args, tokenizer, questions, answers):
        # an answer of a strange kind may be joined with the end of the prompt, or be changed by the chat template
        shared = len(os.path.commonprefix([prompt_ids, ids]))
        end = end_of_answer(ids, shared, end_ids) if is_chat(args, tokenizer) else len(ids)
        encoded.append((ids[:shared], ids[shared:end]))
    return encoded


def end_of_answer(ids: list[int], start: int, end_ids: list[int]) -> int:
    """Where the answer that begins at `start` stops, behind its end token; the length where it has none."""
    return next((i + 1 for i in range(start, len(ids)) if ids[i] in end_ids), len(ids))
