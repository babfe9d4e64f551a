"""What an audit shows of texts and on the terminal: tables of results.json's columns, examples in Markdown."""

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.data import AuditData, QuestionSet
from eval.passes import Answer
from eval.verdict import leakage_by_attack

EXAMPLES = 20  # rows of each set that is not about forgetting in examples.md


def data_lines(data: AuditData) -> list[str]:
    """The rows that an audit takes, by set, and what it leaves out."""
    kinds = {"questions": data.questions, "answers to compare": data.options}
    lines = [
        f"{kind}: {', '.join(f'{name} {len(rows.questions)}' for name, rows in sets.items())} rows"
        for kind, sets in kinds.items()
    ]
    return lines + [f"Left out: {line}." for line in data.left_out]


def results_table(results: dict[str, dict]) -> Table:
    """Recall, utility and leakage, a column a model."""
    table = Table(title="Greedy answers, ROUGE-L recall against the true answer")
    table.add_column("")
    for column in results:
        table.add_column(column, justify="right")
    first = next(iter(results.values()))

    def add(label: str, value) -> None:
        table.add_row(label, *(value(column) for column in results.values()))

    for key in ("unlearn_quality", "utility"):
        if first[key] is not None:
            add(f"{key.replace('_', ' ')} %", lambda column, key=key: f"{column[key]:.1f}")
    table.add_section()
    for name, scores in first["sets"].items():
        label = f"{name} recall (n={scores['n']})"
        add(label, lambda column, name=name: f"{column['sets'][name]['rougeL_recall']:.3f}")
    table.add_section()
    add("empty answers", lambda column: str(sum(scores["empty"] for scores in column["sets"].values())))
    for name in first["sets"]:
        add(f"{name} answers that end", lambda column, name=name: f"{column['sets'][name]['ended']:.0%}")
    leakages = {name: leakage_by_attack(column) for name, column in results.items()}
    attacks = list(dict.fromkeys(attack for leakage in leakages.values() for attack in leakage if attack != "greedy"))
    if attacks:
        table.add_section()
        for attack in attacks:
            cells = [f"{leakage[attack]:.3f}" if attack in leakage else "-" for leakage in leakages.values()]
            table.add_row(f"worst recall under {attack}", *cells)
    return table


def print_outcome(results: dict[str, dict], audit: dict, output_dir: Path) -> None:
    """What was left out, what to be careful with, what was written, the verdicts and, last, the table."""
    for line in audit["left_out"]:
        print(f"Left out: {line}.")
    for name, column in results.items():
        for set_name, scores in column["sets"].items():
            if scores["ended"] < 0.5:
                print(
                    f"Warning: {1 - scores['ended']:.0%} of the answers {name} to {set_name} hit "
                    "max_completion_length; a run-on answer has recall for free."
                )
    print(f"Wrote {output_dir / 'results.json'}, report.html and report.md beside it, and a model card.")
    print(
        f"Private files left: {output_dir / 'private'} (hold what is to be forgotten; delete the folder when it has "
        "been read)."
    )
    for name, value in audit["verdicts"].items():
        print(f"Verdict on {name}: {value['forgetting']}; calibration: {value['calibration']}.")
    known = results["before"]["known"]
    if known["questions"] < known["of"]:
        others = "; the verdicts judge the others." if known["questions"] else "."
        print(
            f"The model before did not know {known['of'] - known['questions']} of the {known['of']} questions to "
            f"forget{others}"
        )
    Console().print(results_table(results))


def print_examples(questions: dict[str, QuestionSet], answers: dict[str, dict[str, list[Answer]]], count: int) -> None:
    """A few rows to forget on the terminal; `answers` are by column and set."""
    table = Table(title="Questions to forget")
    for column in ("question", "truth", *answers):
        table.add_column(column)
    rows = questions["forget"]
    for i in range(min(count, len(rows.questions))):
        texts = [rows.questions[i], rows.answers[i], *(answers[column]["forget"][i].text for column in answers)]
        table.add_row(*map(Text, texts), end_section=True)
    Console().print(table)


def examples_markdown(questions: dict[str, QuestionSet], answers: dict[str, dict[str, list[Answer]]]) -> str:
    """Question, truth and each model's answer: all rows to forget, the first of the other sets."""
    lines = ["# Examples", "", "PRIVATE: holds what is to be forgotten. Delete it when it has been read.", ""]
    for name, rows in questions.items():
        lines += [f"## {name}", ""]
        for i, (question, truth) in enumerate(zip(rows.questions, rows.answers, strict=True)):
            if i == EXAMPLES and not name.startswith("forget"):
                break
            lines += [f"**{i}. {plain_markdown(question)}**", "", f"- truth: {plain_markdown(truth)}"]
            lines += [f"- {column}: {plain_markdown(answers[column][name][i].text)}" for column in answers]
            lines.append("")
    return "\n".join(lines)


def plain_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line: its marks are escaped, a line break is `<br>`."""
    return "<br>".join(re.sub(r"([\\`*_\[\]<>&~|$])", r"\\\1", line.strip()) for line in text.strip().splitlines())
