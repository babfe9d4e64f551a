"""Parts a report is made of, for HTML and Markdown alike, and how numbers and reasons are written in them."""

import json
from dataclasses import dataclass, field

from eval.report.plots import Panel

NO_VALUE = "–"


@dataclass
class Cell:
    """
    One cell of a table.

    `detail` stands beside the text in small, such as an interval; `title` has in full what is cut; `reason` says why
    there is no number and becomes a note below the table.
    """

    text: str
    detail: str = ""
    title: str = ""
    reason: str = ""


@dataclass
class Table:
    """
    Rows below a head; the first cell of a row names it, a row of one cell is a heading for the next ones.

    `words` says that the cells hold words rather than numbers.
    """

    head: list[Cell]
    rows: list[list[Cell]]
    words: bool = False
    kind = "table"

    @property
    def notes(self) -> dict[str, int]:
        """Reasons why numbers are missing, numbered."""
        reasons = dict.fromkeys(cell.reason for row in self.rows for cell in row if cell.reason)
        return {reason: number for number, reason in enumerate(reasons, 1)}


@dataclass
class Text:
    """A paragraph."""

    text: str
    kind = "text"


@dataclass
class Heading:
    """Of a part of a section."""

    text: str
    kind = "heading"


@dataclass
class Lines:
    """A list of sentences."""

    lines: list[str]
    kind = "lines"


@dataclass
class Terms:
    """Terms, each with what there is to say of it."""

    terms: list[tuple[str, str]]
    kind = "terms"


@dataclass
class Figure:
    """Panels side by side, or below each other on a narrow page, with one legend; not in Markdown."""

    panels: list[Panel]
    keys: list[tuple[str, str]] = field(default_factory=list)
    kind = "figure"


@dataclass
class Details:
    """What is shown on demand."""

    summary: str
    blocks: list
    kind = "details"


@dataclass
class VerdictCard:
    """Both verdicts on a model; `tone` is good, warn, bad or unsure."""

    model: str
    folder: str
    verdicts: list[tuple[str, str, str, list[str]]]  # label, tone, verdict, reasons
    kind = "verdict"


@dataclass
class LeakingText:
    """A question whose answer comes out, with the texts: in the private report only."""

    row: str
    texts: list[tuple[str, str]]
    kind = "leaking_text"


@dataclass
class Section:
    """A chapter with its anchor."""

    anchor: str
    title: str
    blocks: list


def number(value: float | None, pattern: str = ".3f", interval: list[float] | None = None) -> Cell:
    """A number and its interval; a dash for None."""
    if value is None:
        return Cell(NO_VALUE)
    return Cell(format(value, pattern), between(interval, pattern))


def between(interval: list[float] | None, pattern: str) -> str:
    """An interval in words, so that no sign is taken for a dash."""
    return "" if interval is None else f"{interval[0]:{pattern}} to {interval[1]:{pattern}}"


def no_number(reason: str) -> Cell:
    """In place of a number that cannot be had."""
    return Cell("not available", reason=reason)


def mean(value: dict) -> Cell:
    """The mean and interval of a summary, or why there is none."""
    if "not_available" in value:
        return no_number(value["not_available"])
    return number(value["mean"], interval=value["interval"])


def samples_a_question(run: dict) -> int:
    """How often an attack by repeated sampling asked each question."""
    return run["leaking"]["of"] // run["worst_case"]["n"]


def available(values: dict[str, dict]) -> tuple[dict[str, dict], list[Terms]]:
    """Of what the models have, by column: what is there; and a block that says what is not, and why."""
    there = {name: value for name, value in values.items() if "not_available" not in value}
    reasons: dict[str, list[str]] = {}
    for name, value in values.items():
        if name not in there:
            reasons.setdefault(value["not_available"], []).append(name)
    terms = [(", ".join(names), f"not available: {reason}") for reason, names in reasons.items()]
    return there, [Terms(terms)] if terms else []


def head(first: str, columns: list[str]) -> list[Cell]:
    """A table's head with a column a model."""
    return [Cell(first), *map(Cell, columns)]


def setting(value) -> str:
    """A value of the recipe as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
