"""What must hold of every row, told before weights load: its prompt begins what is trained, and it is not too long."""

import os
from dataclasses import dataclass

import yaml
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pmc_rl.config import DataArguments
from pmc_rl.errors import RecipeError, one_line, shorten
from pmc_rl.prompts import (
    EncodedRow,
    answer_start,
    begin_answer,
    encode_prompt,
    encode_rows,
    end_of_answer,
    format_prompt,
    is_chat,
)
from pmc_rl.template_date import ANOTHER, template_variables, with_variable

STAND_IN = "Nobody knows that."  # where an answer may not be read, or is not known yet


@dataclass
class Limits:
    """How long a row may be, in tokens."""

    max_length: int | None  # prompt and answer; TRL cuts or drops what is longer
    max_completion_length: int  # an answer that a model makes
    context: int | None  # all that the model can read


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has positions for; None for those without positions, such as state-space models."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_prompt_format(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuses keys of chat prompts where prompts are text, chat templates that fail or drop the question, prompts with
    two begin tokens, and tokenizers that end every text.
    """
    chat, begin = is_chat(args, tokenizer), tokenizer.bos_token_id
    unused = [key for key in ("system_prompt", "chat_template_kwargs") if args.given.get(key)]
    if unused and not chat:
        why = "the tokenizer has no chat template" if tokenizer.chat_template is None else "prompt_template is given"
        raise RecipeError([f"{unused[0]}: not used, because {why}; remove it"])
    where = "the tokenizer's chat template" if chat else "prompt_template"
    advice = "see system_prompt and chat_template_kwargs, or give a prompt_template"
    try:
        ids = [encode_prompt(tokenizer, format_prompt(args, tokenizer, text)) for text in ("Who?", "Where?")]
    except Exception as error:  # a template is a program
        raise RecipeError([f"{where} fails ({one_line(error)}); {advice}"]) from error
    if chat and ids[0] == ids[1]:
        raise RecipeError([f"{where} leaves the question out; {advice}"])
    if begin is not None and ids[0][:2] == [begin, begin]:
        what = f"begins with {tokenizer.bos_token!r}, and so does every text of the tokenizer"
        raise RecipeError([f"{where}: {what}; remove it"])
    last, last_plain = (tokenizer("a", add_special_tokens=special)["input_ids"][-1:] for special in (True, False))
    if last != last_plain and not chat:
        what = f"the tokenizer adds {tokenizer.decode(last)!r} to the end of every text, so of every prompt"
        how = "AutoTokenizer.from_pretrained(..., add_eos_token=False).save_pretrained(FOLDER)"
        raise RecipeError([f"{what}; give tokenizer_name_or_path a folder with one that does not: {how}"])


def check_rows(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: list[int],
    key: str,
    rows: list[dict],
    limits: Limits,
) -> None:
    """
    Refuses rows of the recipe's `key` that are too long, or of which the model would learn something else than the
    answer and its end (any of `end_ids`) behind the prompt that it is asked with. A missing answer has a stand-in.
    """
    questions = [row[args.question_column] for row in rows]
    answers = [row.get(args.answer_column or "answer") for row in rows]
    texts = [STAND_IN if answer is None else answer for answer in answers]
    encoded = encode_rows(args, tokenizer, questions, texts)
    problems = [_problem(args, tokenizer, end_ids, *pair) for pair in zip(texts, encoded, strict=True)]
    wrong = [i for i, problem in enumerate(problems) if problem]
    errors, lengths = [], []
    if wrong:
        switch = _switch(args, tokenizer, end_ids, questions[wrong[0]], texts[wrong[0]])
        what, advice = problems[wrong[0]]
        advice = f"say chat_template_kwargs: {switch}" if switch else advice
        errors.append(f"{key}: {what}; {advice} ({_numbers(wrong, len(texts))})")
    elif questions and not _begins_as_the_whole(args, tokenizer, questions[0]):
        what = "the first words of an answer, where they are forced, stand otherwise than in the whole answer"
        errors.append(f"{key}: {what}; {ANOTHER} puts them there")
    for answer, row in zip(answers, encoded, strict=True):
        behind = len(row.ids) - end_of_answer(row.ids, len(row.prompt_ids), end_ids)  # what a template writes there
        made = len(row.prompt_ids) + limits.max_completion_length + behind
        lengths.append(made if answer is None else len(row.ids))
    longest = max(lengths, default=0)
    reads = f"{key}: the model reads at most {limits.context} tokens; shorten or remove rows"
    cuts = f"max_length: {limits.max_length} is too short for rows of {key}, which would be cut or dropped"
    for limit, what in ((limits.context, reads), (limits.max_length, f"{cuts}; say {longest}")):
        if long := [i for i, length in enumerate(lengths) if limit is not None and length > limit]:
            counted = "an answer of the model's own as long as max_completion_length allows"
            errors.append(f"{what}: up to {longest} tokens, {counted} ({_numbers(long, len(lengths))})")
            break
    if errors:
        raise RecipeError(errors)


def _numbers(rows: list[int], total: int) -> str:
    first = ", ".join(map(str, rows[:3]))
    return f"{len(rows)} of {total} rows: {first}{', ...' if len(rows) > 3 else ''}, counted from 0"


def _problem(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], answer: str, row: EncodedRow
) -> tuple[str, str] | None:
    """What is wrong with a row, and what helps; None if nothing is."""
    advice = "let prompt_template end without white space, and completion_template begin with it"
    if is_chat(args, tokenizer):
        before, found, behind = row.text[len(row.prompt) :].partition(answer.strip())
        ends = [behind.index(token) for token in map(tokenizer.decode, end_ids) if token in behind]
        advice = f"{ANOTHER} does not"
        if not row.text.startswith(row.prompt):
            end = _short(row.prompt[len(os.path.commonprefix([row.prompt, row.text])) :])
            return f"the chat template ends a prompt with {end}, but does not put that before a given answer", advice
        if not found:
            return "the chat template changes the answer", advice
        if before.strip():
            return f"the chat template puts {_short(before)} between the prompt and a given answer", advice
        if not ends or behind[: min(ends)].strip():
            what = "behind an answer, which begins with no end token of model or tokenizer"
            advice = "add the id of the token that ends a turn to eos_token_id in the model's generation_config.json"
            return f"the chat template puts {_short(behind)} {what}", f"{advice}, or give a prompt_template"
        advice = f"{ANOTHER} ends a prompt with one line break, or with a token of its own"
    if row.ids[: len(row.prompt_ids)] != row.prompt_ids:
        return "the tokenizer joins the end of the prompt with the beginning of the answer", advice
    return None


def _short(text: str) -> str:
    return repr(shorten(text, 60))


def _begins_as_the_whole(args: DataArguments, tokenizer: PreTrainedTokenizerBase, question: str) -> bool:
    """Whether the first words of an answer, put into a prompt, stand where the whole answer has them."""
    [row] = encode_rows(args, tokenizer, [question], [STAND_IN])
    first_words = STAND_IN.rsplit(" ", 1)[0]
    prompt = format_prompt(args, tokenizer, question)
    begun = encode_prompt(tokenizer, begin_answer(prompt, first_words, answer_start(args, tokenizer)))
    return len(begun) > len(row.prompt_ids) and begun == row.ids[: len(begun)]


def _switch(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], question: str, answer: str
) -> str | None:
    """`chat_template_kwargs` with one variable of the template more, with which a row is right, as YAML; or None."""
    for name in template_variables(args, tokenizer):
        for value in (False, True):
            switched = with_variable(args, name, value)
            try:
                [row] = encode_rows(switched, tokenizer, [question], [answer])
                if _problem(switched, tokenizer, end_ids, answer, row) is None:
                    return yaml.safe_dump(switched.chat_template_kwargs, default_flow_style=True, width=10**6).strip()
            except Exception:  # a template is a program, and may want another value
                continue
    return None
