"""What chat templates draw from outside: variables, and the date, which the first run fixes for all later ones."""

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2.meta
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from pmc_rl.config import DataArguments
from pmc_rl.errors import RecipeError
from pmc_rl.models import recipe_in
from pmc_rl.prompts import format_prompt, is_chat, render_prompt

# what else a chat template is given
NOT_OURS = {"messages", "tools", "documents", "add_generation_prompt"}
NOT_OURS |= {"bos_token", "eos_token", "pad_token", "unk_token", "raise_exception", "strftime_now"}
DATES = (datetime(2001, 2, 3, 4, 5, 6), datetime(2012, 11, 23, 17, 18, 19))  # no directive writes them alike
DIRECTIVES = "aAbBcdDeFHIjmMpRSTuUVwWxXyY"
PROBE = "a date of the recipe"
ANOTHER = "give a prompt_template, or with tokenizer_name_or_path a tokenizer whose chat template"


def template_variables(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a chat template takes from `chat_template_kwargs`, and nothing else sets."""
    if not is_chat(args, tokenizer):
        return []
    # as transformers compiles it; its own tag only marks what the assistant says
    template = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", tokenizer.get_chat_template())
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    names = jinja2.meta.find_undeclared_variables(environment.parse(template))
    return sorted(names - NOT_OURS - tokenizer.special_tokens_map.keys() - (args.chat_template_kwargs or {}).keys())


def with_variable(args: DataArguments, name: str, value: Any) -> DataArguments:
    return replace(args, chat_template_kwargs={**(args.chat_template_kwargs or {}), name: value})


def pin_date(args: DataArguments, tokenizer: PreTrainedTokenizerBase, earlier: dict) -> None:
    """
    Where a chat template writes today's date, gives it a fixed one in `chat_template_kwargs`, and so in the recipe as
    run: the model is trained and audited with one prompt. It is that of `earlier`, the `chat_template_kwargs` of the
    run that goes on or made the model, else today's.
    """
    name = date_variable(args, tokenizer)
    if name is None:
        return
    if name not in earlier:
        [earlier] = broadcast_object_list([{name: _todays_date(args, tokenizer, name)}])  # one day for all processes
    args.chat_template_kwargs = with_variable(args, name, earlier[name]).chat_template_kwargs
    args.given["chat_template_kwargs"] = args.chat_template_kwargs
    PartialState().print(
        f"The chat template writes the date: {name} is {earlier[name]!r} from now on, as recipe.yaml says. Give it as "
        "chat_template_kwargs to other runs that are to be compared with this one."
    )


def date_variable(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """
    The variable of the chat template that fixes its date; None if the prompt is the same on any day. Raises
    [`RecipeError`] if the template takes the date from the clock alone.
    """
    if not is_chat(args, tokenizer) or not _is_dated(args, tokenizer):
        return None
    for name in template_variables(args, tokenizer):
        probed = with_variable(args, name, PROBE)
        try:
            if PROBE in _render(probed, tokenizer) and not _is_dated(probed, tokenizer):
                return name
        except Exception:  # a template is a program, and may want another value
            continue
    advice = f"{ANOTHER} has the date written out"
    if not args.system_prompt and not _is_dated(replace(args, system_prompt="Be brief."), tokenizer):
        advice = "give a system_prompt, with which it does not"
    raise RecipeError([f"the tokenizer's chat template writes the date of today, and no variable fixes it; {advice}"])


def pinned_by(folder: str | Path) -> dict:
    """`chat_template_kwargs` of the run of ours that a folder holds; none where it holds no run."""
    return recipe_in(folder).get("chat_template_kwargs") or {}


def _is_dated(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a prompt changes by the day: a macro before the template takes the place of its clock."""
    prompts = set()
    for date in DATES:
        written = "".join(f"|replace({f'%{c}'!r}, {date.strftime(f'%{c}')!r})" for c in DIRECTIVES)
        clock = f"{{%- macro strftime_now(format) -%}}{{{{ format|replace('%-', '%'){written} }}}}{{%- endmacro -%}}"
        prompts.add(_render(args, tokenizer, chat_template=clock + tokenizer.get_chat_template()))
    return len(prompts) > 1


def _todays_date(args: DataArguments, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """What the template writes today where it would else write the variable."""
    text, probed = _render(args, tokenizer), _render(with_variable(args, name, PROBE), tokenizer)
    start = probed.index(PROBE)
    length = len(PROBE) + (len(text) - len(probed)) // probed.count(PROBE)
    return text[start : start + length]


def _render(args: DataArguments, tokenizer: PreTrainedTokenizerBase, **kwargs) -> str:
    return render_prompt(tokenizer, format_prompt(args, tokenizer, "Who?"), **kwargs)
