"""The report of an audit, `report.html` and `report.md`, and the model card: all without any text of the data.

A second HTML report, with the worst leaking questions, goes to the private folder.
"""

import re
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from eval.report.attacks import attacks_section
from eval.report.blocks import Section, Table, head
from eval.report.headline import headline_section, leakage_rows, summary_rows, verdict_section
from eval.report.measures import ability_section, kinds_section, membership_section, training_section
from eval.report.record import (
    data_section,
    left_out_section,
    limits,
    limits_section,
    rows_section,
    settings_section,
    texts_section,
)
from pmc_rl.output import may_replace_card, write_private, write_text

# an underscore inside a word is none
MARKDOWN_SIGNS = re.compile(r"[\\`*<>|\[\]~#&$]|(?<!\w)_|_(?!\w)")


def write_report(
    output_dir: Path,
    results: dict,
    audit: dict,
    training_log: list[dict],
    rows: list[dict],
    texts: list[dict] | None,
) -> None:
    """
    Writes `report.html`, `report.md` and the model card `README.md`; with texts, a private HTML report as well.

    Args:
        results, audit (`dict`): what `results.json` and `audit.json` hold.
        training_log (`list[dict]`): rows of `training_log.jsonl` of the unlearning run.
        rows (`list[dict]`): what came of each question to forget, for the private report.
        texts (`list[dict]`, *optional*): questions to forget, the worst first, with keys `row`, `question`, `truth`,
            `greedy` and `worst` (answers), `attack` and `recall` of the worst one.
    """
    sections = report_sections(results, audit, training_log)
    write_text(output_dir / "report.html", _render("report.html.j2", audit, sections, private=False))
    write_text(output_dir / "report.md", _render("report.md.j2", audit, sections, private=False))
    if may_replace_card(output_dir):
        write_text(output_dir / "README.md", model_card(results, audit))
    (output_dir / "private" / "report_with_texts.html").unlink(missing_ok=True)  # of an earlier audit
    if texts is not None:
        at = [section.anchor for section in sections].index("data")
        with_texts = [*sections[:at], texts_section(texts), rows_section(rows, list(results)), *sections[at:]]
        write_private(output_dir, "report_with_texts.html", _render("report.html.j2", audit, with_texts, private=True))


def report_sections(results: dict, audit: dict, training_log: list[dict]) -> list[Section]:
    """The report's chapters in their order."""
    return [
        verdict_section(audit),
        headline_section(results),
        training_section(training_log),
        attacks_section(results),
        kinds_section(results, audit["judge"]),
        membership_section(results),
        ability_section(results),
        data_section(audit["stages"], audit["read"]),
        left_out_section(audit["left_out"]),
        settings_section(audit),
        limits_section(results, audit),
    ]


def model_card(results: dict, audit: dict) -> str:
    """`README.md` of the unlearned model for the Hub: what was done, headline numbers, limits, how to load it."""
    run = audit["stages"]["after"]
    before = audit["models"]["before"]
    # a folder of this machine is no model of the Hub: its name alone, so that it leads nowhere
    local = audit["stages"]["before"] is not None or before.startswith(".") or Path(before).is_dir()
    is_adapter = "adapter_config.json" in run["files"]
    front_matter = {
        "base_model": Path(before).name if local else before,
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["pmc", "unlearning"],
    }
    return (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            front_matter=yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True),
            model=audit["models"]["after"],
            before=before,
            audit=audit,
            forget=run["read"]["forget"],
            retain=run["read"]["retain"],
            is_adapter=is_adapter,
            local=local,
            table=Table(head("", list(results)), [*summary_rows(results), *leakage_rows(results)]),
            verdict=audit["verdicts"]["after"],
            limits=limits(results, audit),
        )
    )


def markdown(text: str) -> str:
    """Text as it is, on one line, none of it taken for Markdown."""
    return MARKDOWN_SIGNS.sub(r"\\\g<0>", " ".join(text.split()))


def _render(template: str, audit: dict, sections: list[Section], private: bool) -> str:
    title = f"Unlearning audit of {audit['models']['after']}"
    return (
        _environment()
        .get_template(template)
        .render(title=title, date=audit["date"], device=audit["device"], sections=sections, private=private)
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown}
    return environment
