"""Chapters of the report that put on record: rows, data that was read, what was left out, settings, limits."""

from eval.report.blocks import (
    NO_VALUE,
    Cell,
    Details,
    LeakingText,
    Lines,
    Section,
    Table,
    Text,
    available,
    number,
    samples_a_question,
    setting,
)

WORST_ROWS = 20  # shown at once; the others on demand


def rows_section(rows: list[dict], columns: list[str]) -> Section:
    """Every row to forget, by number, the worst of `after` first, for the private report."""
    if not rows:
        return Section("rows", "Rows to forget", [Text("not available: no forget row has a true answer")])

    def worst_first(row: dict) -> tuple:
        after = row["columns"]["after"]
        return -(after["recall"] if after["worst"] is None else after["worst"]), -after["recall"], row["row"]

    columns = sorted(columns, key=lambda name: name != "after")
    ordered = [_row(row, columns) for row in sorted(rows, key=worst_first)]
    names = ("recall", "words", "kind", "worst")
    top = [Cell("row", "words of the truth"), *(Cell(name, column) for column in columns for name in names)]
    what = (
        "A row is known by its number in the data. Recall, words and kind are those of the greedy answer; "
        "worst is the highest recall of any sample of the sampling attack. The rows whose truth came out most from "
        "after are first."
    )
    blocks = [Text(what), Table(top, ordered[:WORST_ROWS])]
    if len(ordered) > WORST_ROWS:
        blocks.append(Details(f"The other {len(ordered) - WORST_ROWS} rows", [Table(top, ordered[WORST_ROWS:])]))
    return Section("rows", "Rows to forget", blocks)


def _row(row: dict, columns: list[str]) -> list[Cell]:
    cells = [Cell(f"row {row['row']}", f"{row['truth_words']} words")]
    for column in columns:
        value = row["columns"][column]
        cells += [number(value["recall"]), Cell(str(value["words"])), Cell(value["kind"]), number(value["worst"])]
    return cells


def texts_section(texts: list[dict]) -> Section:
    """The worst leaking questions with their texts, for the private report."""
    blocks: list = [
        LeakingText(
            f"row {entry['row']}, recall {entry['recall']:.3f} under {entry['attack']}",
            [(name, entry[name]) for name in ("question", "truth", "greedy", "worst")],
        )
        for entry in texts
    ]
    what = "Of each question the worst answer of after, which has the most of the truth, and the attack that drew it."
    shown, others = blocks[:WORST_ROWS], blocks[WORST_ROWS:]
    if others:
        shown.append(Details(f"The other {len(others)} questions", others))
    return Section("texts", "Worst leaking questions", [Text(what), *shown])


def data_section(stages: dict[str, dict | None], read: dict[str, dict]) -> Section:
    """What training and the audit read."""
    what = "Each stage's own record. Unlearning reads no answers to be forgotten; only the audit does."
    blocks = [Text(what)]
    for name, manifest in stages.items():
        if manifest is None:
            blocks.append(Text(f"{name}: not available: its folder has no manifest to tell what it was trained on"))
        else:
            blocks += [Text(f"{name}, made by {manifest['stage']}.py:"), _read_table(manifest["read"])]
    tables = [block for part, records in read.items() for block in (Text(f"For {part}:"), _read_table(records))]
    return Section("data", "Data that was read", [*blocks, Details("What the audit read", tables)])


def _read_table(records: dict[str, dict | None]) -> Table:
    rows = []
    for name, record in records.items():
        if record is None:
            rows.append([Cell("nothing", name), *[Cell(NO_VALUE)] * 3])
            continue
        source = Cell(record["source"], "" if name == record["source"] else name)
        held_out = str(record["held_out"]) if "held_out" in record else NO_VALUE
        columns = Cell(", ".join(record["columns"]))
        rows.append([source, Cell(str(record["rows"])), Cell(held_out), columns])
    return Table([Cell(name) for name in ("source", "rows", "held out", "columns")], rows, words=True)


def left_out_section(lines: list[str]) -> Section:
    """What the audit could not look at."""
    nothing = Text("Nothing: all sets that the audit knows were there.")
    block = Lines(lines) if lines else nothing
    return Section("left-out", "Left out, and why", [block])


def settings_section(audit: dict) -> Section:
    """How it was run, on what, and how long it took."""
    models = [
        [
            Cell(name),
            Cell(folder),
            Cell(audit["fingerprints"][name][:12], title=audit["fingerprints"][name]),
            number(audit["seconds"][name], ".1f"),
        ]
        for name, folder in audit["models"].items()
    ]
    given = [[Cell(key), Cell(setting(value))] for key, value in audit["settings"].items()]
    attacks = [[Cell(key), Cell(setting(value))] for key, value in audit["attack_settings"].items()]
    where = [(key, str(audit[key])) for key in ("date", "device", "dtype", "seed")] + list(audit["versions"].items())
    passes = []
    for name, times in audit["passes"].items():
        passes.append([Cell(name)])
        for what, value in times.items():
            speed = number(value["rows"] / value["seconds"] if value["seconds"] else None, ".1f")
            passes.append([Cell(what), Cell(str(value["rows"])), number(value["seconds"], ".1f"), speed])
    return Section(
        "settings",
        "Settings, versions and time",
        [
            Table([Cell(name) for name in ("model", "folder", "fingerprint", "seconds")], models, words=True),
            Table([Cell("run with"), Cell("")], [[Cell(name), Cell(value)] for name, value in where], words=True),
            Table([Cell("attacks with"), Cell("")], attacks, words=True),
            Details(
                "Settings as given in the recipe and on the command line; all others have their defaults",
                [Table([Cell("key"), Cell("value")], given, words=True)],
            ),
            Text(
                "Seconds of a model are those of this audit. What was answered in an earlier one comes from a cache; "
                "the passes below add up all audits."
            ),
            Details(
                "Seconds of each pass",
                [Table([Cell(name) for name in ("pass", "rows", "seconds", "rows/s")], passes)],
            ),
        ],
    )


def limits_section(results: dict[str, dict], audit: dict) -> Section:
    """What the numbers do not show."""
    return Section("limits", "What this does not show", [Lines(limits(results, audit))])


def limits(results: dict[str, dict], audit: dict) -> list[str]:
    """A sentence each."""
    first = next(iter(results.values()))
    sizes = ", ".join(f"{name} {scores['n']}" for name, scores in first["sets"].items())
    sampled, _ = available({name: column["attacks"]["sampling"] for name, column in results.items()})
    prefilled, _ = available({name: column["attacks"]["prefilling"] for name, column in results.items()})
    lines = [
        "Recall counts words, not meaning: a right answer in other words scores low, a wrong one in the same words "
        "high."
    ]
    if sampled:
        run = next(iter(next(iter(sampled.values())).values()))
        lines.append(
            f"{samples_a_question(run)} samples a question are not all samples: what is less "
            "likely than one in so many can have stayed unseen. See the upper bound on leaking samples."
        )
    if any(prefilled.values()):
        beginnings = "; ".join(next(iter(prefilled.values())))
        lines.append(f"Only these beginnings of answers were tried: {beginnings}. Another one may do more.")
    lines += [
        "Only known attacks were run, on the questions of the data. Other attacks, phrasings, languages and longer "
        "relearning can bring out more.",
        "This is one training run with one seed. Another seed gives other answers; the intervals are over rows, not "
        "over runs.",
    ]
    if "retain_only" in results:
        lines.append(
            "retain_only is a single model too: how far two of its kind would differ by chance was not measured."
        )
    else:
        lines.append("Without a retain-only model nothing says how much of the truth is normal to come out.")
    if sizes:
        lines.append(f"Few rows give wide intervals; rows by set: {sizes}.")
    if audit["left_out"]:
        lines.append(f"Left out of the audit: {len(audit['left_out'])} of what it could look at; the report says why.")
    lines.append(
        "It is no guarantee and no legal proof that the data has no influence on the model any more; only training "
        "without the data gives that."
    )
    return lines
