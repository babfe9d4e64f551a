"""What an audit says on the terminal: tables of results.json's columns and of examples; and its examples.md."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.passes import Answer
from eval.report.page import escape
from eval.results import leakage_by_attack
from eval.sets import AuditData, QuestionSet

EXAMPLES = 20  # rows of each set that is not about forgetting in examples.md
Answers = dict[str, dict[str, list[Answer]]]  # by column and set


def data_lines(data: AuditData) -> list[str]:
    """The rows that an audit takes, by set, and what it leaves out."""
    lines = []
    for kind, sets in (("questions", data.questions), ("answers to compare", data.options)):
        lines.append(f"{kind}: {', '.join(f'{name} {len(rows.questions)}' for name, rows in sets.items())} rows")
    return lines + [f"Left out: {line}." for line in data.left_out]


def results_table(results: dict[str, dict]) -> Table:
    """Recall, utility and leakage, a column a model."""
    columns, first = results.values(), next(iter(results.values()))
    table = Table("", title="Greedy answers, ROUGE-L recall against the true answer")
    for name in results:
        table.add_column(name, justify="right")
    for key in ("unlearn_quality", "utility"):
        if first[key] is not None:
            table.add_row(f"{key.replace('_', ' ')} %", *(f"{column[key]:.1f}" for column in columns))
    table.add_section()
    for name, scores in first["sets"].items():
        recalls = (f"{column['sets'][name]['rougeL_recall']:.3f}" for column in columns)
        table.add_row(f"{name} recall (n={scores['n']})", *recalls)
    table.add_section()
    for name in first["sets"]:
        scores = [column["sets"][name] for column in columns]
        table.add_row(f"{name} answers: empty; that end", *(f"{s['empty']}; {s['ended']:.0%}" for s in scores))
    table.add_section()
    leakages = [leakage_by_attack(column) for column in columns]
    for attack in dict.fromkeys(attack for leakage in leakages for attack in leakage if attack != "greedy"):
        cells = (f"{leakage[attack]:.3f}" if attack in leakage else "-" for leakage in leakages)
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
    private = output_dir / "private"
    print(f"Private files left: {private} (hold what is to be forgotten; delete the folder when it has been read).")
    for name, value in audit["verdicts"].items():
        print(f"Verdict on {name}: {value['forgetting']}; calibration: {value['calibration']}.")
    known, count = results["before"]["known"]["questions"], results["before"]["known"]["of"]
    if known < count:
        others = "; the verdicts judge the others." if known else "."
        print(f"The model before did not know {count - known} of the {count} questions to forget{others}")
    Console().print(results_table(results))


def print_examples(questions: dict[str, QuestionSet], answers: Answers, count: int) -> None:
    """A few rows to forget on the terminal."""
    table = Table("question", "truth", *answers, title="Questions to forget")
    rows = questions["forget"]
    truths = rows.truths
    for i in range(min(count, len(rows.questions))):
        texts = [rows.questions[i], truths[i], *(answers[column]["forget"][i].text for column in answers)]
        table.add_row(*map(Text, texts), end_section=True)
    Console().print(table)


def examples_markdown(questions: dict[str, QuestionSet], answers: Answers) -> str:
    """Question, truth and each model's answer: all rows to forget, the first of the other sets."""
    lines = ["# Examples", "", "PRIVATE: holds what is to be forgotten. Delete it when it has been read.", ""]
    for name, rows in questions.items():
        lines += [f"## {name}", ""]
        truths = rows.truths
        for i in range(len(rows.questions) if name.startswith("forget") else min(EXAMPLES, len(rows.questions))):
            lines += [f"**{i}. {_lines(rows.questions[i])}**", "", f"- truth: {_lines(truths[i])}"]
            lines += [f"- {column}: {_lines(answers[column][name][i].text)}" for column in answers]
            lines.append("")
    return "\n".join(lines)


def _lines(text: str) -> str:
    """A text as it is within a line of Markdown, a line break as `<br>`."""
    return "<br>".join(map(escape, text.strip().splitlines()))
