"""The report: what the numbers say, redacted, in HTML and Markdown; the private one with texts; the model card."""

import itertools
import re
import stat
from html import unescape
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from markdown_it import MarkdownIt

from eval.report.figures import (
    TRAINING,
    audit_figures,
    depth_panels,
    model_styles,
    overview_panels,
    panel,
    training_panels,
)
from eval.report.page import COLOURS, escape, html_page
from eval.report.report import model_card, write_report
from eval.verdict import verdict

HASH = "0123456789abcdef" * 4
VALUES = {"before": 0.9, "after": 0.1, "retain_only": 0.2}  # what most numbers of a model are


def summary(value: float) -> dict:
    return {"mean": value, "interval": [value - 0.05, value + 0.05], "n": 6, "missing": 0}


def sampled(value: float) -> dict:
    return {
        "worst_case": summary(value + 0.03),
        "fact_worst_case": summary(value + 0.02),
        "fact_worst_by_row": dict.fromkeys(range(6), value),
        "mean": summary(value / 2),
        "quantiles": {"0.5": 0.0, "0.9": 0.0, "0.95": 0.0, "0.99": value},
        "curve": {"1": value / 2, "2": value, "4": value + 0.03},
        "leaking": {"samples": 3, "of": 24, "questions": 2, "upper_bound": 0.3},
        "worst_by_row": dict.fromkeys(range(6), value),
        "worst_sample_by_row": dict.fromkeys(range(6), 0),
    }


def column(name: str) -> dict:
    """A column of results.json where all is there."""
    value = VALUES[name]
    by_row = dict.fromkeys(range(6), value)
    recall = {"rougeL_recall": value, "rougeL_recall_interval": [value - 0.04, value + 0.04], "recall_by_row": by_row}
    recall |= {"fact_recall": summary(value - 0.01), "fact_recall_by_row": by_row}
    recall |= {"change_interval": [-0.7, -0.6], "empty": 1, "ended": 0.75, "tokenization": {"script_aware": 0}}
    sets = ("forget", "forget_paraphrased", "retain", "real_authors", "world_facts")
    quality = {"p_value": 0.012, "log10_p_value": -1.92, "median": 1.2, "reference_median": 1.3}
    quality["median_interval"] = [1.1, 1.25]
    auc = {"auc": value, "auc_interval": [value - 0.06, value + 0.06], "reference_auc": 0.45, "privleak": -31.4}
    auc |= {"members": 6, "non_members": 5}
    kinds = {"leak": 1, "refusal": 2, "gibberish": 0, "copy": 1, "hallucination": 2}
    by_quantile = [{"quantile": q, "threshold": 0.1, "least": value / 2, "n": 3} for q in (0.5, 1.0)]
    shift = {"mean": -value / 100, "std": 0.1, "skew": -2.0, "below_minus_half": 0.01, "n": 50}
    shares = [value, value + 0.01, value + 0.02]
    steps = [summary(share) for share in shares]
    relearned = {"recall": steps, "recall_by_row": [dict.fromkeys(range(6), share) for share in shares]}
    relearned |= {"fact_recall": steps, "fact_recall_by_row": relearned["recall_by_row"]}
    relearned |= {"probability": steps, "steps": [0, 1, 2], "recovered": [0.0, 0.1, 0.2], "learned": 3, "scored": 3}
    quantized = {key: summary(value) for key in ("recall", "fact_recall", "probability")}
    quantized |= {"recall_change": 0.01, "probability_change": 0.02, "fact_recall_by_row": by_row}
    quantized |= {"recall_by_row": by_row, "recovered": 0.05, "n": 6}
    filled = {"greedy": summary(value), "greedy_by_row": by_row, **sampled(value)}
    filled |= {"fact_greedy": summary(value), "fact_greedy_by_row": by_row}
    tofu = {key: {"probability": summary(value), "truth_ratio": summary(value)} for key in ("forget", "retain")}
    return {
        "known": {"questions": round(6 * value), "of": 6},
        **{"unlearn_quality": 100 - 100 * value, "unlearn_quality_interval": [20.2, 95.5]},
        **{"utility": 88.8, "utility_interval": [80.0, 90.0]},
        "sets": {key: recall | {"n": 6 + i} for i, key in enumerate(sets)},
        "tofu": {"sets": tofu, "model_utility": {"value": 0.654}, "forget_quality": quality},
        "memorization": {
            **{"exact_memorization": summary(value), "extraction_strength": summary(value)},
            **{"median_rank": 1 / value, "within_five": summary(value)},
        },
        "membership": {attack: dict(auc) for attack in ("loss", "zlib", "min_k", "min_k_plus_plus")},
        "answer_kinds": {"forget": kinds, "forget_paraphrased": kinds},
        "attacks": {
            "sampling": {"temperature 1": sampled(value), "as in training": sampled(value / 2)},
            "prefilling": {"The answer is:": filled},
            "rewording": {"You are a librarian. {question}": filled},
            "options": {"least": value, "most": 0.3, "options": 4, "n": 6, "by_quantile": by_quantile},
            "token_shift": {"forget_tokens": shift, "other_tokens": dict(shift)},
            "relearning": {"half of the forget rows": relearned, "retain rows": dict(relearned)},
            "quantization": {"8 bit": quantized, "4 bit": quantized},
        },
        "general_ability": {"hellaswag": {"n": 20, "acc": value, "acc_stderr": 0.07, "acc_norm": 0.333}},
    }


def inputs(*names: str) -> tuple[dict, dict]:
    """results.json and audit.json, of all models unless some are named."""
    names = names or tuple(VALUES)
    results = {name: column(name) for name in names}
    record = {"source": "data:forget01", "files": ["data/forget01.json"], "rows": 6}
    read = {"forget": record | {"columns": ["question"]}}
    retained = {"retain": record | {"columns": ["question", "answer"], "held_out": 17}}
    stages = {name: {"stage": "finetune", "read": read, "files": ["config.json"]} for name in names}
    stages["after"] = {"stage": "train", "read": read | retained, "files": ["model.safetensors"]}
    run_with = {"seed": 42, "dtype": "torch.float32", "device": "cpu", "date": "2026-11-21"}
    return results, run_with | {
        "models": {name: f"runs/{name}" for name in names},
        "fingerprints": {name: f"{HASH} torch.float32 None" for name in names},
        "verdicts": {"after": verdict(results["after"], results["before"], results.get("retain_only"))},
        "judge": {"model": names[-1], "perplexity_limit": 123.4},
        "left_out": ["world_facts: 'tofu/x' has no config 'world_facts'"],
        "read": {"questions": read, "options": read},
        "stages": stages,
        "settings": {"temperature": 1.5, "output_dir": "runs/after"},
        "attack_settings": {"attack_samples": 4, "prefixes": ["The answer is:"], "first_words": []},
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
        "seconds": dict.fromkeys(names, 12.34),
        "passes": {name: {"greedy": {"seconds": 2.0, "rows": 50}} for name in names},
    }


def rows_for(*names: str) -> list[dict]:
    """rows.json."""
    values = {"recall": 0.1, "words": 7, "kind": "refusal"}
    return [
        {"row": row, "truth_words": 9, "columns": {name: values | {"worst": row / 40} for name in names}}
        for row in range(30)
    ]


LOG = [
    {"loss": 1.0, "step": 5, "reward": 0.3, "reward_std": 0.2, "reward_selected": 0.6, "collapse_loss": 2.0}
    | {"retain_loss": 0.01, "completions/mean_length": 12.0, "frac_solved": 0.2, "rewards/mine/mean": 0.3},
    {"loss": 0.5, "step": 10, "reward_selected": 1.0, "collapse_loss": 0.5, "retain_loss": 1.0, "frac_solved": 1.0},
    {"train_loss": 0.7, "step": 10},
]
TEXTS = [
    {"row": 3, "question": "Where was <Ana> born?", "truth": "Ana was born in Lima.", "greedy": "Nobody can tell."}
    | {"attack": "sampling, temperature 1", "worst": "She came from Lima & Peru.", "recall": 0.875}
]


def render(folder: Path, results: dict, audit: dict, log: list[dict] = LOG) -> tuple[str, str]:
    """HTML and Markdown of a report."""
    write_report(folder, results, audit, log, [], None)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def figures() -> dict:
    return audit_figures(inputs()[0], LOG, [])


@pytest.fixture(scope="module")
def report(tmp_path_factory, figures) -> tuple[str, str]:
    with patch("eval.report.report.audit_figures", lambda *args: figures):
        return render(tmp_path_factory.mktemp("report"), *inputs())


@pytest.fixture
def quick(monkeypatch):
    """Without figures, which take most of the time of a report."""
    monkeypatch.setattr("eval.report.report.audit_figures", lambda *args: {})


def md_rows(text: str) -> list[list[str]]:
    """Rows of all tables of Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def visible(html: str) -> str:
    """The text of a page, without tags and style."""
    return unescape(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", "", html))


NUMBERS = """
| unlearn quality *near retain_only, not 100* | 10.0 *20.2 to 95.5* | 90.0 *20.2 to 95.5* | 80.0 *20.2 to 95.5* |
| forget *n = 6; near retain_only* | 0.900 *0.860 to 0.940* | 0.100 *0.060 to 0.140* | 0.200 *0.160 to 0.240* |
| change from before *forget* | – | -0.800 *-0.700 to -0.600* | -0.700 *-0.700 to -0.600* |
| truth ratio, retain *n = 6; near before* | 0.900 *0.850 to 0.950* | 0.100 *0.050 to 0.150* | 0.200 *0.150 to 0.250* |
| model utility *near before* | 0.654 | 0.654 | 0.654 |
| forget quality, p *above 0.05* | 0.012 | 0.012 | 0.012 |
| forget quality, log10 p *above -1.30* | -1.92 | -1.92 | -1.92 |
| extraction strength *near retain_only* | 0.900 *0.850 to 0.950* | 0.100 *0.050 to 0.150* | 0.200 *0.150 to 0.250* |
| median rank of the true token *near retain_only* | 1.1 | 10.0 | 5.0 |
| AUC *near retain_only* | 0.900 *0.840 to 0.960* | 0.100 *0.040 to 0.160* | 0.200 *0.140 to 0.260* |
| privleak, % *near 0* | -31.4 | -31.4 | -31.4 |
| known *near retain_only* | 5 of 6 | 1 of 6 | 1 of 6 |
| greedy *near retain_only* | 0.900 | 0.100 | 0.200 |
| sampling *near retain_only* | 0.930 | 0.130 | 0.230 |
| relearning *near retain_only* | 0.920 | 0.120 | 0.220 |
| retain | 1; 75% | 1; 75% | 1; 75% |
| **temperature 1 (n = 6, 24 samples)** |  |  |  |
| greedy answer, recall | 0.900 *0.850 to 0.950* | 0.100 *0.050 to 0.150* | 0.200 *0.150 to 0.250* |
| 99% of samples are at most | 0.900 | 0.100 | 0.200 |
| leaking samples | 3 of 24 | 3 of 24 | 3 of 24 |
| questions that leak | 2 | 2 | 2 |
| upper 95 % bound on the share of leaking samples | 30.00% | 30.00% | 30.00% |
| best of 4 | 0.930 | 0.130 | 0.230 |
| least likely | 0.900 | 0.100 | 0.200 |
| 100% (n = 3) | 0.450 | 0.050 | 0.100 |
| mean change | -0.0090 | -0.0010 | -0.0020 |
| **learned: retain rows (3 rows), scored: 3 rows** |  |  |  |
| step 2 | 0.920 *0.870 to 0.970* | 0.120 *0.070 to 0.170* | 0.220 *0.170 to 0.270* |
| way back, step 2 | 20% | 20% | 20% |
| probability, step 1 | 0.910 *0.860 to 0.960* | 0.110 *0.060 to 0.160* | 0.210 *0.160 to 0.260* |
| change of recall | +0.010 | +0.010 | +0.010 |
| share of the way back to before | 5% | 5% | 5% |
| **forget (n = 6)** |  |  |  |
| hallucination | 2 | 2 | 2 |
| **min-k++ (6 members, 5 non-members)** |  |  |  |
| AUC of the reference | 0.450 | 0.450 | 0.450 |
| acc | 0.900 *± 0.070* | 0.100 *± 0.070* | 0.200 *± 0.070* |
| 5 | 0.6 | 0.3 | 0.2 | 2 | 0.01 | 12 | 0.2 | 0.3 |
| data:forget01 *retain* | 6 | 17 | question, answer |
| after | runs/after | 0123456789ab | 12.3 |
| seed | 42 |
| attack_samples | 4 |
| temperature | 1.5 |
| greedy | 50 | 2.0 | 25.0 |
- 4 samples a question are not all samples: what is less likely than one in so many can have stayed unseen. See the \
upper bound on leaking samples.
- Only these beginnings of answers were tried: The answer is:. Another one may do more.
- retain_only is a single model too: how far two of its kind would differ by chance was not measured.
- Few rows give wide intervals; rows by set: forget 6, forget_paraphrased 7, retain 8, real_authors 9, world_facts 10.
- Left out of the audit: 1 of what it could look at; the report says why.
- world_facts: 'tofu/x' has no config 'world_facts'
"""


def test_numbers_are_those_of_the_input(report):
    for line in NUMBERS.strip().splitlines():
        assert line in report[1].splitlines(), line
    assert "acc_stderr" not in report[1] and "SHA" not in report[1] and HASH not in report[1]


def test_page_is_the_markdown_with_figures(report):
    """Every table and chapter, a link to each; in order."""
    html, md = report
    chapters = re.findall(r"(?m)^## (.*)$", md)
    assert len(chapters) == 11 and "<h1>Unlearning audit of runs/after</h1>" in html
    anchors, titles = zip(*re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', html), strict=True)
    assert list(map(unescape, titles)) == chapters
    assert re.findall(r'<li><a href="#([^"]*)">', html) == list(anchors)
    lines = [row for row in md_rows(md) if not set("".join(row)) <= set(":-")]
    assert len(lines) == html.count("<tr>")
    assert html.count("<table>") == html.count('<div class="scroll"')
    assert html.count("<details>") == html.count("</details>") == len(re.findall("(?m)^#### ", md)) == 8
    assert "<svg" in html and "svg" not in md and "figures are in report.html" in md


def test_the_page_loads_nothing(report):
    """And all its ids are its own, although each figure brings some."""
    html, _ = report
    assert not re.search(r"<script|<img|@import|://(?!www\.w3\.org/)", html)
    assert not re.search(r'\s(src|srcset|action|on\w+)="', html)
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"', html) + re.findall(r"url\(#([^)]*)\)", html)
    assert len(used) > 100 and set(used) <= set(ids)  # of chapters, markers and clip paths
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert html.count('role="img" aria-label="') == html.count("<svg") == 15
    assert "light-dark(" in html and 'name="viewport"' in html


def test_verdicts_stand_with_their_reasons(tmp_path, quick):
    results, audit = inputs()
    reasons = {"forgetting_reasons": ["reason <1>", "reason 2"], "calibration_reasons": ["reason 3"]}
    for forgetting, calibration, tones in (
        ("hidden, not forgotten", "well unlearned", ["CAUTION", "TIP"]),
        ("partly hidden", "unknown", ["WARNING", "NOTE"]),
        ("forgotten, as far as these attacks tell", "mixed: one, another", ["TIP", "WARNING"]),
        ("forgotten, as far as greedy answers tell", "over-unlearned", ["NOTE", "WARNING"]),
    ):
        audit["verdicts"]["after"] |= {"forgetting": forgetting, "calibration": calibration} | reasons
        html, md = render(tmp_path, results, audit)
        assert f"> **Forgetting: {forgetting}**\n>\n> - reason \\<1\\>\n> - reason 2\n" in md
        assert f"> **Calibration: {calibration}**\n>\n> - reason 3\n" in md
        assert re.findall(r'<blockquote class="(\w+)"', html) == tones and "reason &lt;1&gt;" in html
        card = (tmp_path / "README.md").read_text()
        assert all(part in card for part in (forgetting, calibration, "- reason 2", "- reason 3"))


PLACES = [*(("attacks", attack) for attack in column("after")["attacks"]), ("membership",)]
PLACES_INSIDE = [("attacks", "prefilling", "The answer is:"), ("memorization",), ("general_ability",)]
PLACES_INSIDE += [("tofu", "sets", "forget", "truth_ratio"), ("tofu", "sets", "retain", "probability")]
PLACES_INSIDE += [("tofu", "model_utility"), ("tofu", "forget_quality")]
PLACES_INSIDE += [("membership", "zlib", "privleak"), ("membership", "min_k_plus_plus", "privleak")]


@pytest.mark.parametrize("names", [["before"], ["after"], ["before", "after", "retain_only"]], ids="+".join)
def test_every_reason_shows(tmp_path, quick, names):
    for places in (PLACES, PLACES_INSIDE):
        results, audit = inputs()
        for name, place in itertools.product(names, places):
            inner = results[name]
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = {"not_available": f"<why not {'/'.join(place)}>"}
        html, md = render(tmp_path, results, audit)
        told = visible(html)
        for place in places:
            reason = f"not available: <why not {'/'.join(place)}>"
            assert reason in told and escape(reason) in md, place
        assert "<why" not in html
        if names == ["before"] and places == PLACES:  # told of the model it belongs to
            assert "| relearning *near retain_only* | not available \\[5\\] | 0.120 | 0.220 |\n" in md
            assert "\n| step 2 | 0.120 *0.070 to 0.170* | 0.220 *0.170 to 0.270* |\n" in md  # a table of the others


def test_odd_names_are_escaped(tmp_path, quick):
    results, audit = inputs()
    odd = 'merged<b> | *x* $y$ & "q"'
    results[odd] = column("after")
    for key in ("models", "fingerprints", "seconds", "passes", "stages", "verdicts"):
        audit[key][odd] = audit[key]["after"]
    for value in results.values():
        prefilled = value["attacks"]["prefilling"]
        prefilled["Sure,\n<i>here</i> | it is: "] = prefilled["The answer is:"]
    audit["settings"]["odd"] = {"a": "<u>"}
    html, md = render(tmp_path, results, audit)
    assert not re.search("<b>|<i>|<u>", html)
    heads = re.findall(r"(?s)<thead>.*?</thead>", html)
    assert re.findall("<th style[^>]*>(.*?)</th>", unescape(heads[0])) == ["", "before", "after", "retain_only", odd]
    assert escape(odd) in md and "<b>" not in md and "<i>" not in md
    _, legend = panel("", [(odd, [0], [0], {}), ("other", [0], [1], {})])  # in which it is read as no formula
    assert odd in re.findall("<text[^>]*>(.*?)</text>", unescape(legend))
    tables = [block for block in md.split("\n\n") if block.startswith("|")]
    assert all(len({len(row) for row in md_rows(block)}) == 1 for block in tables)


def test_figures_are_of_what_is_there(figures):
    titles = {figure: [title for _, title, _ in panels] for figure, panels in figures.items()}
    assert titles["training"] == [title for title, _ in TRAINING[:6]]
    assert titles["overview"] == ["Unlearn quality and utility", "Worst recall of the truth, by attack"]
    assert titles["sampling"] == ["temperature 1", "as in training"] and titles["prefilling"] == ["The answer is:"]
    assert titles["relearning"] == ["learned: half of the forget rows"] * 2 + ["learned: retain rows"] * 2
    [curve, *_] = [svg for _, _, svg in figures["sampling"]]
    assert re.findall(r"<text[^>]*>([^<]*)</text>", curve)[:4] == ["1", "2", "4", "samples a question"]
    assert all(style["color"] in curve for style in model_styles(list(VALUES)).values())
    assert not set(re.findall(r"#(?:000000|ffffff)", curve))  # could not be read on both pages
    more = [{"loss": 1, "step": 5, "exp_reward/mean": 2.5, "exp_reward/var": 0.5, "distinct_samples": 0.2, "kl": 1}]
    assert [title for title, _ in training_panels(more)] == [title for title, _ in TRAINING[6:]]
    many = model_styles(["before", "after", *map(str, range(10))])
    assert many["after"] == model_styles(["after"])["after"]
    assert {style["color"] for style in many.values()} == set(COLOURS)


def test_the_way_into_an_answer_is_drawn_over_its_words(figures):
    results = inputs()[0]
    for value in results.values():
        filled = value["attacks"]["prefilling"]["The answer is:"]
        value["attacks"]["prefilling"] |= {"the answer's first word": filled, "the first 50% of the answer": filled}
        value["attacks"]["prefilling"]["the answer's first 8 words"] = {"not_available": "no answer has more words"}
    title, _ = depth_panels(results, [1, 8, 0.5])
    assert title[0] == "What follows the first words: greedy answer"
    assert re.findall(r"<text[^>]*>([^<]*)</text>", title[1])[:3] == ["1", "50%", "words of the truth given away"]
    assert depth_panels(results, [1]) == depth_panels(results, [8]) == depth_panels(results, []) == []


def test_texts_are_in_the_private_file_only(tmp_path, quick):
    texts = [TEXTS[0] | {"row": row, "recall": 1 - row / 200} for row in range(25)]
    write_report(tmp_path, *inputs(), LOG, rows_for("before", "after"), texts)
    private = tmp_path / "private" / "report_with_texts.html"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    html = private.read_text()
    body = html[html.index("<body>") :]
    assert body.index("PRIVATE") < body.index("<h1>") and "<title>PRIVATE" in html and "<Ana>" not in html
    told = visible(html)
    held = [TEXTS[0][name] for name in ("question", "truth", "greedy", "worst")]
    assert all(text in told for text in held) and "row 3, recall 0.985 under sampling, temperature 1" in told
    shown, rest = body[body.index('<h2 id="worst') : body.index('<h2 id="rows')].split("<details>")
    assert re.findall(r"row (\d+), recall", shown) == [str(row) for row in range(20)]
    assert re.findall(r"row (\d+), recall", rest) == [str(row) for row in range(20, 25)]
    shown, rest = body[body.index('<h2 id="rows') : body.index('<h2 id="data')].split("<details>")
    assert re.findall(r"row (\d+) ", shown) == [str(row) for row in range(29, 9, -1)]
    assert re.findall(r"row (\d+) ", rest) == [str(row) for row in range(9, -1, -1)]

    rows = rows_for("after")
    for row in rows:  # without the sampling attack the greedy answers tell
        row["columns"]["after"] |= {"worst": None, "recall": row["row"] / 30}
    write_report(tmp_path, *inputs(), LOG, rows, TEXTS)
    told = private.read_text()
    assert re.findall(r"row (\d+) ", told[told.index('<h2 id="rows') :])[:2] == ["29", "28"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "private", "report.html", "report.md"]
    for path in tmp_path.glob("*.*"):
        told = visible(path.read_text())
        assert "PRIVATE" not in told and not any(text in told for text in held)
        assert "row 29" not in told  # with the published model its recall would tell a guessed answer right


def test_no_texts_no_private_file_and_the_same_report_twice(tmp_path, report, figures, monkeypatch):
    monkeypatch.setattr("eval.report.report.audit_figures", lambda *args: figures)
    assert render(tmp_path, *inputs()) == report
    assert overview_panels(inputs()[0]) == [drawn[1:] for drawn in figures["overview"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "report.html", "report.md"]


def test_own_data_with_a_forget_set_only(tmp_path, quick):
    results, audit = inputs("before", "after")
    for value in results.values():
        value["sets"] = {"forget": value["sets"]["forget"]}
        value["tofu"]["sets"] = {"forget": value["tofu"]["sets"]["forget"]}
        value["answer_kinds"] = {"forget": value["answer_kinds"]["forget"]}
        value |= {"utility": None, "utility_interval": None}
        value["attacks"]["prefilling"] = {}
    audit["judge"], audit["stages"]["before"] = None, None
    audit["stages"]["after"]["read"]["retain"] = None
    audit["read"]["options"], audit["left_out"] = {}, []
    _, md = render(tmp_path, results, audit)
    assert ["utility *near before*", "not available \\[1\\]", "not available \\[1\\]"] in md_rows(md)
    assert ["nothing *retain*", "–", "–", "–"] in md_rows(md)
    for line in (
        "- \\[1\\] not available: no set of this group has true answers\n",
        "- **before, after**: not available: no beginning of an answer, or no wording, was given\n",
        "before: not available: its folder has no manifest",
        "There is no retain_only model in this audit",
        "Without a retain-only model nothing says",
        "Gibberish is told by looks only",
        "Nothing: all sets",
    ):
        assert line in md, line
    assert "forget_paraphrased" not in md and "Only these beginnings" not in md
    assert "To retain: nothing." in (tmp_path / "README.md").read_text()


def test_own_data_without_forget_answers(tmp_path):
    results, audit = inputs("before", "after")
    why = {"not_available": "no forget row has a true answer"}
    for value in results.values():
        value["sets"] = {name: value["sets"]["retain"] for name in ("retain", "retain_holdout")}
        value["tofu"] = {"sets": {}, "model_utility": why, "forget_quality": why}
        value |= {"unlearn_quality": None, "unlearn_quality_interval": None, "utility_holdout": 77.7}
        value |= {"memorization": why, "membership": why, "answer_kinds": {}}
        value["attacks"] = dict.fromkeys(value["attacks"], why)
    audit["verdicts"] = {"after": verdict(results["after"], results["before"], None)}
    html, md = render(tmp_path, results, audit, log=[])
    assert ["utility, held-out retain rows *near before*", "77.7", "77.7"] in md_rows(md)
    assert "not available: the training log has no steps" in md and "<svg" not in html
    assert md.count("not available: no forget row has a true answer") >= 6 + 2


def test_no_number_is_a_dash(tmp_path, quick):
    results, audit = inputs()
    for value in results.values():
        value["sets"]["forget"] |= {"rougeL_recall_interval": None, "change_interval": None}
        value["memorization"]["exact_memorization"] = {"mean": None, "interval": None, "n": 0, "missing": 6}
        value["attacks"]["relearning"]["retain rows"]["recovered"] = [None] * 3
        value["attacks"]["token_shift"]["other_tokens"] |= {"mean": None, "n": 0}
        value["tofu"]["sets"]["retain"]["truth_ratio"]["missing"] = 2
        value["sets"]["retain"]["tokenization"] = {"rouge": 5, "script_aware": 3}
        value["sets"]["retain"] |= {"semantic": summary(0.5) | {"above_limit": summary(0.25) | {"limit": 0.9}}}
    _, md = render(tmp_path, results, audit, log=[LOG[0] | {"reward": None}])
    for row in (
        ["forget *n = 6; near retain_only*", "0.900", "0.100", "0.200"],
        ["exact memorization *near retain_only*", "–", "–", "–"],
        ["way back, step 1", "–", "–", "–"],
        ["mean change", "–", "–", "–"],
        ["semantic similarity *retain*", *["0.500 *0.450 to 0.550*"] * 3],
        ["as near as a paraphrase *retain*", *["0.250 *0.200 to 0.300*"] * 3],
        ["5", "0.6", "–", "0.2", "2", "0.01", "12", "0.2", "0.3"],
    ):
        assert row in md_rows(md), row
    labels = [row[0] for row in md_rows(md)]
    assert "truth ratio, retain *n = 6, 2 missing; near before*" in labels
    assert "retain *n = 8, 3 not in Latin letters; near before*" in labels and "each character is one." in md


def test_model_card():
    results, audit = inputs()
    _, front, text = model_card(results, audit).split("---\n", 2)
    told = {"base_model": "before", "library_name": "transformers", "tags": ["pmc", "unlearning"]}
    assert yaml.safe_load(front) == told
    assert "from transformers import AutoModelForCausalLM" in text and "adapter" not in text
    assert "6 questions of data:forget01; columns that training read: question." in text
    assert "What this does not show" in text and "no legal proof" in text
    assert md_rows(text)[0] == ["", "before", "after", "retain_only"]
    assert ["sampling *near retain_only*", "0.930", "0.130", "0.230"] in md_rows(text)
    audit["models"]["before"], audit["stages"]["before"] = "org/a: model", None
    audit["stages"]["after"]["files"].append("adapter_config.json")
    card = model_card(results, audit)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "org/a: model" and front["library_name"] == "peft"
    assert "from peft import AutoPeftModelForCausalLM" in card and "before publishing, put the name" not in card
    audit["stages"]["before"] = audit["stages"]["retain_only"]  # a folder of this machine
    assert "before publishing, put the name" in model_card(results, audit)


def test_markdown_of_any_page():
    """Headings of the same name have anchors of their own, HTML is shown, a figure stands where the text has it."""
    text = '# A\n\n## B\n\n## B\n\n<i>x</i> ![a "b"](f.svg)\n\n#### More\n\n> [!TIP]\n> **good**\n\n### C\n'
    html = html_page("<t>", text, {"f.svg": '<svg><g id="p1" x="url(#m1)"/><path id="m1"/></svg>'})
    assert '<h2 id="b">' in html and '<h2 id="b-">' in html and "<title>&lt;t&gt;</title>" in html
    assert "&lt;i&gt;x" in html and '<svg role="img" aria-label="a &quot;b&quot;"><g x="url(#figure0-m1)"' in html
    folded = '(?s)<details>\n<summary>More</summary>.*<blockquote class="TIP">.*</details>\n<h3 id="c">'
    assert re.search(folded, html)
    assert MarkdownIt().renderInline(escape("a_b *c* [d](e) <f> `g`")) == "a_b *c* [d](e) &lt;f&gt; `g`"
