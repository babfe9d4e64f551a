"""The report of an audit, `report.html` and `report.md`, and the model card: all without any text of the data.

All prose stands in the templates; the rows of their tables in tables.py.
"""

import re
from pathlib import Path

import yaml

from eval.metrics.answers import LEAK_RECALL
from eval.report.figures import audit_figures
from eval.report.page import environment, escape, html_page, table
from eval.report.tables import (
    first_found,
    leakage_rows,
    model_table,
    number,
    report_tables,
    summary_rows,
    with_more,
)
from eval.verdict import KNOWN, KNOWN_SAMPLED, LEAKS, MARGIN, SIGNIFICANT
from pmc_rl.output import may_replace_card, write_private, write_text

SHOWN = 20  # steps of the training log, evenly spaced; rows to forget, the others on demand
LOGGED = {"reward_selected": "reward, trained", "reward": "reward, all samples", "reward_std": "spread of rewards"}
LOGGED |= {"collapse_loss": "collapse loss", "retain_loss": "retain loss"}
LOGGED |= {"completions/mean_length": "mean length", "frac_solved": "share solved"}


def write_report(
    output_dir: Path,
    results: dict[str, dict],
    audit: dict,
    log: list[dict],
    rows: list[dict],
    texts: list[dict] | None,
) -> None:
    """
    Writes `report.html`, `report.md` and the model card `README.md`; with texts, a private page as well.

    Args:
        results, audit (`dict`): what `results.json` and `audit.json` hold.
        log (`list[dict]`): rows of `training_log.jsonl` of the unlearning run.
        rows (`list[dict]`): what came of each question to forget, for the private page.
        texts (`list[dict]`, *optional*): questions to forget, the worst first, with keys `row`, `question`, `truth`,
            `greedy` and `worst` (answers), `attack` and `recall` of the worst one.
    """
    title = f"Unlearning audit of {audit['models']['after']}"
    panels = audit_figures(results, log, audit["attack_settings"]["first_words"])
    pictures = {name: picture for drawn in panels.values() for name, _, picture in drawn}
    values = {"title": title, "tables": report_tables(results) | {"log": log_table(log)}, "panels": panels}
    public = render("report.md.j2", results, audit, **values, texts=None)
    write_text(output_dir / "report.html", html_page(title, public, pictures))
    write_text(output_dir / "report.md", render("report.md.j2", results, audit, **values | {"panels": {}}, texts=None))
    if may_replace_card(output_dir):
        write_text(output_dir / "README.md", model_card(results, audit))
    (output_dir / "private" / "report_with_texts.html").unlink(missing_ok=True)  # of an earlier audit
    if texts is not None:
        private = render("report.md.j2", results, audit, **values, texts=texts, shown=SHOWN, rows=row_tables(rows))
        write_private(output_dir, "report_with_texts.html", html_page(f"PRIVATE: {title}", private, pictures))


def model_card(results: dict[str, dict], audit: dict) -> str:
    """`README.md` of the unlearned model for the Hub: what was done, headline numbers, limits, how to load it."""
    run, before = audit["stages"]["after"], audit["models"]["before"]
    # a folder of this machine is no model of the Hub: its name alone, so that it leads nowhere
    local = audit["stages"]["before"] is not None or before.startswith(".") or Path(before).is_dir()
    is_adapter = "adapter_config.json" in run["files"]
    front_matter = {
        "base_model": Path(before).name if local else before,
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["pmc", "unlearning"],
    }
    first = results["before"]
    values = {"read": run["read"], "is_adapter": is_adapter, "local": local}
    values["front_matter"] = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)
    values["table"] = model_table(with_more(results), summary_rows(first) + leakage_rows(first))
    return render("model_card.md.j2", results, audit, **values)


def render(template: str, results: dict[str, dict], audit: dict, **values) -> str:
    """A template of the audit with its values, without surplus blank lines."""
    prefixes = first_found(results, ("attacks", "prefilling"))
    values |= {"results": results, "first": results["before"], "audit": audit, "number": number}
    values |= {"KNOWN": KNOWN, "KNOWN_SAMPLED": KNOWN_SAMPLED, "LEAKS": LEAKS, "MARGIN": MARGIN}
    values |= {"SIGNIFICANT": SIGNIFICANT, "LEAK_RECALL": LEAK_RECALL, "prefixes": "; ".join(prefixes)}
    values["sampled"] = bool(first_found(results, ("attacks", "sampling")))
    return re.sub(r"\n{3,}", "\n\n", environment().get_template(template).render(values))


def log_table(log: list[dict]) -> str:
    """What training logged, at evenly spaced steps; empty without any."""
    steps = [logged for logged in log if "loss" in logged]
    if not steps:
        return ""
    rewards = sorted({key for logged in steps for key in logged if key.startswith("rewards/")})
    names = LOGGED | {key: key.removeprefix("rewards/").removesuffix("/mean") for key in rewards}
    chosen = sorted({round(i * (len(steps) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    rows = [[str(steps[i]["step"]), *(number(steps[i].get(key), ".4g") for key in names)] for i in chosen]
    return table(["step", *map(escape, names.values())], rows)


def row_tables(rows: list[dict]) -> list[str]:
    """The rows to forget by number, those first whose truth came out most from `after`, and the others."""

    def worst_first(row: dict) -> tuple:
        after = row["columns"]["after"]
        return -(after["recall"] if after["worst"] is None else after["worst"]), -after["recall"], row["row"]

    lines = []
    for row in sorted(rows, key=worst_first):
        lines.append([f"row {row['row']} *{row['truth_words']} words of the truth*"])
        for value in row["columns"].values():
            lines[-1] += [number(value["recall"]), str(value["words"]), value["kind"], number(value["worst"])]
    names = [name for row in rows[:1] for name in row["columns"]]
    head = ["row", *(cell for name in names for cell in (f"recall *{escape(name)}*", "words", "kind", "worst"))]
    return [table(head, part) for part in (lines[:SHOWN], lines[SHOWN:]) if part]
