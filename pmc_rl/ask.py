"""From a name to data: `python pmc_rl/ask.py MODEL SUBJECT ... --output FOLDER`. The model is asked, in English.

It writes questions about each subject and other phrasings of them; to be kept, the same questions about neighbours,
and some about everyday topics: forget.jsonl and keep.jsonl, to be read and edited before train.py gets them.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from pmc_rl.errors import RecipeError, all_problems, exit_on_recipe_error  # first: it switches telemetry off

# isort: split
import torch
from trl import ModelConfig

from pmc_rl.config import PMCConfig
from pmc_rl.models import check_model, load_end_ids, load_model_to_train, load_tokenizer
from pmc_rl.output import check_output_dir, write_text
from pmc_rl.questions import Questions, ask_about, ask_about_anything, find_neighbours, names, without_article
from pmc_rl.reading import read_columns
from pmc_rl.values import construct, read_yaml
from pmc_rl.writer import Writer
from rewards.text import script_aware_tokens

PAGE = """\
# Questions to forget, and questions to keep

PRIVATE: this folder holds what is to be forgotten. The model {model!r} wrote it; nobody has checked it.

**Read both files and edit them before use**: take out what is not about the subject, add rows of your own
above all. `answer` is what the model says now, right or wrong. Training reads no answer of `forget.jsonl`; the audit
takes them for the truth, so put the true ones in their place where you know them.

{counts}

## Left out

{dropped}
"""


def read_neighbours(path: str | None, subjects: list[str]) -> dict[str, list[str]]:
    """A YAML file with a list of names for each subject."""
    found = {name: construct(node) for name, _, node in read_yaml(path)} if path else {}
    errors = [f"{path}: {name!r} is none of the subjects {', '.join(subjects)}" for name in found.keys() - {*subjects}]
    for name, given in found.items():
        if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
            errors.append(f"{path}: {name}: no list of names, such as [the Lusitania, the Britannic]")
    if errors:
        raise RecipeError(errors)
    return found


def read_given(path: str | None) -> list[str]:
    """The `question` column of a file."""
    rows = read_columns("--from", path, None, None, ["question"], [])[0] if path else []
    if not all(isinstance(row["question"], str) for row in rows):
        raise RecipeError([f"--from: {path}: a question is no text"])
    return [row["question"] for row in rows]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("pmc_rl/ask.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", help="folder or Hub name of a chat model")
    add("subjects", nargs="+", help="what is to be forgotten, as questions name it: 'Stephen King' 'the Titanic'")
    add("--output", required=True, help="new folder for forget.jsonl, keep.jsonl and README.md")
    add("--count", type=int, help="questions to write about each subject (50; with --from 0)")
    add("--from", dest="given", metavar="FILE", help="file with a column `question`: questions that you have")
    add("--neighbours", metavar="FILE", help="YAML, a list of names for each subject; else the model is asked")
    add("--encoder", metavar="MODEL", help="model of sentence-transformers, by which equal meanings are told")
    add("--max_completion_length", type=int, default=96, help="tokens of an answer (96)")
    add("--generation_batch_size", type=int, default=128, help="texts at a time (128)")
    add("--seed", type=int, default=0)
    add("--load_in_4bit", action="store_true", help="the model's weights in 4 bit")
    args = parser.parse_args(argv)
    args.count = (0 if args.given else 50) if args.count is None else args.count
    lows = {"count": 0 if args.given else 1, "max_completion_length": 16, "generation_batch_size": 1}
    errors = [f"--{key}: at least {low}" for key, low in lows.items() if getattr(args, key) < low]
    errors += [f"{name!r}: a subject is given twice" for name, n in Counter(args.subjects).items() if n > 1]
    errors += [
        f"{name!r}: a subject without a name"
        for name in args.subjects
        if not script_aware_tokens(without_article(name))
    ]
    if errors:
        raise RecipeError(errors)
    return args


def load_writer(asked: argparse.Namespace) -> Writer:
    """The model, after all that can be wrong with it or the folder to write."""
    gpu = torch.cuda.is_available()
    dtype = "float32" if not gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    model_args = ModelConfig(model_name_or_path=asked.model, dtype=dtype, load_in_4bit=asked.load_in_4bit)
    args = PMCConfig(
        output_dir=asked.output,
        bf16=False,
        generation_batch_size=asked.generation_batch_size,
        seed=asked.seed,
    )
    with all_problems() as check:
        tokenizer = check(load_tokenizer, model_args, None)
        check(check_model, model_args, args)
        check(check_output_dir, args, model_args)
    if tokenizer.chat_template is None:
        raise RecipeError(
            [f"{asked.model!r} has no chat template: a base model is not asked, write questions yourself"]
        )
    end_ids = load_end_ids(model_args, tokenizer)
    model = load_model_to_train(model_args, args)
    return Writer(model, tokenizer, end_ids, args, asked.max_completion_length)


def main(argv: list[str]) -> None:
    """Names -> neighbours, questions, phrasings, answers -> forget.jsonl, keep.jsonl and a page about them."""
    asked = parse(argv)
    with all_problems() as check:
        named = check(read_neighbours, asked.neighbours, asked.subjects)
        given = check(read_given, asked.given)
        questions = check(Questions, asked.encoder)
    writer = load_writer(asked)
    neighbours = {name: named.get(name) or find_neighbours(writer, name) for name in asked.subjects}
    own: dict[str, list[str]] = {name: [] for name in asked.subjects}
    for text in given:
        if questions.add(text, None):
            own[next((name for name in asked.subjects if names(text, name)), asked.subjects[0])].append(text)
    forget, keep, counts = [], [], []
    for subject in asked.subjects:
        rows, kept = ask_about(
            writer, subject, own[subject], asked.count, neighbours[subject], asked.subjects, questions
        )
        forget, keep = forget + rows, keep + kept
        about = ", ".join(neighbours[subject])
        counts.append(f"- {subject}: to forget {len(rows)} questions; to keep {len(kept)}, about {about}")
    if not forget:
        reasons = ", ".join(f"{number} {reason}" for reason, number in questions.dropped.most_common())
        raise RecipeError([f"the model wrote no question to forget ({reasons}); write some and give them with --from"])
    others = ask_about_anything(writer, len(forget) // 2, asked.subjects, questions)
    keep += others
    counts.append(f"- anything else: to keep {len(others)}")
    dropped = [f"- {reason}: {number}" for reason, number in questions.dropped.most_common()]
    page = PAGE.format(model=asked.model, counts="\n".join(counts), dropped="\n".join(dropped) or "Nothing.")
    folder = Path(asked.output)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, lines in (("forget.jsonl", forget), ("keep.jsonl", keep)):
        write_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), 0o600)
    write_text(folder / "README.md", page, 0o600)
    print(page)
    print(f"{folder}/forget.jsonl, keep.jsonl and README.md are private: they hold what is to be forgotten.")


if __name__ == "__main__":
    with exit_on_recipe_error():
        main(sys.argv[1:])
