"""Examples of an audit in Markdown: whatever a text holds, it stays in its place and reads as it is."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from eval.passes import Answer
from eval.sets import QuestionSet
from eval.tables import examples_markdown

PIECES = r"a word 1. - + # ## > * _ ` ``` ~~~ | |-| <b> </b> <br> &amp; & [x](y) ![ $ \ --- === 東".split()
PIECES += [" ", "    ", "\t", "\n", "\r\n", "\n\n", "\u2028"]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def shown(inline) -> str:
    """What a reader sees of an inline token; a mark that Markdown took for one of its own is not seen."""
    return "".join("\n" if piece.content == "<br>" else piece.content for piece in inline.children)


def lines_of(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


@settings(max_examples=50, deadline=None)
@given(texts.filter(str.strip), texts, texts)
@example(
    "What\n# is it?", "Two lines:\n\n- one\n- two\n\n# no heading\n1. x", "```python\nprint('<b>')\n```\n| a | b |"
)
def test_any_text_stays_one_item_of_the_list(question, truth, said):
    questions = {"forget": QuestionSet([question, "Next?"], [truth, "Next."], [0, 1])}
    answer = [Answer(text=text, ended=True) for text in (said, "Nothing.")]
    text = examples_markdown(questions, {"after": {"forget": answer}})
    tokens = MarkdownIt("commonmark").parse(text)
    assert [token.type for token in tokens if token.type.endswith("_open")] == [
        *("heading_open", "paragraph_open", "heading_open"),
        *("paragraph_open", "bullet_list_open", *("list_item_open", "paragraph_open") * 2) * 2,
    ]
    assert [shown(token) for token in tokens if token.type == "inline"][3:] == [
        f"0. {lines_of(question)}",
        f"truth: {lines_of(truth)}".strip(),
        f"after: {lines_of(said)}".strip(),
        *("1. Next?", "truth: Next.", "after: Nothing."),
    ]
