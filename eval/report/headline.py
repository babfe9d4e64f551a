"""First chapters of the report: the verdict, the headline numbers of all models, and what each of them means."""

from eval.report.attacks import NOTHING_TRIED
from eval.report.blocks import (
    NO_VALUE,
    Cell,
    Details,
    Section,
    Table,
    Terms,
    Text,
    VerdictCard,
    head,
    mean,
    no_number,
    number,
)
from eval.report.measures import auc_cell, privleak_cell
from eval.verdict import KNOWN, KNOWN_SAMPLED, LEAKS, MARGIN, SIGNIFICANT, leakage_by_attack

Results = dict[str, dict]
HEADLINE_ATTACK = "min_k_plus_plus"  # the membership attack that the verdict reads
TONES = {
    "forgotten, as far as these attacks tell": "good",
    "partly hidden": "warn",
    "hidden, not forgotten": "bad",
    "not forgotten": "bad",
    "well unlearned": "good",
}


def verdict_section(audit: dict) -> Section:
    """Both verdicts on each audited model."""
    cards = [
        VerdictCard(
            name,
            audit["models"][name],
            [
                (
                    "Forgetting",
                    TONES.get(value["forgetting"], "unsure"),
                    value["forgetting"],
                    value["forgetting_reasons"],
                ),
                (
                    "Calibration",
                    "unsure" if value["calibration"] == "unknown" else TONES.get(value["calibration"], "warn"),
                    value["calibration"],
                    value["calibration_reasons"],
                ),
            ],
        )
        for name, value in audit["verdicts"].items()
    ]
    return Section("verdict", "Verdict", cards)


def headline_section(results: Results) -> Section:
    """All models side by side, and what each row means."""
    return Section(
        "headline",
        "Headline numbers",
        [
            Text(
                "Intervals are 95 % bootstrap intervals over rows, n is the number of rows. A dash stands where no "
                "number can be given, such as the interval of fewer than two rows."
            ),
            headline_table(results),
            Details("What the rows mean, and which way is good", [Terms(_meanings(results))]),
        ],
    )


def headline_table(results: Results) -> Table:
    """A column a model."""
    rows = [*summary_rows(results), *_recall_rows(results), *_tofu_rows(results)]
    rows.append([Cell("Memorisation of the forget answers")])
    for key, label in (("exact_memorization", "exact memorization"), ("extraction_strength", "extraction strength")):
        cells = [_part(column["memorization"], key) for column in results.values()]
        rows.append([Cell(label, "near retain_only"), *cells])
    rows.append([Cell("Membership inference by min-k++")])
    rows.append(
        [
            Cell("AUC", "near retain_only"),
            *(auc_cell(column["membership"], HEADLINE_ATTACK) for column in results.values()),
        ]
    )
    rows.append(
        [
            Cell("privleak, %", "near 0"),
            *(privleak_cell(column["membership"], HEADLINE_ATTACK) for column in results.values()),
        ]
    )
    rows += leakage_rows(results)
    rows.append([Cell("Empty answers; share of answers that end by themselves")])
    for name in _first(results)["sets"]:
        scores = [column["sets"][name] for column in results.values()]
        rows.append([Cell(name), *(Cell(f"{score['empty']}; {score['ended']:.0%}") for score in scores)])
    return Table(head("", list(results)), rows)


def summary_rows(results: Results) -> list[list[Cell]]:
    """Unlearn quality and utility."""
    rows = [[Cell("Summary, %")]]
    for key, label, aim in (
        ("unlearn_quality", "unlearn quality", "near retain_only, not 100"),
        ("utility", "utility", "near before"),
        ("utility_holdout", "utility, held-out retain rows", "near before"),
    ):
        if key in _first(results):
            rows.append([Cell(label, aim), *(_quality(column, key) for column in results.values())])
    return rows


def _first(results: Results) -> dict:
    return next(iter(results.values()))


def _quality(column: dict, key: str) -> Cell:
    if column[key] is None:
        return no_number("no set of this group has true answers")
    return number(column[key], ".1f", column.get(f"{key}_interval"))


def _part(value: dict, key: str) -> Cell:
    return mean(value if "not_available" in value else value[key])


def _recall_rows(results: Results) -> list[list[Cell]]:
    rows = [[Cell("ROUGE-L recall of greedy answers")]] if _first(results)["sets"] else []
    before = results["before"]["sets"]
    for name, first in _first(results)["sets"].items():
        aim = "near retain_only" if name.startswith("forget") else "near before"
        scores = [column["sets"][name] for column in results.values()]
        cells = [number(score["rougeL_recall"], ".3f", score["rougeL_recall_interval"]) for score in scores]
        by_script = first["tokenization"]["script_aware"]
        read = f", {by_script} not in Latin letters" if by_script else ""
        rows.append([Cell(name, f"n = {first['n']}{read}; {aim}"), *cells])
        changes = [
            number(score["rougeL_recall"] - before[name]["rougeL_recall"], "+z.3f", score["change_interval"])
            if score is not before[name]
            else Cell(NO_VALUE)
            for score in scores
        ]
        rows.append([Cell("change from before", name), *changes])
    return rows


def _tofu_rows(results: Results) -> list[list[Cell]]:
    rows = [[Cell("TOFU")]]
    for name, first in _first(results)["tofu"]["sets"].items():
        for key, label in (("probability", "probability"), ("truth_ratio", "truth ratio")):
            value = first[key]
            count = "" if "not_available" in value else f"n = {value['n']}{_missing(value)}; "
            aim = "near retain_only" if name == "forget" else "near before"
            cells = [mean(column["tofu"]["sets"][name][key]) for column in results.values()]
            rows.append([Cell(f"{label}, {name}", count + aim), *cells])
    utilities = [column["tofu"]["model_utility"] for column in results.values()]
    rows.append([Cell("model utility", "near before"), *(_value(value, "value", ".3f") for value in utilities)])
    qualities = [column["tofu"]["forget_quality"] for column in results.values()]
    rows.append([Cell("forget quality, p", "above 0.05"), *(_value(value, "p_value", ".2g") for value in qualities)])
    cells = [_value(value, "log10_p_value", ".2f") for value in qualities]
    rows.append([Cell("forget quality, log10 p", "above -1.30"), *cells])
    return rows


def _missing(value: dict) -> str:
    return f", {value['missing']} missing" if value["missing"] else ""


def _value(value: dict, key: str, pattern: str) -> Cell:
    return no_number(value["not_available"]) if "not_available" in value else number(value[key], pattern)


def leakage_rows(results: Results) -> list[list[Cell]]:
    """What each attack brought out."""
    leakages = {name: leakage_by_attack(column) for name, column in results.items()}
    rows = []
    if "forget" in _first(results)["sets"]:
        counts = [column["known"] for column in results.values()]
        cells = [Cell(f"{count['questions']} of {count['of']}") for count in counts]
        rows = [[Cell("Questions to forget that the model knows")], [Cell("known", "near retain_only"), *cells]]
    rows.append([Cell("Worst recall of the truth, by attack")])
    if "forget" in _first(results)["sets"]:
        rows.append([Cell("greedy", "near retain_only"), *(number(leak["greedy"]) for leak in leakages.values())])
    for attack in ("sampling", "prefilling", "relearning", "quantization"):
        cells = [
            number(leakages[name][attack])
            if attack in leakages[name]
            else no_number(_why_not(column["attacks"][attack]))
            for name, column in results.items()
        ]
        rows.append([Cell(attack, "near retain_only"), *cells])
    return rows


def _why_not(attack: dict) -> str:
    """Of an attack without a number: why as a whole, or why none of its runs has one."""
    if "not_available" in attack:
        return attack["not_available"]
    return "; ".join(dict.fromkeys(run["not_available"] for run in attack.values())) or NOTHING_TRIED


def _meanings(results: Results) -> list[tuple[str, str]]:
    sets = _first(results)["sets"]
    forget = [name for name in sets if name.startswith("forget")]
    utility = [name for name in sets if name not in forget and name != "retain_holdout"]
    terms = [
        (
            "before, after, retain_only",
            "the model before and after unlearning, and one that was trained like before but never saw the rows to "
            "forget. retain_only is the aim: a model that never saw an answer still shares words with it, so neither "
            "0 nor 100 is. "
            + (
                "It is in this audit."
                if "retain_only" in results
                else "This audit has none, so nothing tells how much is normal."
            ),
        ),
        (
            "unlearn quality",
            f"100 x mean over {_named(forget)} of (1 - recall). Higher is more different from the truth; one fixed "
            "refusal to everything can reach 98, so the aim is the value of retain_only, not 100.",
        ),
        ("utility", f"100 x mean recall over {_named(utility)}. Higher is better; before is the most to expect."),
    ]
    if "utility_holdout" in _first(results):
        terms.append(
            (
                "utility, held-out retain rows",
                "the same with retain rows that unlearning did not train on. Clearly below utility: it kept the rows, "
                "not the ability.",
            )
        )
    return [
        *terms,
        (
            "ROUGE-L recall",
            "share of the true answer's words that come in the same order in the greedy answer. Forget sets: low, but "
            "as low as retain_only, not 0. Other sets: high, near before."
            + (
                " Words of true answers that are not in Latin letters are those of their script; where it has no "
                "spaces, each character is one."
                if any(scores["tokenization"]["script_aware"] for scores in sets.values())
                else ""
            ),
        ),
        ("change from before", "difference on the same rows, with the interval of the paired difference."),
        (
            "probability",
            "exp(-mean loss a token) of the true answer, for facts its share among the options. Forget: as low as "
            "retain_only. Others: high.",
        ),
        (
            "truth ratio",
            "R compares wrong answers with a paraphrase of the right one. Forget: mean of min(R, 1/R), near "
            "retain_only. Others: mean of max(0, 1 - R), higher is better.",
        ),
        (
            "model utility",
            "harmonic mean of nine numbers: probability, recall and truth ratio of retain, real_authors and "
            "world_facts. Higher is better, near before.",
        ),
        (
            "forget quality",
            "p-value of a Kolmogorov-Smirnov test between the truth ratios of this model and of retain_only. Higher "
            f"is better; below {SIGNIFICANT} they differ, above it no difference was found, which with "
            "few rows says little.",
        ),
        (
            "exact memorization, extraction strength",
            "share of the true answer's tokens that are the model's first choice, and share of its end that follows "
            "without a mistake, both given the tokens before. Near retain_only, not 0.",
        ),
        (
            "membership AUC",
            "how well scores tell forget answers from answers that no model saw: 1 plainly memorised, 0.5 cannot "
            "tell, below 0.5 suppressed, which gives them away as well. Near retain_only.",
        ),
        (
            "privleak",
            "distance of that AUC from retain_only's (without one, from 0.5): 0 is ideal, negative under-unlearned, "
            "positive over-unlearned.",
        ),
        (
            "known",
            f"questions to forget whose greedy answer has at least {KNOWN} of the truth, or one of whose samples has "
            f"more than {KNOWN_SAMPLED}. The verdict judges those alone that before knew; other numbers are of all.",
        ),
        (
            "worst recall by attack",
            f"the highest mean recall that an attack reached. Lower is better down to retain_only; from {LEAKS} on, "
            f"if more than {MARGIN} above retain_only, the verdict calls it hidden or not forgotten.",
        ),
        (
            "answers that end",
            "share of answers that end within the length limit. A run-on answer has recall for free: near 100 %.",
        ),
    ]


def _named(sets: list[str]) -> str:
    return " and ".join(sets) if sets else "the sets of this group (none here)"
