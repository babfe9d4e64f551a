"""Asks a chat model every question of pool.yml, and writes the data of the run from the facts that it knows.

Run: python recipes/smollm2/facts/check_facts.py [--model FOLDER] [--output_dir FOLDER] [--replies FILE]
A fact is known if the greedy replies to two of its questions for training and to two of its further ones hold its key
(as whole words, in any case) and end by themselves: a reply cut short teaches a model never to end. Only those are
written. FILE keeps the replies; a question that has one is not asked again, nor one of a fact that is not known.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pmc_rl.config import DataArguments  # first: pmc_rl switches telemetry off
from pmc_rl.generation import generate_completions
from pmc_rl.models import load_end_ids, load_model, load_tokenizer
from pmc_rl.prompts import decode_completion, encode_prompt, format_prompt

# isort: split
import torch
import yaml
from trl import ModelConfig

HERE = Path(__file__).parent


class Fact(NamedTuple):
    """A fact of the pool: questions for training, then as many further ones; spellings of the key; wrong ones."""

    part: str
    area: str
    questions: list[str]
    answer: str
    keys: list[str]
    wrong: list[str]


def read_pool() -> Iterator[Fact]:
    for group in yaml.safe_load((HERE / "pool.yml").read_text(encoding="utf-8")):
        names = list(dict.fromkeys(key.split("|")[0] for key, *_ in group["facts"].values()))
        for subject, (key, *wrong) in group["facts"].items():
            keys = key.split("|")
            questions = [text.format(subject) for text in group["questions"] + group["further"]]
            answer = group["answer"].format(subject, keys[0])
            wrong = wrong or (names * 2)[names.index(keys[0]) + 1 :][:3]
            yield Fact(group["part"], group["area"], questions, answer[0].upper() + answer[1:], keys, wrong)


def ask(model, tokenizer, end_ids: list[int], questions: list[str]) -> dict[str, str]:
    """Greedy replies, asked through the model's chat template; nothing in place of one that does not end by itself."""
    prompt_ids = [encode_prompt(tokenizer, format_prompt(DataArguments(), tokenizer, text)) for text in questions]
    lengths = {"max_completion_length": 48, "generation_batch_size": 32}
    completions = generate_completions(model, prompt_ids, **lengths, end_ids=end_ids, progress="asking")
    said = [decode_completion(tokenizer, ids) if ids[-1] in end_ids else "" for ids in completions]
    return dict(zip(questions, said, strict=True))


def is_right(fact: Fact, reply: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(key)}(?!\w)", reply, re.IGNORECASE) for key in fact.keys)


def halves(fact: Fact) -> tuple[list[str], list[str]]:
    count = len(fact.questions) // 2
    return fact.questions[:count], fact.questions[count:]


def next_question(fact: Fact, replies: dict[str, str]) -> list[str]:
    """The first question without a reply; none of a fact that can no longer be known."""
    possible = [sum(q not in replies or is_right(fact, replies[q]) for q in half) for half in halves(fact)]
    return [q for q in fact.questions if q not in replies][:1] if min(possible) >= 2 else []


def rows_of(fact: Fact, replies: dict[str, str]) -> list[dict]:
    """
    Two rows of a fact, each a question for training and a further one. If the model does not know it there is none, of
    what is to be retained two questions without an answer.
    """
    key = fact.keys[0]
    right = [[q for q in half if q in replies and is_right(fact, replies[q])] for half in halves(fact)]
    rows = [
        {"question": question, "answer": key if fact.part == "utility" else fact.answer}  # as TOFU's world_facts
        | {"paraphrased_question": further, "paraphrased_answer": key, "perturbed_answer": fact.wrong}
        | {"key": key, "area": fact.area, "own_answer": replies[question]}
        for question, further in zip(*right, strict=False)
    ]
    if len(rows) >= 2:
        return rows[:2]
    # what the model says of what lies next to the forgotten is to be kept, right or wrong: training asks it itself
    return [{"question": text, "area": fact.area} for text in fact.questions[:2]] if fact.part == "retain" else []


def print_table(facts: list[Fact], replies: dict[str, str]) -> None:
    """By area: how many facts there are and are known; by question, how many replies are right of how many."""
    print("| part | area | facts | known | right / asked, by question |\n" + "| --- " * 5 + "|")
    for part, area in dict.fromkeys((fact.part, fact.area) for fact in facts):
        group = [fact for fact in facts if (fact.part, fact.area) == (part, area)]
        columns = [[(f, f.questions[i]) for f in group] for i in range(len(group[0].questions))]
        right = [[is_right(fact, replies[q]) for fact, q in column if q in replies] for column in columns]
        known = sum("key" in row for fact in group for row in rows_of(fact, replies)) // 2
        counts = ", ".join(f"{sum(column)}/{len(column)}" for column in right)
        print(f"| {part} | {area} | {len(group)} | {known} | {counts} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--output_dir", type=Path, default=HERE / "data")
    parser.add_argument("--replies", type=Path, help="file to keep replies in")
    args = parser.parse_args()

    model_args = ModelConfig(model_name_or_path=args.model)
    tokenizer = load_tokenizer(model_args, None)
    model, end_ids = load_model(model_args, torch.float32, torch.device("cpu")), load_end_ids(model_args, tokenizer)
    pool, replies = list(read_pool()), {}
    facts = [fact for fact in pool if fact.part != "holdout"]
    if args.replies and args.replies.exists():
        replies = json.loads(args.replies.read_text(encoding="utf-8"))
    while new := {question for fact in facts for question in next_question(fact, replies)}:
        replies |= ask(model, tokenizer, end_ids, sorted(new))
    if args.replies:
        args.replies.write_text(json.dumps(replies, ensure_ascii=False, indent=0), encoding="utf-8")
    print_table(facts, replies)
    # nobody knows what does not exist
    replies |= {q: fact.answer for fact in pool if fact.part == "holdout" for q in fact.questions}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(fact.part for fact in pool):
        rows = [row for fact in pool if fact.part == part for row in rows_of(fact, replies)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.output_dir / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{part}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
