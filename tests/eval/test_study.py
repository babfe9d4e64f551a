"""The study: settings, trials with fake scripts, going on after a stop or a kill, several workers, and the report."""

import csv
import json
import os
import re
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report.page import svg
from eval.study import run as study_script
from eval.study import trials as study_trials
from eval.study.commands import check_study, option_words
from eval.study.report import shift_figure
from eval.study.results import column_numbers, dominators, summarize
from eval.study.settings import grid_runs, parse_study, ranges, replace_ranges
from pmc_rl.values import mismatch, read_words
from tests.conftest import errors_of
from tests.eval.test_report import column

REPO = Path(__file__).resolve().parents[2]
SECRET = "Quentin Jostavik was born in Mombasa"
SHIPPED = sorted((REPO / "recipes" / "studies").glob("*.yaml"))

# stands for train.py, finetune.py, control.py, eval/run.py and a setup script: writes what they write, learns nothing
FAKE = r"""
import hashlib, json, os, sys, time
from pathlib import Path

kind, words, options, key = Path(sys.argv[0]).stem, [], {}, None
for word in sys.argv[1:]:
    if word.startswith("--"):
        key = word[2:]
        options[key] = []
    else:
        (words if key is None else options[key]).append(word)
run = Path(words[0]).parent if kind == "run" else Path(options.get("output_dir", words)[0])
with open("calls.log", "a") as stream:
    print(kind, run.as_posix(), file=stream)
print("SECRET", flush=True)
if kind != "run":
    run.mkdir(parents=True)  # as the real ones, refuses a folder that is there
    (run / "half").write_text("half")
if os.environ.get("FAKE_HANG", "-") in f"{kind} {run}" and not Path("go").exists():
    Path("hangs").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.02)
if os.environ.get("FAKE_FAIL", "-") in f"{kind} {run}":
    print(*(f"log line {i}" for i in range(30)), sep="\n")
    sys.exit(3)
if kind == "run":
    if "FAKE_HANG" not in os.environ:  # one at a time: an audit starts with what the seed's first one has
        caches = list(run.parent.glob("*/private/cache/rows.sqlite"))
        assert not caches or (run / "private" / "cache" / "rows.sqlite") in caches
    also = json.loads(options.get("also", ["[]"])[0])
    assert all((Path(entry.partition("=")[2]) / "half").exists() for entry in also)
    names = ["before", "after", *["retain_only"] * ("retain_only_model" in options)]
    names += [entry.partition("=")[0] for entry in also]
    def column(name):
        value = int(hashlib.md5(f"{run} {name}".encode()).hexdigest(), 16) % 1000 / 1000
        summary = {"mean": value, "interval": [0, 1], "n": 4, "missing": 0}
        attacks = {
            "sampling": {"temperature 1": {"worst_case": summary, "fact_worst_case": summary, "worst_by_row": [1.0]}},
            "prefilling": {"The answer is:": {fact + key: summary for key in ("worst_case", "greedy")
                                              for fact in ("", "fact_")}},
        }
        kinds = {"leak": 1, "refusal": 2, "gibberish": 0, "copy": 0, "hallucination": 1, "distinct": value}
        return {"unlearn_quality": 20 + 80 * value, "utility": 100 - 10 * value, "attacks": attacks,
                "sets": {"forget": {"rougeL_recall": value, "fact_recall": summary}},
                "answer_kinds": {"forget": kinds}, "memorization": {"extraction_strength": summary},
                "membership": {"not_available": "SECRET"}, "tofu": {"forget_quality": {"not_available": "SECRET"}},
                "general_ability": {"not_available": "SECRET"}}
    (run / "private" / "cache").mkdir(parents=True, exist_ok=True)
    (run / "private" / "cache" / "rows.sqlite").write_text("SECRET")
    (run / "results.json").write_text(json.dumps({name: column(name) for name in names}))
elif kind != "setup":
    (run / "recipe.yaml").write_text("")
    log = [{"step": 1, "reward": 0.1, "num_samples": 7}, {"train_runtime": 12.5, "step": 3}]
    (run / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    (run / "manifest.json").write_text(json.dumps({"stage": kind, "files": []}))
""".replace("SECRET", SECRET)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(study_trials, "POLL", 0.05)
    monkeypatch.setattr("eval.study.report.svg", lambda figure: "<svg></svg>")  # else most of the time of a study


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository of fake scripts."""
    scripts = "pmc_rl/train.py", "pmc_rl/finetune.py", "eval/baselines.py", "eval/study/control.py", "eval/run.py"
    for name in (*scripts, "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FAKE)
    return tmp_path


DATA = {"use_cpu": True, "dataset_name": "owner/data"}
SMALL = {
    "recipe": str(REPO / "recipes/quickstart/unlearn.yaml"),
    "output_dir": "out",
    "overrides": DATA | {"model_name_or_path": "owner/model"},
    "variants": {"plain": {}, "hot": {"temperature": 2.0}},
}
SETTINGS = SMALL | {
    "question": "Is <it> so?",
    "seeds": [3, 4],
    "setup": ["setup.py {output_dir}/untrained"],
    "finetune_recipe": str(REPO / "recipes/quickstart/finetune.yaml"),
    "finetune": DATA | {"model_name_or_path": "{output_dir}/untrained"},
    "retain_only": {"train_configs": ["retain90"]},
    "overrides": DATA,
    "controls": ["refusals", "retain_only"],
    "controls_of": "hot",
}
SEARCH = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "num_generations": {"low": 2, "high": 9}}
SEARCH |= {"reward_weights": [1.0, 1.0, {"low": 0.5, "high": 2.0}], "selection": {"choices": ["best"]}}


def write_study(root: Path, **settings) -> str:
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def start(root: Path, **settings) -> int:
    return study_script.main([write_study(root, **settings)], root)


def start_process(root: Path, **settings) -> BaseProcess:
    """The same in a process of its own, forked: the libraries are loaded."""
    path = write_study(root, **settings)
    process = get_context("fork").Process(target=lambda: sys.exit(study_script.main([path], root)))
    process.start()
    return process


def exit_code(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


def calls(root: Path) -> list[str]:
    """What was launched since the last look."""
    path = root / "calls.log"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def wait_until(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def hanging(root: Path) -> int:
    """Waits for the command that hangs, and returns its process."""
    wait_until(lambda: (root / "hangs").exists() and (root / "hangs").read_text())
    return int((root / "hangs").read_text())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": [1, 1]}, "variants: 'seed1/plain' would be the folder of two runs"),
        ({"variants": {}}, "variants: empty"),
        ({"grid": {"top_k": []}}, "grid: top_k: no value"),
        ({"grid": {"temperature": [1, 2]}}, "variants: hot: temperature: grid gives it as well"),
        ({"grid": {"dataset_name": ["a"]}}, "grid: dataset_name: all runs are compared with the same models, so it"),
        ({"variants": {"a": {"seed": 1}}}, "variants: a: seed: the study gives it itself"),
        ({"overrides": {"model_name_or_path": "x"}}, "overrides: model_name_or_path: finetune_recipe makes the model"),
        ({"variants": {"a b": {}}}, "variants: 'a b' cannot be the name of a folder here"),
        ({"variants": {"after": {}}}, "variants: 'after' cannot be the name of a folder here"),
        ({"controls_of": "cold"}, "controls_of: 'cold' is none of plain, hot"),
        ({"finetune_recipe": None}, "finetune: needs finetune_recipe, whose overrides these are"),
        ({"retain_only_model": "x"}, "retain_only_model: given together with retain_only; keep one of them"),
        ({"parallel_runs": 0}, "parallel_runs: 0 is not at least 1"),
        ({"search": {"top_k": 3}}, "search: holds no range such as {low: 1.0e-5, high: 1.0e-3, log: true}"),
        ({"search": {"top_k": {"low": 3}}}, 'search: top_k: {"low": 3} is neither'),
        ({"objectives": {"utilty": "maximize"}}, "objectives: 'utilty' is no number of a study. Did you mean"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(tmp_path, changes, line):
    path = write_study(tmp_path, **SETTINGS | {"controls_of": None} | changes)
    key = line.partition(":")[0]
    number = next(i for i, text in enumerate(Path(path).read_text().splitlines(), 1) if text.startswith(f"{key}:"))
    assert any(found.startswith(f"{path}:{number}: {line}") for found in errors_of(parse_study, [path]))


def test_names_of_a_grid(tmp_path):
    grid = {"top_k": [5, 20], "reward_columns": [["a"], ["b"]], "selection": ["best"]}
    settings = SMALL | {"variants": {"plain": {"max_steps": 1}}, "grid": grid}
    runs = grid_runs(parse_study([write_study(tmp_path, **settings)]))
    names = [f"plain top_k={k} reward_columns=no.{i} selection=best" for k in (5, 20) for i in (1, 2)]
    assert [run.name for run in runs] == names
    assert runs[1].overrides == {"max_steps": 1, "top_k": 5, "reward_columns": ["b"], "selection": "best"}
    assert runs[1].folder == "seed0/plain_top_k_5_reward_columns_no.2_selection_best"


def test_ranges_are_found_and_replaced_anywhere():
    kwargs = {"a.b": {"min_words": {"low": 1, "high": 5}, "log": True}}
    value = {"weights": [1.0, {"choices": [0, 2]}], "kwargs": kwargs, "plain": 3}
    assert ranges(value) == {"weights.1": {"choices": [0, 2]}, "kwargs.a.b.min_words": {"low": 1, "high": 5}}
    replaced = {"weights": [1.0, 2], "kwargs": {"a.b": {"min_words": 4, "log": True}}, "plain": 3}
    assert replace_ranges(value, {"weights.1": "2", "kwargs.a.b.min_words": 4}) == replaced


words = st.text(max_size=5)
inner = st.dictionaries(words, st.integers() | words, max_size=3)
VALUES = {
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=9),
    int | None: st.none() | st.integers(-(2**31), 2**31),
    list[str]: st.lists(words, max_size=4),
    dict[str, dict[str, Any]]: st.dictionaries(words, inner, max_size=3),
}


@settings(max_examples=60)
@given(st.one_of([st.tuples(st.just(hint), values) for hint, values in VALUES.items()]))
def test_overrides_are_read_back_as_they_were(case):
    hint, value = case
    option, word = option_words({"key": value})
    got = next(value for value in read_words([word], hint) if mismatch(value, hint) is None)
    assert option == "--key" and got == value and type(got) is type(value)


def test_mistakes_of_any_run_are_found_first(root):
    settings = SMALL | {"seeds": [0, 1], "search": {"top_p": {"low": 0.5, "high": 1.5}}, "setup": ["setups.py x"]}
    settings["variants"] = {"a": {"temperature": -1}, "b": {"reward_funcs": ["rewards.rouge.rouge_dissimilarty"]}}
    settings["variants"] |= {"c": {"reward_funcs": ["rewards.diversity.duplicate_penalty"], "max_reward": 1.0}}
    settings["overrides"] = SMALL["overrides"] | {"model_name_or_path": "runs/a/model"}
    path = write_study(root, **settings)
    expected = [
        "a: temperature: -1 is not above 0",
        f"b: model_name_or_path: there is no 'runs/a/model' in {str(root)!r}",
        "b: reward_funcs: rewards.rouge has no function or class 'rouge_dissimi",
        "c: max_reward: duplicate_penalty may give a text another score later",
        "search, highest: top_p: 1.5 is not",
        f"setup: there is no {str(root / 'setups.py')!r}; did you mean",
    ]
    for line, begin in zip(errors_of(study_script.main, [path], root), expected, strict=True):
        assert line.startswith(f"{path}: {begin}")
    assert not (root / "out").exists()  # nothing was launched


def test_a_study_from_start_to_end(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with monkeypatch.context() as with_figures:
        with_figures.setattr("eval.study.report.svg", svg)
        assert start(root, **SETTINGS) == 0
    made = ["setup out/untrained"]
    for seed in (3, 4):
        made += [f"finetune out/seed{seed}/{name}" for name in ("finetuned", "retain_only")]
        made += [f"{kind} out/seed{seed}/{name}" for name in ("plain", "hot") for kind in ("train", "run")]
        made += [f"control out/seed{seed}/hot_control_{kind}" for kind in ("refusals", "retain_only")]
    assert sorted(calls(root)) == sorted(made)
    told, out = capsys.readouterr().out, root / "out"
    assert "done   seed4/hot in" in told and ", 4 of 4" in told and "min left" in told and SECRET not in told
    assert "control: refusals" in told and told.endswith("Private files left: none.\n")
    assert not list(out.rglob("private")) and not list(out.rglob("*.sqlite*"))
    logs = [path for path in out.rglob("*.log") if path.name != "journal.log"]
    assert {path.stat().st_mode & 0o777 for path in logs} == {0o600}

    with (out / "study.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    models = ["plain", "hot", "control: refusals", "control: retain_only", "retain-only model", "before"]
    assert [(row["model"], row["seed"]) for row in rows] == [(model, seed) for model in models for seed in "34"]
    results = json.loads((out / "seed4" / "hot" / "results.json").read_text())
    assert float(rows[3]["unlearn_quality"]) == results["after"]["unlearn_quality"]
    assert float(rows[5]["unlearn_quality"]) == results["control_refusals"]["unlearn_quality"]
    assert float(rows[5]["utility_change"]) == results["control_refusals"]["utility"] - results["before"]["utility"]
    assert (rows[5]["train_seconds"], rows[5]["num_samples"], rows[5]["fluent"]) == ("12.5", "7", "0.75")

    text, page = (out / "study.md").read_text(), (out / "study.html").read_text()
    qualities = [float(row["unlearn_quality"]) for row in rows[2:4]]
    quality = f"{mean(qualities):.1f} ±{stdev(qualities):.1f}"
    assert f"| hot | {quality} |" in text and f'<td style="text-align:right">{quality}</td>' in page
    assert "Is &lt;it&gt; so?" in page and "<it>" not in page
    assert "- temperature: 2.0" in text and str(root) not in page
    # one file: nothing is fetched, nothing runs
    assert page.count("<svg") == 1 and not re.search(r"<(script|link|img|iframe)|url\(http|@import", page)
    ElementTree.parse(out / "pareto.svg")
    for path in [*out.glob("study.*"), out / "pareto.svg", out / "journal.log"]:
        assert SECRET not in path.read_text(), path

    first = (out / "study.csv").read_text()
    assert start(root, **SETTINGS) == 0 and calls(root) == []  # nothing done is done twice
    assert (out / "study.csv").read_text() == first


def test_a_variant_with_a_method_is_a_baseline(root):
    variants = {"pmc": {}, "npo": {"method": "npo", "method_kwargs": {"beta": 1.0}}}
    assert start(root, **SMALL | {"variants": variants}) == 0
    made = ["train out/seed0/pmc", "run out/seed0/pmc", "baselines out/seed0/npo", "run out/seed0/npo"]
    assert calls(root) == made
    text = (root / "out" / "study.md").read_text()
    assert "train on the answers to be forgotten, Partial Model Collapse reads none: npo.\n" in text


def test_a_failed_study_goes_on_and_grows(root, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "train out/seed0/hot")
    variants = SMALL["variants"] | {"cold": {"temperature": 0.5}}
    assert start(root, **SMALL | {"variants": variants}) == 1
    told = capfd.readouterr()
    assert "seed0/hot failed (exit code 3); the end of" in told.err and "    log line 29" in told.err
    assert "log line 14" not in told.err and "the same command again" in told.err and SECRET not in told.err
    assert "They go when the study is done." in told.out
    assert not (root / "out" / "study.csv").exists()
    assert calls(root) == ["train out/seed0/plain", "run out/seed0/plain", "train out/seed0/hot"]
    monkeypatch.delenv("FAKE_FAIL")
    # what is not made yet may change, also what failed
    variants["hot"] = {"temperature": 3.0}
    assert start(root, **SMALL | {"variants": variants}) == 0
    assert sorted(calls(root)) == [f"{kind} out/seed0/{name}" for kind in ("run", "train") for name in ("cold", "hot")]
    # what is done may grow, but what is made does not change
    variants["warm"] = {"temperature": 1.5}
    assert start(root, **SMALL | {"variants": variants}) == 0
    assert calls(root) == ["train out/seed0/warm", "run out/seed0/warm"]
    path = write_study(root, **SMALL | {"variants": variants | {"hot": {"temperature": 2.0}}})
    [line] = errors_of(study_script.main, [path], root)
    assert "seed0/hot: it was made with other settings (temperature was 3.0, is 2.0)" in line


def test_what_is_not_begun(root, monkeypatch):
    (root / "out").mkdir()
    (root / "out" / "thesis.tex").write_text("x")
    [line] = errors_of(study_script.main, [write_study(root, **SMALL)], root)
    assert "holds files, but no study" in line and os.listdir(root / "out") == ["thesis.tex"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    [line] = errors_of(study_script.main, [write_study(root, **SMALL)], root)
    assert "start it with python, not accelerate launch" in line


def test_workers_of_several_processes_share_the_trials(root, monkeypatch):
    """One hangs in its first training until the other has done all the rest."""
    monkeypatch.setenv("FAKE_HANG", "train out/seed0/plain")
    settings = SETTINGS | {"seeds": [0]}
    first = start_process(root, **settings)
    hanging(root)
    second = start_process(root, **settings)
    wait_until(lambda: "run out/seed0/hot" in (root / "calls.log").read_text())
    (root / "go").touch()
    assert exit_code(first) == exit_code(second) == 0
    assert len(calls(root)) == len(set((root / "out" / "study.csv").read_text().splitlines())) - 1 + 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_gone_has_its_trial_done_again(root, monkeypatch, number):
    monkeypatch.setenv("FAKE_HANG", "train out/seed0/hot")
    worker = start_process(root, **SMALL)
    command = hanging(root)
    os.kill(worker.pid, number)
    assert exit_code(worker) == (1 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:  # its command lives on, and holds the trial; here it ends without a result
        os.kill(command, 0)
        os.kill(command, signal.SIGKILL)
    (root / "go").touch()
    assert start(root, **SMALL) == 0
    made = calls(root)
    assert made.count("train out/seed0/hot") == 2 and made.count("train out/seed0/plain") == 1
    table = (root / "out" / "study.csv").read_text()
    (root / "out").rename(root / "other")
    assert start(root, **SMALL) == 0 and (root / "out" / "study.csv").read_text() == table


def test_a_trial_whose_command_lives_on_is_not_begun_again(root, monkeypatch):
    monkeypatch.setenv("FAKE_HANG", "train out/seed0/plain")
    worker = start_process(root, **SMALL)
    command = hanging(root)
    worker.kill()
    worker.join()
    path = write_study(root, **SMALL)
    study = parse_study([path])
    trials = study_trials.Trials(study, check_study(study, path, root), root / "out", root)

    def states() -> list[str]:
        trials.enqueue()
        return [trial.state.name for trial in trials.get()]

    assert states() == ["RUNNING", "WAITING"]
    os.kill(command, signal.SIGKILL)
    wait_until(lambda: states() == ["FAIL", "WAITING", "WAITING"])


def test_a_search_stays_in_its_ranges_and_can_be_repeated(root):
    settings = SMALL | {"variants": {"own": {}}, "search": SEARCH, "search_trials": 3}
    tables = []
    for number in (1, 2):
        assert start(root, **settings) == 0
        table = (root / "out" / "study.md").read_text().partition("## The search")[2].partition("\n\n")[2]
        lines = [line for line in table.splitlines() if line.startswith("|")]
        tables.append([[cell.strip() for cell in line.split("|")[1:-1]] for line in lines])
        (root / "out").rename(root / f"out_{number}")
    assert tables[0] == tables[1]
    head, _, *rows = tables[0]
    assert head[:5] == ["trial", "on the front", "learning_rate", "num_generations", "reward_weights.2"]
    assert [row[0] for row in rows] == ["1", "2", "3", "own"]
    for row in rows[:-1]:
        assert 1e-5 <= float(row[2]) <= 1e-3 and row[3] in list("23456789") and 0.5 <= float(row[4]) <= 2
    assert len({row[2] for row in rows}) == 4
    points = {row[0]: [float(cell) for cell in row[6:9]] for row in rows[:-1]}
    by = dominators(points, ("maximize", "maximize", "minimize"))
    assert {row[0] for row in rows if row[1] == "yes"} == {name for name, better in by.items() if not better}
    assert calls(root).count("train out/seed0/search_3") == 2
    changed = settings | {"output_dir": "out_1", "search": {"top_k": {"low": 1, "high": 5}}}
    assert any("search was" in line for line in errors_of(study_script.main, [write_study(root, **changed)], root))


@given(st.dictionaries(st.text(max_size=2), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6))
def test_dominators_by_brute_force(points):
    for name, others in dominators(points, ("maximize", "minimize")).items():
        x, y = points[name]
        expected = {other for other, (a, b) in points.items() if (a > x or b < y) and not (a < x or b > y)}
        assert set(others) == expected


def test_numbers_of_a_column_of_a_real_audit():
    before, after = column("before"), column("after")
    after["answer_kinds"]["forget"] |= {"distinct": 0.75}
    after["utility"] = 80.5
    expected = {"unlearn_quality": 90, "utility": 80.5, "utility_change": -8.3, "distinct": 0.75, "fluent": 4 / 6}
    expected |= {"leak": 1 / 6, "refusal": 2 / 6, "gibberish": 0, "copy": 1 / 6, "hallucination": 2 / 6}
    expected |= {"sampling": 0.13, "prefilling": 0.13, "prefilling_greedy": 0.1, "rewording": 0.13}
    expected |= {"relearning": 0.12, "quantization": 0.1, "worst_leakage": 0.13, "exact_memorization": 0.1}
    expected |= {"forget_quality": 0.012, "membership_auc": 0.1, "extraction_strength": 0.1}
    expected |= {"forget_token_shift": -0.001, "other_token_shift": -0.001}
    assert column_numbers(after, before) == pytest.approx(expected)


def test_what_an_audit_does_not_have_is_none():
    absent = {"not_available": "why"}
    audited = {"unlearn_quality": None, "utility": 90.0, "answer_kinds": {}, "sets": {}, "memorization": absent}
    audited |= {"membership": absent, "tofu": {"forget_quality": absent}}
    audited["attacks"] = {"sampling": absent, "prefilling": {"a": absent}}
    numbers = column_numbers(audited, {"utility": 95.0})
    known = {name: value for name, value in numbers.items() if value is not None}
    assert known == {"utility": 90.0, "utility_change": -5.0}


def test_summaries_are_over_the_seeds_that_have_a_number():
    values = {"a": [0.2, None, 0.4], "b": [None, 7.0, None]}
    rows = [{"model": name, "seed": 0, "x": value, "y": None} for name, own in values.items() for value in own]
    several = (pytest.approx(0.3), pytest.approx(stdev([0.2, 0.4])))
    assert summarize(rows) == {"a": {"x": several, "y": None}, "b": {"x": (7.0, None), "y": None}}


def test_a_report_of_one_run_and_no_numbers(root, monkeypatch):
    monkeypatch.setattr("eval.study.report.svg", svg)
    script = FAKE.replace('"unlearn_quality": 20 + 80 * value', '"unlearn_quality": None')
    (root / "eval" / "run.py").write_text(script)
    settings = SMALL | {"variants": {"plain": {}}, "objectives": {"utility": "maximize"}}
    assert start(root, **settings) == 0
    page = (root / "out/study.html").read_text()
    assert "The search" not in page and "±" not in page.partition("The trade")[2]
    ElementTree.parse(root / "out/pareto.svg")


def test_the_picture_of_token_shifts_has_a_pair_of_bars_for_each_model():
    shifts = {"pmc": ((-0.01, 0.002), (0.0, 0.001)), "npo": ((-0.3, None), None)}
    summary = {name: {"forget_token_shift": own[0], "other_token_shift": own[1]} for name, own in shifts.items()}
    [axes] = shift_figure(summary, list(shifts)).axes
    assert [bar.get_width() for bar in axes.patches] == [-0.01, -0.3, 0.0, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pmc", "npo"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_studies(path):
    study = parse_study([str(path)])
    for own in (study.overrides, study.finetune):
        own |= {"dataset_name": "owner/data"} if own else {}
    check_study(study, str(path), REPO)
    assert study.question and study.output_dir.startswith("runs/studies/")
    header = path.read_text().partition("question:")[0]
    assert f"python eval/study/run.py recipes/studies/{path.name}" in header and "Hardware, time and result" in header
