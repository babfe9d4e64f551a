"""What must hold of every row, told before weights load: its prompt begins what is trained, and it is not too long."""

import os
from dataclasses import dataclass, replace

import yaml
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pmc_rl.config import DataArguments
from pmc_rl.errors import RecipeError, one_line
from pmc_rl.prompts import (
    answer_start,
    begin_answer,
    encode_prompt,
    encode_rows,
    end_of_answer,
    format_completion,
    format_prompt,
    is_chat,
)
from pmc_rl.template_date import ANOTHER, template_variables

STAND_IN = "Nobody knows that."  # where an answer may not be read, or is not known yet


def check_prompt_format(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuses keys of chat prompts where prompts are text, chat templates that fail or drop the question, and prompts
    with two begin tokens.
    """
    unused = [key for key in ("system_prompt", "chat_template_kwargs") if args.given.get(key)]
    if unused and not is_chat(args, tokenizer):
        why = "the tokenizer has no chat template" if tokenizer.chat_template is None else "prompt_template is given"
        raise RecipeError([f"{unused[0]}: not used, because {why}; remove it"])
    advice = "see system_prompt and chat_template_kwargs, or give a prompt_template"
    try:
        ids = [encode_prompt(tokenizer, format_prompt(args, tokenizer, text)) for text in ("Who?", "Where?")]
    except Exception as error:  # a template is a program
        raise RecipeError([f"the tokenizer's chat template fails ({one_line(error)}); {advice}"]) from error
    if is_chat(args, tokenizer) and ids[0] == ids[1]:
        raise RecipeError([f"the tokenizer's chat template leaves the question out; {advice}"])
    if tokenizer.bos_token_id is not None and ids[0][:2] == [tokenizer.bos_token_id] * 2:
        where = "the tokenizer's chat template" if is_chat(args, tokenizer) else "prompt_template"
        raise RecipeError(
            [f"{where}: begins with {tokenizer.bos_token!r}, and so does every text of the tokenizer; remove it"]
        )


@dataclass
class Limits:
    """
    How long a row may be, in tokens.

    Args:
        max_length (`int`, *optional*): of prompt and answer; TRL cuts or drops what is longer.
        max_completion_length (`int`): of an answer that a model makes.
        context (`int`, *optional*): of all that the model can read.
    """

    max_length: int | None
    max_completion_length: int
    context: int | None


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has positions for; None for those without positions, such as state-space models."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_rows(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: list[int],
    key: str,
    rows: list[dict],
    limits: Limits,
) -> None:
    """
    Refuses rows of which the model would learn something else than the answer and its end behind the prompt that it is
    asked with, and rows that are too long.

    Args:
        end_ids (`list[int]`): every id that ends an answer.
        key (`str`): of the recipe, where the rows come from.
        rows (`list[dict]`): with an answer, or with none where the model makes it or it may not be read.
    """
    questions = [row[args.question_column] for row in rows]
    answers = [row.get(args.answer_column or "answer") for row in rows]
    texts = [STAND_IN if answer is None else answer for answer in answers]
    encoded = encode_rows(args, tokenizer, questions, texts)
    problems = [
        _problem(args, tokenizer, end_ids, question, text, *ids)
        for question, text, ids in zip(questions, texts, encoded, strict=True)
    ]
    wrong = [i for i, problem in enumerate(problems) if problem]
    errors = []
    if wrong:
        first = wrong[0]
        what, advice = problems[first]
        switch = _switch(args, tokenizer, end_ids, questions[first], texts[first])
        advice = f"say chat_template_kwargs: {switch}" if switch else advice
        errors.append(f"{key}: {what}; {advice} ({_numbers(wrong, len(texts))})")
    elif questions:
        errors += _begun_problem(args, tokenizer, key, questions[0])
    lengths = []
    for answer, (prompt_ids, ids) in zip(answers, encoded, strict=True):
        behind = len(ids) - end_of_answer(ids, len(prompt_ids), end_ids)  # a template may write more than the end
        own = len(prompt_ids) + limits.max_completion_length + behind
        lengths.append(len(ids) if answer is not None else own)
    errors += _too_long(key, lengths, limits)
    if errors:
        raise RecipeError(errors)


def _numbers(rows: list[int], total: int) -> str:
    first = ", ".join(map(str, rows[:3]))
    return f"{len(rows)} of {total} rows: {first}{', ...' if len(rows) > 3 else ''}, counted from 0"


def _too_long(key: str, lengths: list[int], limits: Limits) -> list[str]:
    longest = max(lengths, default=0)
    with_answer = "with the longest answer that max_completion_length allows, where it is the model's own"
    if limits.context is not None and longest > limits.context:
        rows = [i for i, length in enumerate(lengths) if length > limits.context]
        return [
            f"{key}: the model reads at most {limits.context} tokens; shorten or remove the rows that have more, or "
            f"lower max_completion_length: up to {longest}, {with_answer} ({_numbers(rows, len(lengths))})"
        ]
    if limits.max_length is not None and longest > limits.max_length:
        rows = [i for i, length in enumerate(lengths) if length > limits.max_length]
        return [
            f"max_length: {limits.max_length} is too short for rows of {key}, which would be cut or dropped; say "
            f"{longest}, or shorten or remove them: up to {longest} tokens, {with_answer} "
            f"({_numbers(rows, len(lengths))})"
        ]
    return []


def _problem(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: list[int],
    question: str,
    answer: str,
    prompt_ids: list[int],
    ids: list[int],
) -> tuple[str, str] | None:
    """What is wrong with a row, and what helps; None if nothing is."""
    row = format_prompt(args, tokenizer, question)
    if is_chat(args, tokenizer):
        problem = _template_problem(args, tokenizer, end_ids, row, answer)
        if problem is not None:
            return problem
        advice = f"{ANOTHER} ends a prompt with one line break, or with a token of its own"
    elif tokenizer("a")["input_ids"][-1:] != tokenizer("a", add_special_tokens=False)["input_ids"][-1:]:
        added = tokenizer.decode(tokenizer("a")["input_ids"][-1:])
        return (
            f"the tokenizer adds {added!r} to the end of every text, so of every prompt",
            "give tokenizer_name_or_path a folder with one that does not: "
            "AutoTokenizer.from_pretrained(..., add_eos_token=False).save_pretrained(FOLDER)",
        )
    elif row["prompt"] != row["prompt"].rstrip():
        advice = "let prompt_template end without white space, and completion_template begin with it"
    else:
        advice = "let completion_template begin with a space or a line break"
    if ids[: len(prompt_ids)] != prompt_ids:
        return "the tokenizer joins the end of the prompt with the beginning of the answer", advice
    return None


def _template_problem(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], row: dict, answer: str
) -> tuple[str, str] | None:
    """As [`_problem`], of what a chat template writes around an answer."""
    kwargs = {"tokenize": False, **row.get("chat_template_kwargs", {})}
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **kwargs)
    conversation = row["prompt"] + format_completion(args, tokenizer, answer)["completion"]
    whole = tokenizer.apply_chat_template(conversation, **kwargs)
    advice = f"{ANOTHER} does not"
    if not whole.startswith(prompt):
        end = _short(prompt[len(os.path.commonprefix([prompt, whole])) :])
        return f"the chat template ends a prompt with {end}, but does not put that before a given answer", advice
    before, found, behind = whole[len(prompt) :].partition(answer.strip())
    if not found:
        return "the chat template changes the answer", advice
    if before.strip():
        return f"the chat template puts {_short(before)} between the prompt and a given answer", advice
    ends = [behind.index(token) for token in map(tokenizer.decode, end_ids) if token in behind]
    if not ends or behind[: min(ends)].strip():
        return (
            f"the chat template puts {_short(behind)} behind an answer, which begins with no end token of model or "
            "tokenizer",
            "add the id of the token that ends a turn to eos_token_id in the model's generation_config.json, or give "
            "a prompt_template",
        )
    return None


def _begun_problem(args: DataArguments, tokenizer: PreTrainedTokenizerBase, key: str, question: str) -> list[str]:
    """Whether the first words of an answer, put into a prompt, stand where the whole answer has them."""
    row = format_prompt(args, tokenizer, question)
    start = answer_start(args, tokenizer)
    begun = encode_prompt(tokenizer, begin_answer(row, STAND_IN.rsplit(" ", 1)[0], start))
    [(prompt_ids, ids)] = encode_rows(args, tokenizer, [question], [STAND_IN])
    if len(begun) > len(prompt_ids) and begun == ids[: len(begun)]:
        return []
    what = "the first words of an answer, where they are forced, stand otherwise than in the whole answer"
    return [f"{key}: {what}; {ANOTHER} puts them there"]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _switch(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], question: str, answer: str
) -> str | None:
    """`chat_template_kwargs` with one variable of the template more, with which a row is right, as YAML; or None."""
    for name in template_variables(args, tokenizer):
        for value in (False, True):
            kwargs = {**(args.chat_template_kwargs or {}), name: value}
            switched = replace(args, chat_template_kwargs=kwargs)
            try:
                [ids] = encode_rows(switched, tokenizer, [question], [answer])
                if _problem(switched, tokenizer, end_ids, question, answer, *ids) is None:
                    return yaml.safe_dump(kwargs, default_flow_style=True, width=10**6).strip()
            except Exception:  # a template is a program, and may want another value
                continue
    return None
