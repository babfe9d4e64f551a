"""The report: what the numbers say, redacted, in HTML and Markdown; the private one with texts; the model card."""

import copy
import re
import stat
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from eval.report.plots import COLOURS, answer_kinds, leakage_curves, model_style, training_curves
from eval.report.write import markdown, model_card, write_report
from eval.verdict import verdict

HASH = "0123456789abcdef" * 4
VALUES = {"before": 0.9, "after": 0.1, "retain_only": 0.2}  # what most numbers of a model are


def summary(value: float, n: int = 6) -> dict:
    return {"mean": value, "interval": [value - 0.05, value + 0.05], "n": n, "missing": 0}


def rows_of(value: float) -> dict[int, float]:
    return dict.fromkeys(range(6), value)


def sampled(value: float) -> dict:
    return {
        "worst_case": summary(value + 0.03),
        "mean": summary(value / 2),
        "quantiles": {"0.5": 0.0, "0.99": value},
        "curve": {"1": value / 2, "2": value, "4": value + 0.03},
        "leaking": {"samples": 3, "of": 24, "questions": 2, "upper_bound": 0.3},
        "worst_by_row": rows_of(value),
        "worst_sample_by_row": rows_of(0),
    }


def relearned(value: float) -> dict:
    steps = [0, 1, 2]
    recall = [value, value + 0.01, value + 0.02]
    return {
        "steps": steps,
        "recall": recall,
        "recall_by_row": [rows_of(value) for value in recall],
        "probability": recall,
        "recovered": [0.0, 0.1, 0.2],
        "learned": 3,
        "scored": 3,
    }


def recall_of(value: float, n: int) -> dict:
    ends = {"rougeL_recall_interval": [value - 0.04, value + 0.04], "change_interval": [-0.7, -0.6]}
    tokenization = {"rouge": n, "script_aware": 0}
    more = {"recall_by_row": rows_of(value), "n": n, "tokenization": tokenization}
    return {"rougeL_recall": value, **ends, **more, "empty": 1, "ended": 0.75}


def column(name: str) -> dict:
    """A column of results.json where all is there."""
    value = VALUES[name]
    kinds = {"leak": 1, "refusal": 2, "gibberish": 0, "copy": 1, "hallucination": 2}
    auc = {"auc": value, "auc_interval": [value - 0.06, value + 0.06], "reference_auc": 0.45, "privleak": -31.4}
    quality = {"p_value": 0.012, "log10_p_value": -1.92, "statistic": 0.5, "n": 6, "n_reference": 6}
    shift = {"mean": -value / 100, "std": 0.1, "skew": -2.0, "below_minus_half": 0.01, "n": 50}
    by_quantile = [{"quantile": q, "threshold": 0.1, "least": value / 2, "n": 3} for q in (0.5, 1.0)]
    quantized = {
        "recall": value,
        "recall_by_row": rows_of(value),
        "recall_change": 0.01,
        "probability": value,
        "probability_change": 0.02,
    }
    sets = ("forget", "forget_paraphrased", "retain", "real_authors", "world_facts")
    return {
        "known": {"questions": round(6 * value), "of": 6},
        "unlearn_quality": 100 - 100 * value,
        "utility": 88.8,
        "unlearn_quality_interval": [20.2, 95.5],
        "utility_interval": [80.0, 90.0],
        "sets": {set_name: recall_of(value, 6 + i) for i, set_name in enumerate(sets)},
        "tofu": {
            "sets": {
                name: {"probability": summary(value), "truth_ratio": summary(value)} for name in ("forget", "retain")
            },
            "model_utility": {"value": 0.654},
            "forget_quality": quality | {"median": 1.2, "reference_median": 1.3},
        },
        "memorization": {"exact_memorization": summary(value), "extraction_strength": summary(value)},
        "membership": {
            attack: auc | {"members": 6, "non_members": 5} for attack in ("loss", "zlib", "min_k", "min_k_plus_plus")
        },
        "answer_kinds": {"forget": kinds, "forget_paraphrased": kinds},
        "attacks": {
            "sampling": {"temperature 1": sampled(value), "as in training": sampled(value / 2)},
            "prefilling": {
                "The answer is:": {"greedy": summary(value), "greedy_by_row": rows_of(value), **sampled(value)}
            },
            "options": {"least": value, "most": 0.3, "options": 4, "n": 6, "by_quantile": by_quantile},
            "token_shift": {"forget_tokens": shift, "other_tokens": shift},
            "relearning": {"half of the forget rows": relearned(value), "retain rows": relearned(value)},
            "quantization": {bits: quantized | {"recovered": 0.05, "n": 6} for bits in ("8 bit", "4 bit")},
        },
        "general_ability": {"hellaswag": {"n": 20, "acc": value, "acc_stderr": 0.07, "acc_norm": 0.333}},
    }


def inputs(names: tuple[str, ...] = ("before", "after", "retain_only")) -> tuple[dict, dict]:
    """results.json and audit.json."""
    results = {name: column(name) for name in names}
    record = {"source": "data:forget01", "files": ["data/forget01.json"], "rows": 6}
    read = {"forget": record | {"columns": ["question"]}}
    retained = {"retain": record | {"columns": ["question", "answer"], "held_out": 17}}
    audit = {
        "models": {name: f"runs/{name}" for name in names},
        "fingerprints": {name: f"{HASH} torch.float32 None" for name in names},
        "verdicts": {"after": verdict(results["after"], results["before"], results.get("retain_only"))},
        "judge": {"model": names[-1], "perplexity_limit": 123.4},
        "left_out": ["world_facts: 'tofu/x' has no config 'world_facts'"],
        "read": {"questions": read, "options": read},
        "stages": {name: {"stage": "finetune", "read": read, "files": ["config.json"]} for name in names},
        "settings": {"temperature": 1.5, "output_dir": "runs/after"},
        "seed": 42,
        "dtype": "torch.float32",
        "attack_settings": {"attack_samples": 100, "prefixes": ["The answer is:"]},
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
        "device": "cpu",
        "date": "2026-11-21",
        "seconds": dict.fromkeys(names, 12.34),
        "passes": {name: {"greedy": {"seconds": 2.0, "rows": 50}} for name in names},
    }
    audit["stages"]["after"] = {"stage": "train", "read": read | retained, "files": ["model.safetensors"]}
    return results, audit


def rows_for(names: tuple[str, ...] = ("before", "after", "retain_only")) -> list[dict]:
    """rows.json."""
    return [
        {
            "row": row,
            "truth_words": 9,
            "columns": {name: {"recall": 0.1, "words": 7, "kind": "refusal", "worst": row / 40} for name in names},
        }
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
def report(tmp_path_factory) -> tuple[str, str]:
    return render(tmp_path_factory.mktemp("report"), *inputs())


@pytest.fixture
def quick(monkeypatch):
    """Figures are drawn, but not laid out and saved, which takes most of the time of a report."""

    def draw_only(identifier, label, draw, height=2.3):
        draw(Figure().subplots())
        return "<svg></svg>"

    monkeypatch.setattr("eval.report.plots._svg", draw_only)


class Page(HTMLParser):
    """Rows of all tables as lists of cells, attributes of all elements, and ids."""

    def __init__(self, html: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.cell = True
            self.rows[-1].append("")
        if tag == "small" and self.cell:
            self.rows[-1][-1] += " | "

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.cell = False

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def md_tables(text: str) -> list[list[list[str]]]:
    """Tables of Markdown, each a list of rows of cells."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append([])
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        inside = line.startswith("|")
    return tables


def test_chapters_stand_in_order_and_are_linked(report):
    html, md = report
    page = Page(html)
    anchors = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert anchors == [
        *("#verdict", "#headline", "#training", "#attacks", "#kinds", "#membership", "#ability", "#data"),
        *("#left-out", "#settings", "#limits"),
    ]
    assert [id for id in page.ids() if f"#{id}" in anchors] == [anchor[1:] for anchor in anchors]
    titles = [unescape(title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", html)]
    assert len(titles) == len(anchors)
    assert re.findall(r"^## (.*)$", md, re.M) == titles
    assert "<h1>Unlearning audit of runs/after</h1>" in html


def test_numbers_of_the_headline_are_those_of_the_input(report):
    rows = Page(report[0]).rows
    md = [row for table in md_tables(report[1]) for row in table]
    expected = [
        ["unlearn quality | near retain_only, not 100", *(f"{v} | 20.2 to 95.5" for v in ("10.0", "90.0", "80.0"))],
        ["utility | near before", *["88.8 | 80.0 to 90.0"] * 3],
        [
            "forget | n = 6; near retain_only",
            "0.900 | 0.860 to 0.940",
            "0.100 | 0.060 to 0.140",
            "0.200 | 0.160 to 0.240",
        ],
        ["change from before | forget", "–", "-0.800 | -0.700 to -0.600", "-0.700 | -0.700 to -0.600"],
        ["truth ratio, forget | n = 6; near retain_only", "0.900 | 0.850 to 0.950", "0.100 | 0.050 to 0.150"]
        + ["0.200 | 0.150 to 0.250"],
        ["model utility | near before", "0.654", "0.654", "0.654"],
        ["forget quality, p | above 0.05", "0.012", "0.012", "0.012"],
        ["forget quality, log10 p | above -1.30", "-1.92", "-1.92", "-1.92"],
        ["privleak, % | near 0", "-31.4", "-31.4", "-31.4"],
        ["sampling | near retain_only", "0.930", "0.130", "0.230"],
        ["retain", "1; 75%", "1; 75%", "1; 75%"],
        ["known | near retain_only", "5 of 6", "1 of 6", "1 of 6"],
    ]
    for row in expected:
        assert row in rows
        assert [re.sub(r" \| (.*)", r" (\1)", cell) for cell in row] in md


def test_numbers_of_the_attacks_are_those_of_the_input(report):
    rows = Page(report[0]).rows
    for row in (
        ["leaking samples", "3 of 24", "3 of 24", "3 of 24"],
        ["upper 95 % bound on the share of leaking samples", "30.00%", "30.00%", "30.00%"],
        ["temperature 1 (n = 6, 4 samples a question)"],
        ["4", "0.930", "0.130", "0.230"],  # the curve
        ["step 2", "0.920 | 20% back", "0.120 | 20% back", "0.220 | 20% back"],
        ["least likely", "0.900", "0.100", "0.200"],
        ["mean change", "-0.0090", "-0.0010", "-0.0020"],
        ["recall", *(f"{value:.3f} | change +0.010" for value in VALUES.values())],
        ["hallucination", "2", "2", "2"],
        ["acc", *(f"{value:.3f} | ± 0.070" for value in VALUES.values())],
        ["acc_norm", "0.333", "0.333", "0.333"],
        ["greedy", "50", "2.0", "25.0"],  # rows, seconds, rows a second
    ):
        assert row in rows
    assert "acc_stderr" not in report[0]


def test_markdown_has_every_table_of_the_page(report):
    html, md = report
    tables = md_tables(md)
    assert len(tables) == html.count("<table")
    for table in tables:
        assert {len(row) for row in table} == {len(table[0])}
    by_row = [row for table in tables for row in table if row[0] != "---"]
    assert len(by_row) == html.count("<tr")


def test_verdicts_stand_with_their_reasons(tmp_path, quick):
    results, audit = inputs()
    audit["verdicts"]["after"] |= {
        "forgetting": "hidden, not forgotten",
        "forgetting_reasons": ["reason <1>", "reason 2"],
    }
    audit["verdicts"]["after"] |= {"calibration": "well unlearned", "calibration_reasons": ["reason 3"]}
    html, md = render(tmp_path, results, audit)
    assert re.search(
        r'class="verdict bad">\s*<p class="label">Forgetting</p>\s*<p class="said">hidden, not forgotten<', html
    )
    assert re.search(
        r'class="verdict good">\s*<p class="label">Calibration</p>\s*<p class="said">well unlearned<', html
    )
    assert "**Forgetting: hidden, not forgotten**\n\n- reason \\<1\\>\n- reason 2\n" in md
    assert "**Calibration: well unlearned**\n\n- reason 3\n" in md
    assert "reason &lt;1&gt;" in html
    card = (tmp_path / "README.md").read_text()
    assert all(part in card for part in ("hidden, not forgotten", "well unlearned", "- reason 2", "- reason 3"))


PLACES = [
    *(
        ("attacks", attack)
        for attack in ("sampling", "prefilling", "options", "token_shift", "relearning", "quantization")
    ),
    ("attacks", "prefilling", "The answer is:"),
    ("tofu", "sets", "forget", "truth_ratio"),
    ("tofu", "sets", "retain", "probability"),
    ("tofu", "model_utility"),
    ("tofu", "forget_quality"),
    ("memorization",),
    ("membership",),
    ("membership", "zlib", "privleak"),
    ("membership", "min_k_plus_plus", "privleak"),
    ("general_ability",),
]


def put(results: dict, names: list[str], place: tuple[str, ...], value) -> None:
    for name in names:
        inner = results[name]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = copy.deepcopy(value)


@pytest.mark.parametrize("names", [["before"], ["after"], ["before", "after", "retain_only"]], ids="+".join)
def test_every_reason_shows(tmp_path, quick, names):
    """In two renders, as some places are inside others."""
    for part, places in enumerate((PLACES[:6] + PLACES[12:13], PLACES[6:12] + PLACES[13:])):
        results, audit = inputs()
        for place in places:
            put(results, names, place, {"not_available": f"<why not {'/'.join(place)}>"})
        html, md = render(tmp_path, results, audit)
        for place in places:
            reason = f"<why not {'/'.join(place)}>"
            assert f"not available: {reason}" in unescape(html), (part, place)
            assert f"not available: {markdown(reason)}" in md, (part, place)
        assert "<why" not in html


def test_a_reason_is_shown_for_the_model_it_belongs_to(tmp_path, quick):
    results, audit = inputs()
    put(results, ["before"], ("attacks", "relearning"), {"not_available": "not unlearned"})
    html, _ = render(tmp_path, results, audit)
    assert ["relearning | near retain_only", "not available [1]", "0.120", "0.220"] in Page(html).rows
    assert "<dt>before</dt><dd>not available: not unlearned</dd>" in html


def test_odd_names_are_escaped(tmp_path):
    results, audit = inputs()
    odd = 'merged<b> | *x* $y$ & "q"'
    results[odd] = column("after")
    for key in ("models", "fingerprints", "seconds", "passes", "stages", "verdicts"):
        audit[key][odd] = audit[key]["after"]
    prefix = "Sure,\n<i>here</i> | it is: "
    for name in results:
        put(
            results,
            [name],
            ("attacks", "prefilling", prefix),
            results[name]["attacks"]["prefilling"]["The answer is:"],
        )
    audit["settings"]["odd"] = {"a": "<u>"}
    html, md = render(tmp_path, results, audit)
    assert not re.search("<b>|<i>|<u>", html)
    assert len(Page(html).ids()) == len(set(Page(html).ids()))
    assert odd in unescape(html) and Page(html).rows[0] == ["", "before", "after", "retain_only", odd]
    assert markdown(odd) in md and "<b>" not in md and "<i>" not in md
    assert all(len({len(row) for row in table}) == 1 for table in md_tables(md))
    kinds = unescape(answer_kinds({name: c["answer_kinds"] for name, c in results.items()}, list(results))[0].svg)
    assert odd in re.findall("<text[^>]*>(.*?)</text>", kinds)


def test_the_page_loads_nothing(report):
    html, _ = report
    assert "<script" not in html and "@import" not in html and "://" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    page = Page(html)
    assert not [
        tag for tag, name, _ in page.attributes if name in ("src", "srcset", "action") or name.startswith("on")
    ]
    links = [value for _, name, value in page.attributes if name.endswith("href")]
    ids = page.ids()
    assert len(ids) == len(set(ids))
    used = [link[1:] for link in links] + re.findall(r"url\(#([^)]*)\)", html)
    assert all(link.startswith("#") for link in links) and set(used) <= set(ids)
    assert len(used) > 100  # markers and clip paths of the figures


def test_light_dark_and_narrow(report):
    html, _ = report
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    variables = set(re.findall(r"var\((--[\w-]+)\)", html)) - {"--tone"}
    assert {f"--{name}" for name in COLOURS} >= {name for name in variables if name.startswith(("--series", "--kind"))}
    assert all(f"{name}:" in light for name in variables)
    dark = dark[: dark.index("\n}\n")]
    fixed = {name for name in variables if name.startswith("--kind")} | {
        "--on-kind"
    }  # dark text on light bars in both
    assert all(f"{name}:" in dark for name in variables - fixed)
    assert 'name="viewport"' in html
    plots = re.findall(r'<svg class="plot"[^>]*>', html)
    assert len(plots) == 17
    assert all(
        "viewBox=" in plot and "aria-label=" in plot and not re.search("width=|height=", plot) for plot in plots
    )
    assert html.count("<table") == html.count('class="scroll"')


def test_figures_are_drawn_in_variables_and_words():
    results, _ = inputs()
    runs = {name: value["attacks"]["sampling"] for name, value in results.items()}
    panels = leakage_curves(runs, list(results), "x")
    assert [panel.caption for panel in panels] == ["temperature 1", "as in training"]
    svg = panels[0].svg
    assert not any(colour in svg for colour in COLOURS.values()) and "font-family" not in svg
    lines = {i for i in range(8) if f"stroke: var(--series-{i})" in svg}
    assert lines == set(model_style(list(results)).values()) == {0, 1, 2}
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert ticks[:4] == ["1", "2", "4", "samples a question"]
    assert "before 0.93, after 0.13, retain_only 0.23" in svg
    assert set(re.findall(r"fill: #(\w+)", svg)) <= {"none"}


def test_training_curves_are_of_what_was_logged():
    panels = training_curves(LOG[:2])
    assert [panel.caption.split(":")[0] for panel in panels] == [
        *("Reward", "Retain loss", "Collapse loss on the trained answers", "Diversity"),
        *("Length of the samples", "Questions solved"),
    ]
    assert "trained 1 at step 10, all samples 0.3 at step 5" in panels[0].svg
    assert "loss a token 1 at step 10" in panels[1].svg
    assert [panel.caption for panel in training_curves([{"step": 5, "frac_solved": 0.5}])] == ["Questions solved"]
    theory = training_curves(
        [{"step": 5, "exp_reward/mean": 2.5, "exp_reward/var": 0.5, "distinct_samples": 0.25, "kl": 1.5}]
    )
    assert [panel.caption.split(":")[0] for panel in theory] == [
        "Theorem 1",
        "Diversity",
        "KL divergence to the model before",
    ]
    assert "E[e^r] 2.5 at step 5, Var[e^r] 0.5 at step 5" in theory[0].svg


def private_report(folder: Path, rows: list[dict], texts: list[dict]) -> str:
    write_report(folder, *inputs(), LOG, rows, texts)
    return (folder / "private" / "report_with_texts.html").read_text()


def test_rows_worst_first_and_the_rest_on_demand(tmp_path, quick):
    html = private_report(tmp_path, rows_for(), TEXTS)
    chapter = html[html.index('<h2 id="rows"') : html.index('<h2 id="data"')]
    shown, rest = chapter.split("<details>")
    assert re.findall(r"row (\d+)<", shown) == [str(row) for row in range(29, 9, -1)]
    assert re.findall(r"row (\d+)<", rest) == [str(row) for row in range(9, -1, -1)]


def test_texts_are_in_the_private_file_only(tmp_path, quick):
    write_report(tmp_path, *inputs(), LOG, rows_for(), TEXTS)
    private = tmp_path / "private" / "report_with_texts.html"
    html = private.read_text()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    body = unescape(html[html.index("<body>") :])
    assert body.index("PRIVATE") < body.index("<h1>")
    texts = [TEXTS[0][name] for name in ("question", "truth", "greedy", "worst")]
    assert all(text in body for text in texts) and "<Ana>" not in html
    assert "row 3, recall 0.875 under sampling, temperature 1" in body and "Worst leaking questions" in body
    redacted = [tmp_path / name for name in ("report.html", "report.md", "README.md")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "private", "report.html", "report.md"]
    for path in redacted:
        told = unescape(path.read_text())
        assert "PRIVATE" not in told and not any(text in told for text in texts)
        assert "row 29" not in told  # with the published model its recall would tell a guessed answer right


def test_of_many_texts_the_worst_are_shown_at_once(tmp_path, quick):
    texts = [TEXTS[0] | {"row": row, "recall": 1 - row / 100} for row in range(25)]
    html = private_report(tmp_path, rows_for(), texts)
    chapter = html[html.index('<h2 id="texts"') : html.index('<h2 id="rows"')]
    shown, others = chapter.split("<details>")
    assert re.findall(r"<h3>row (\d+),", shown) == [str(row) for row in range(20)]
    assert re.findall(r"<h3>row (\d+),", others) == [str(row) for row in range(20, 25)]
    assert "The other 5 questions" in others


def test_no_texts_no_private_file_and_the_same_report_twice(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, *inputs(), LOG, rows_for(), None)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["README.md", "report.html", "report.md"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_was_read_is_told_without_hashes(report):
    html, md = report
    assert ["data:forget01 | retain", "6", "17", "question, answer"] in Page(html).rows
    assert "SHA" not in html and "SHA" not in md


def test_own_data_with_a_forget_set_only(tmp_path, quick):
    results, audit = inputs(("before", "after"))
    for value in results.values():
        value["sets"] = {"forget": value["sets"]["forget"]}
        value["tofu"]["sets"] = {"forget": value["tofu"]["sets"]["forget"]}
        value["answer_kinds"] = {"forget": value["answer_kinds"]["forget"]}
        value |= {"utility": None, "utility_interval": None}
        del value["attacks"]["relearning"]["retain rows"]
    audit["judge"], audit["stages"]["before"] = None, None
    audit["stages"]["after"]["read"]["retain"] = None
    audit["read"]["options"] = {}
    html, md = render(tmp_path, results, audit)
    rows = Page(html).rows
    assert ["utility | near before", "not available [1]", "not available [1]"] in rows
    assert "[1] not available: no set of this group has true answers" in html
    assert ["nothing | retain", "–", "–", "–"] in rows
    assert ["seed", "42"] in rows and ["attack_samples", "100"] in rows
    assert "before: not available: its folder has no manifest" in html
    assert "There is no retain_only model in this audit" in html and "There is no retain_only model" in md
    assert "Without a retain-only model nothing says" in md
    assert "forget_paraphrased" not in html
    assert "To retain: nothing." in (tmp_path / "README.md").read_text()


def test_own_data_without_forget_answers(tmp_path):
    results, audit = inputs(("before", "after"))
    why = {"not_available": "no forget row has a true answer"}
    for value in results.values():
        value["sets"] = {name: value["sets"]["retain"] for name in ("retain", "retain_holdout")}
        value["tofu"] = {"sets": {}, "model_utility": why, "forget_quality": why}
        value |= {"unlearn_quality": None, "unlearn_quality_interval": None, "utility_holdout": 77.7}
        value |= {"memorization": why, "membership": why, "answer_kinds": {}}
        value["attacks"] = dict.fromkeys(value["attacks"], why)
    audit["verdicts"] = {"after": verdict(results["after"], results["before"], None)}
    html, md = render(tmp_path, results, audit, log=[])
    assert ["utility, held-out retain rows | near before", "77.7", "77.7"] in Page(html).rows
    assert "not available: the training log has no steps" in html
    assert html.count("not available: no forget row has a true answer") >= 6 + 2
    assert "<svg" not in html


def test_no_number_is_a_dash(tmp_path, quick):
    results, audit = inputs()
    for value in results.values():
        value["sets"]["forget"] |= {"rougeL_recall_interval": None, "change_interval": None}
        value["memorization"]["exact_memorization"] = {"mean": None, "interval": None, "n": 0, "missing": 6}
        value["attacks"]["relearning"]["retain rows"]["recovered"] = [None] * 3
        value["attacks"]["quantization"]["8 bit"]["recovered"] = None
        none = {"mean": None, "std": None, "skew": None, "below_minus_half": None, "n": 0}
        value["attacks"]["token_shift"]["other_tokens"] = none
        value["membership"]["loss"]["auc_interval"] = None
        value["tofu"]["sets"]["retain"]["truth_ratio"]["missing"] = 2
    html, _ = render(tmp_path, results, audit, log=[LOG[0] | {"reward": None, "retain_loss": None}])
    rows = Page(html).rows
    assert ["forget | n = 6; near retain_only", "0.900", "0.100", "0.200"] in rows
    assert ["exact memorization | near retain_only", "–", "–", "–"] in rows
    assert ["step 1", *(f"{value + 0.01:.3f} | – back" for value in VALUES.values())] in rows
    assert ["share of the way back to before", "–", "–", "–"] in rows
    assert ["mean change", "–", "–", "–"] in rows
    assert "truth ratio, retain | n = 6, 2 missing; near before" in [row[0] for row in rows]
    assert "Retain loss" not in html


def test_rows_without_the_sampling_attack_are_ordered_by_their_greedy_answers(tmp_path, quick):
    rows = rows_for()
    for row in rows:
        for value in row["columns"].values():
            value["worst"] = None
        row["columns"]["after"]["recall"] = row["row"] / 30
    html = private_report(tmp_path, rows, TEXTS)
    assert [row[0] for row in Page(html).rows if row[0].startswith("row ")][1].startswith("row 29")


def test_a_prefix_without_rows_and_no_prefix_at_all(tmp_path, quick):
    results, audit = inputs()
    put(
        results,
        list(results),
        ("attacks", "prefilling"),
        {"first 3 words": {"not_available": "no answer has more words"}},
    )
    html, _ = render(tmp_path, results, audit)
    assert html.count("not available: no answer has more words") == 2  # headline and chapter
    put(results, list(results), ("attacks", "prefilling"), {})
    html, md = render(tmp_path, results, audit)
    assert html.count("not available: no beginning of an answer was given") == 2
    assert "Only these beginnings" not in md


def test_model_card():
    results, audit = inputs()
    card = model_card(results, audit)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "before",
        "library_name": "transformers",
        "tags": ["pmc", "unlearning"],
    }
    assert "AutoModelForCausalLM" in text and "adapter" not in text
    assert "6 questions of data:forget01; columns that training read: question." in text
    assert "What this does not show" in text and "no legal proof" in text
    [table] = md_tables(text)
    assert table[0] == ["", "before", "after", "retain_only"]
    assert ["sampling (near retain_only)", "0.930", "0.130", "0.230"] in table
    audit["models"]["before"], audit["stages"]["before"] = "org/a: model", None
    audit["stages"]["after"]["files"].append("adapter_config.json")
    card = model_card(results, audit)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "org/a: model" and front["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in card and "adapter_config.json" in card
    assert "put the\nname there" not in card
    audit["stages"]["before"] = audit["stages"]["retain_only"]  # a folder of this machine
    assert "put the\nname there under which the base model is published" in model_card(results, audit)


def test_limits_name_what_was_done(tmp_path, quick):
    results, audit = inputs()
    html, md = render(tmp_path, results, audit)
    limits = md[md.index("## What this does not show") :]
    assert "- 4 samples a question are not all samples" in limits
    assert "Only these beginnings of answers were tried: The answer is:." in limits
    assert "forget 6, forget_paraphrased 7, retain 8" in limits
    assert "retain_only is a single model too" in limits and "Left out of the audit: 1 of" in limits
    assert "Nothing: all sets" not in html and "has no config" in html
