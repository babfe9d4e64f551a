"""Tables of the report, a column a model: where in results.json each row's cells stand, and how they are shown."""

from eval.metrics.answers import KINDS
from eval.metrics.leakage import QUANTILES
from eval.report.page import escape, table
from eval.results import ATTACKS, leakage_by_attack

Results = dict[str, dict]
# A label in Markdown, the path of the cells in a column, and how a number or, with braces, a dict is shown;
# a row of a label alone is the heading of those below.
Row = tuple
NO_SET = "no set of this group has true answers"
NOTHING_TRIED = "no beginning of an answer, or no wording, was given"
LABELS = {"min_k": "min-k", "min_k_plus_plus": "min-k++"}
LABELS |= {"forget_tokens": "tokens of the forget answers", "other_tokens": "other tokens"}
SAMPLED = [
    ("greedy answer, recall", ("greedy",)),
    ("worst case, recall", ("worst_case",)),
    ("greedy answer, fact recall", ("fact_greedy",)),
    ("worst case, fact recall", ("fact_worst_case",)),
    ("greedy answer, semantic similarity", ("semantic_greedy",)),
    ("worst case, semantic similarity", ("semantic_worst_case",)),
    ("worst case, as near as a paraphrase", ("semantic_worst_case", "above_limit")),
    ("mean, recall", ("mean",)),
    *((f"{share:.0%} of samples are at most", ("quantiles", str(share))) for share in QUANTILES),
    ("leaking samples", ("leaking",), "{samples} of {of}"),
    ("questions that leak", ("leaking", "questions"), "d"),
    ("upper 95 % bound on the share of leaking samples", ("leaking", "upper_bound"), ".2%"),
]
SHIFTED = [("mean change", ("mean",), "+z.4f"), ("standard deviation", ("std",), ".4f"), ("skew", ("skew",), ".2f")]
SHIFTED += [("share below -0.5", ("below_minus_half",), ".2%"), ("tokens", ("n",), "d")]
QUANTIZED = [("recall", ("recall",)), ("change of recall", ("recall_change",), "+z.3f")]
QUANTIZED += [
    ("fact recall", ("fact_recall",)),
    ("semantic similarity", ("semantic",)),
    ("probability", ("probability",)),
    ("change of probability", ("probability_change",), "+z.3f"),
]
QUANTIZED += [("share of the way back to before", ("recovered",), "z.0%")]
MEASURES = {"": "recall", ", facts": "fact_recall", ", similarity": "semantic"}
AUCS = [("AUC", ("auc",)), ("AUC of the reference", ("reference_auc",)), ("privleak, %", ("privleak",), ".1f")]


def report_tables(results: Results) -> dict[str, str]:
    """All tables by name, in Markdown; those that no model has numbers for say why."""
    results = with_more(results)
    attacks = {name: ("attacks", name) for name in results["before"]["attacks"]}
    sampled = "{key} (n = {worst_case[n]}, {leaking[of]} samples)"
    curves = [run.get("curve", ()) for name in ATTACKS[:2] for run in first_found(results, attacks[name]).values()]
    curve = [(f"best of {count}", ("curve", count)) for count in max(curves, key=len, default=())]
    relearned = first_found(results, attacks["relearning"]).values()
    steps = list(enumerate(next((run["steps"] for run in relearned), ())))
    learned = "learned: {key} ({learned} rows), scored: {scored} rows"
    after_steps = [(f"step {step}{what}", (key, i)) for what, key in MEASURES.items() for i, step in steps]
    way_back = [(f"way back, step {step}", ("recovered", i), "z.0%") for i, step in steps]
    way_back += [(f"probability, step {step}", ("probability", i)) for i, step in steps]
    scores = first_found(results, ("general_ability",)).values()
    metrics = dict.fromkeys(key for task in scores for key in task if key != "n" and not key.endswith("_stderr"))
    members = "{key} ({members} members, {non_members} non-members)"
    parts = [  # name, path, and the rows that stand below a heading once for each key there
        ("sampling", attacks["sampling"], sampled, SAMPLED),
        ("sampling_curve", attacks["sampling"], "{key}", curve),
        ("prefilling", attacks["prefilling"], sampled, SAMPLED),
        ("prefilling_curve", attacks["prefilling"], "{key}", curve),
        ("rewording", attacks["rewording"], sampled, SAMPLED),
        ("token_shift", attacks["token_shift"], "{key}", SHIFTED),
        ("relearning", attacks["relearning"], learned, after_steps),
        ("way_back", attacks["relearning"], learned, way_back),
        ("quantization", attacks["quantization"], "{key} (n = {n})", QUANTIZED),
        ("kinds", ("answer_kinds",), "{key} (n = {n})", [(kind, (kind,), "d") for kind in KINDS]),
        ("membership", ("membership",), members, AUCS),
        ("ability", ("general_ability",), "{key} (n = {n})", [(escape(metric), (metric,)) for metric in metrics]),
    ]
    tables = {name: part(results, path, below(results, path, *rows)) for name, path, *rows in parts}
    tables["headline"] = model_table(results, headline_rows(results["before"]))
    tables["options"] = part(results, attacks["options"], option_rows(results))
    return tables


def headline_rows(first: dict) -> list[Row]:
    """All there is to say of a model in a number or two."""
    rows = summary_rows(first)
    if first["sets"]:
        rows.append(("ROUGE-L recall of greedy answers",))
    for name, scores in first["sets"].items():
        aim = "near retain_only" if name.startswith("forget") else "near before"
        by_script = scores["tokenization"]["script_aware"]
        size = f"n = {scores['n']}, {by_script} not in Latin letters" if by_script else f"n = {scores['n']}"
        rows.append((f"{escape(name)} *{size}; {aim}*", ("sets", name, "rougeL_recall")))
        rows.append((f"change from before *{escape(name)}*", ("sets", name, "change"), "+z.3f"))
        rows.append((f"fact recall *{escape(name)}, n = {scores['fact_recall']['n']}*", ("sets", name, "fact_recall")))
        if "semantic" in scores:
            rows.append((f"semantic similarity *{escape(name)}*", ("sets", name, "semantic")))
            rows.append((f"as near as a paraphrase *{escape(name)}*", ("sets", name, "semantic", "above_limit")))
    rows.append(("TOFU",))
    for name, values in first["tofu"]["sets"].items():
        aim = "near retain_only" if name == "forget" else "near before"
        for key in ("probability", "truth_ratio"):
            size = "n = {n}, {missing} missing; " if values[key].get("missing") else "n = {n}; "
            size = "" if "not_available" in values[key] else size.format(**values[key])
            rows.append((f"{key.replace('_', ' ')}, {escape(name)} *{size}{aim}*", ("tofu", "sets", name, key)))
    return [
        *rows,
        ("model utility *near before*", ("tofu", "model_utility", "value")),
        ("forget quality, p *above 0.05*", ("tofu", "forget_quality", "p_value"), ".2g"),
        ("forget quality, log10 p *above -1.30*", ("tofu", "forget_quality", "log10_p_value"), ".2f"),
        ("Memorisation of the forget answers",),
        ("exact memorization *near retain_only*", ("memorization", "exact_memorization")),
        ("extraction strength *near retain_only*", ("memorization", "extraction_strength")),
        ("median rank of the true token *near retain_only*", ("memorization", "median_rank"), ".1f"),
        ("true tokens among the five likeliest *near retain_only*", ("memorization", "within_five")),
        ("Membership inference by min-k++",),
        ("AUC *near retain_only*", ("membership", "min_k_plus_plus", "auc")),
        ("privleak, % *near 0*", ("membership", "min_k_plus_plus", "privleak"), ".1f"),
        *leakage_rows(first),
        ("Empty answers; share of answers that end by themselves",),
        *((escape(name), ("sets", name), "{empty}; {ended:.0%}") for name in first["sets"]),
    ]


def summary_rows(first: dict) -> list[Row]:
    """Unlearn quality and utility."""
    rows = [
        ("Summary, %",),
        ("unlearn quality *near retain_only, not 100*", ("unlearn_quality",), ".1f"),
        ("utility *near before*", ("utility",), ".1f"),
        ("utility, held-out retain rows *near before*", ("utility_holdout",), ".1f"),
    ]
    return rows if "utility_holdout" in first else rows[:-1]


def leakage_rows(first: dict) -> list[Row]:
    """What a model knows, and the worst that each attack brought out."""
    rows = [
        ("Questions to forget that the model knows",),
        ("known *near retain_only*", ("known",), "{questions} of {of}"),
        ("Worst recall of the truth, by attack",),
        *((f"{attack} *near retain_only*", ("leakage", attack)) for attack in ("greedy", *ATTACKS)),
    ]
    return rows if "forget" in first["sets"] else [rows[2], *rows[4:]]


def with_more(results: Results) -> Results:
    """The columns, with `leakage` by attack or why there is none, each recall's `change` from before, `n` of kinds."""
    before = results["before"]["sets"]
    full = {}
    for name, column in results.items():
        more = {key: {"not_available": NO_SET} for key in ("unlearn_quality", "utility") if column[key] is None}
        more["leakage"] = leakage_by_attack(column)
        for attack in set(ATTACKS) - set(more["leakage"]):
            runs = column["attacks"][attack]
            reasons = [run["not_available"] for run in ([runs] if "not_available" in runs else runs.values())]
            more["leakage"][attack] = {"not_available": "; ".join(dict.fromkeys(reasons)) or NOTHING_TRIED}
        more["sets"] = {}
        for key, scores in column["sets"].items():
            change = None if name == "before" else scores["rougeL_recall"] - before[key]["rougeL_recall"]
            more["sets"][key] = scores | {"change": change}
        kinds = column["answer_kinds"].items()
        more["answer_kinds"] = {key: counts | {"n": sum(counts[kind] for kind in KINDS)} for key, counts in kinds}
        full[name] = column | more
    return full


def option_rows(results: Results) -> list[Row]:
    """How often the right one of several answers is the least and the most likely."""
    path = ("attacks", "options")
    entries = enumerate(first_found(results, path).get("by_quantile", ()))
    lowest = [(f"{e['quantile']:.0%} (n = {e['n']})", (*path, "by_quantile", i, "least")) for i, e in entries]
    return [
        ("least likely", (*path, "least")),
        ("most likely", (*path, "most")),
        ("options", (*path, "options"), "d"),
        ("rows", (*path, "n"), "d"),
        ("least likely, among rows whose smallest probability is in the lowest",),
        *lowest,
    ]


def below(results: Results, path: tuple, heading: str, rows: list[Row]) -> list[Row]:
    """The rows once for each key at a path, below a heading that names what the first column has there."""
    repeated: list[Row] = []
    for key in first_found(results, path):
        first = first_found(results, (*path, key))
        name = escape(LABELS.get(key, key))
        if first:
            repeated.append((heading.format(key=name, **first),))
            repeated += [(row[0], (*path, key, *row[1]), *row[2:]) for row in rows if row[1][0] in first]
        else:
            repeated += [(name,), (rows[0][0], (*path, key))]
    return repeated


def part(results: Results, path: tuple, rows: list[Row]) -> str:
    """A table of the columns that have something at a path; the others are named, with the reason."""
    there = found(results, path)
    reasons: dict[str, list[str]] = {}
    for name in results:
        if name not in there:
            reason = (find(results[name], path) or {}).get("not_available", NOTHING_TRIED)
            reasons.setdefault(reason, []).append(escape(name))
    lines = [f"- **{', '.join(names)}**: not available: {escape(reason)}" for reason, names in reasons.items()]
    if there:
        lines += ["", model_table({name: results[name] for name in there}, rows)]
    return "\n".join(lines)


def model_table(results: Results, rows: list[Row]) -> str:
    """A table with a column a model, and below it why cells have no number."""
    reasons: dict[str, int] = {}
    lines = []
    for label, *cells in rows:
        if cells:
            lines.append([label, *(cell(column, reasons, *cells) for column in results.values())])
        else:
            lines.append([f"**{label}**", *("" for _ in results)])
    notes = [f"- \\[{i}\\] not available: {escape(reason)}" for reason, i in reasons.items()]
    return "\n".join([table(["", *map(escape, results)], lines), "", *notes])


def cell(column: dict, reasons: dict[str, int], path: tuple, show: str = ".3f") -> str:
    """A number with its interval or standard error; a reason why there is none is numbered among the others."""
    around, value = find(column, path[:-1]), find(column, path)
    if isinstance(value, dict) and "not_available" in value:
        return f"not available \\[{reasons.setdefault(value['not_available'], len(reasons) + 1)}\\]"
    if "{" in show:
        return show.format(**value)
    if isinstance(value, dict):
        return number(value["mean"], show, value["interval"])
    beside = around if isinstance(around, dict) else {}
    error = beside.get(f"{path[-1]}_stderr")
    text = number(value, show, beside.get(f"{path[-1]}_interval"))
    return text if error is None else f"{text} *± {error:.3f}*"


def number(value: float | None, pattern: str = ".3f", interval: list[float] | None = None) -> str:
    """A number and its interval, in words so that no sign is taken for a dash; a dash for None."""
    if value is None:
        return "–"
    between = "" if interval is None else f" *{interval[0]:{pattern}} to {interval[1]:{pattern}}*"
    return f"{value:{pattern}}{between}"


def find(value, path: tuple):
    """What stands at a path; where a part of it is not available, the dict that says why."""
    for key in path:
        if isinstance(value, dict) and "not_available" in value:
            return value
        value = value[key]
    return value


def found(results: Results, path: tuple) -> dict:
    """By column what stands at a path, without the columns that have nothing there."""
    values = {name: find(column, path) for name, column in results.items()}
    return {name: value for name, value in values.items() if value and "not_available" not in value}


def first_found(results: Results, path: tuple) -> dict:
    """The same of the first of these columns: the others have the same keys."""
    return next(iter(found(results, path).values()), {})
