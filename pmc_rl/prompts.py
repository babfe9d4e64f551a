"""Questions and answers as the model reads them: TRL's columns by template, token ids. No model."""

import os
from typing import Any

import pyarrow
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pmc_rl.config import DataArguments, PMCArguments
from pmc_rl.values import RecipeError, one_line
from rewards.text import split_after, unicode_words

DEFAULT_PROMPT_TEMPLATE = "Question: {question}\nAnswer:"


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
