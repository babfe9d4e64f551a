"""A report written in Markdown as one HTML page that needs no other file: light and dark, figures inside."""

import io
import json
import re
from collections.abc import Iterable
from functools import cache
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
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pmc_rl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **{name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}


@cache
def environment() -> Environment:
    """Templates of reports, in Markdown; a name that is not there is an error."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    made = Environment(loader=loader, undefined=StrictUndefined, **blocks)
    made.filters |= {"md": escape, "setting": setting}
    return made


def setting(value: object) -> str:
    """A value of a recipe as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def new_figure(width: float, height: float) -> Figure:
    """A figure in the reports' style, in inches."""
    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def html_page(title: str, text: str, figures: dict[str, str]) -> str:
    """
    Markdown with tables as a whole page; HTML in it is shown, not obeyed.

    `figures` are SVG by the file name under which the text shows them, `![caption](name)`. Headings get anchors, those
    of level 2 a list of contents; what is below one of level 4 is shown on demand. A quotation that begins with
    `[!TIP]`, `[!NOTE]`, `[!WARNING]` or `[!CAUTION]` has a colour, as on GitHub.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    headings: dict[str, tuple[str, str]] = {}  # tag and text by anchor
    for token, inline in zip(tokens, tokens[1:], strict=False):
        if token.tag in ("h2", "h3") and token.nesting == 1:
            name = "".join(part.content for part in inline.children)
            anchor = re.sub(r"[^\w-]", "", name.lower().replace(" ", "-"))
            while anchor in ("", *headings):
                anchor += "-"
            headings[anchor] = token.tag, Markup.escape(name)
            token.attrSet("id", anchor)
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<blockquote>\n<p>\[!([A-Z]+)\]", r'<blockquote class="\1">\n<p>', body)
    on_demand = r"<details>\n<summary>\1</summary>\2</details>\n"
    body = re.sub(r"<h4>(.*?)</h4>(.*?)(?=<h[1-4]|\Z)", on_demand, body, flags=re.DOTALL)
    for i, (name, picture) in enumerate(figures.items()):
        picture = re.sub(r'<g id="[^"]*"', "<g", re.sub(r"\s*\n\s*", " ", picture))
        picture = re.sub(r'( id="|url\(#|href="#)', rf"\1figure{i}-", picture)  # the page has them all
        picture = picture.removeprefix("<svg")
        image = rf'<img src="{re.escape(name)}" alt="([^"]*)"[^>]*>'
        body = re.sub(image, lambda alt, svg=picture: f'<svg role="img" aria-label="{alt[1]}"{svg}', body)
    first, *chapters = re.split("(?=<h2)", body, maxsplit=1)
    contents = {anchor: name for anchor, (tag, name) in headings.items() if tag == "h2"}
    values = {"title": Markup.escape(title), "first": first, "contents": contents, "body": "".join(chapters)}
    return environment().get_template("page.html.j2").render(values)
