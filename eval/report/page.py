"""A report written in Markdown as one HTML page that needs no other file: light and dark, figures inside."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

# an underscore inside a word is none
MARKDOWN_SIGNS = re.compile(r"[\\`*<>|\[\]~#&$]|(?<!\w)_|_(?!\w)")
# middle tones, which can be read on white and on black
COLOURS = ("#2f7fc1", "#d9662b", "#2a9d73", "#b35fae", "#a8912c", "#7a838f", "#2497a5", "#a06a45")
INK = "#808891"
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "pmc_rl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **{name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}


def environment() -> Environment:
    """Templates of reports, in Markdown; a name that is not there is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["md"] = escape
    return made


def escape(text: object) -> str:
    """Text as it is, on one line, none of it taken for Markdown."""
    return MARKDOWN_SIGNS.sub(r"\\\g<0>", " ".join(str(text).split()))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown: first column left, the others right; cells are Markdown."""
    head = list(head)
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def svg(figure: Figure) -> str:
    """A figure as SVG without a background, equal for equal figures."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def new_figure(width: float, height: float) -> Figure:
    """A figure in the reports' style, in inches."""
    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def html_page(title: str, text: str, figures: dict[str, str]) -> str:
    """
    Markdown as a whole page.

    Args:
        text (`str`): Markdown with tables; HTML in it is shown, not obeyed.
        figures (`dict[str, str]`): SVG by the file name under which the text shows it, `![caption](name)`.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    for name, picture in figures.items():
        body = re.sub(rf'<img src="{re.escape(name)}"[^>]*>', lambda _, own=picture: own, body)
    return environment().get_template("page.html.j2").render(title=Markup.escape(title), body=body)
