"""The study: settings, plan, launching with fake scripts, going on after a stop, and the report."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pmc_rl import study as study_script
from pmc_rl import study_launch
from pmc_rl.study_config import Study, expand, parse_study, slug
from pmc_rl.study_launch import Children, JobFailed, child_environment, locked, run_jobs, time_left
from pmc_rl.study_plan import Job, check_inputs, fill, make_jobs, option_words, read_settings
from pmc_rl.study_plots import LIGHT, draw_pareto, staircase, style_of
from pmc_rl.study_results import (
    aggregate,
    column_numbers,
    compare,
    course_points,
    differences,
    dominators,
    log_numbers,
    models_of,
    summarize,
)
from pmc_rl.values import mismatch, read_words
from tests.conftest import errors_of
from tests.test_report import column

REPO = Path(__file__).resolve().parents[1]
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
    print(kind, run.as_posix(), *(["course"] if options.get("attacks") == ["[]"] else []), file=stream)
Path("environment.json").write_text(json.dumps(dict(os.environ)))
print("SECRET", flush=True)
if kind != "run":
    run.mkdir(parents=True)  # as the real ones, refuses a folder that is there
    (run / "half").write_text("half")
if os.environ.get("FAKE_HANG", "-") in f"{kind} {run}":
    Path("hangs").write_text(str(os.getpid()))
    time.sleep(60)
if os.environ.get("FAKE_FAIL", "-") in f"{kind} {run}":
    print(*(f"log line {i}" for i in range(30)), sep="\n")
    sys.exit(3)
if kind == "run":
    names = {"before": 0, "after": 0}
    names |= {"retain_only": 0} if "retain_only_model" in options else {}
    names |= {entry.partition("=")[0]: 0 for entry in options.get("also", [])}
    for entry in options.get("also", []):
        assert (Path(entry.partition("=")[2]) / "half").exists() or "snapshots" in entry, entry
    def column(name):
        value = int(hashlib.md5(f"{run} {name}".encode()).hexdigest(), 16) % 1000 / 1000
        summary = {"mean": value, "interval": [0, 1], "n": 4, "missing": 0}
        attacks = {
            "sampling": {"temperature 1": {"worst_case": summary, "worst_by_row": [1.0]}},
            "prefilling": {"The answer is:": {"worst_case": summary, "greedy": summary}},
        }
        if options["attacks"] == ["[]"]:
            attacks = {"sampling": {"not_available": "not among attacks"}}
        kinds = {"leak": 1, "refusal": 2, "gibberish": 0, "copy": 0, "hallucination": 1, "distinct": value}
        return {"unlearn_quality": 20 + 80 * value, "utility": 100 - 10 * value, "attacks": attacks,
                "answer_kinds": {"forget": kinds}, "memorization": {"extraction_strength": summary},
                "general_ability": {"not_available": "SECRET"}}
    (run / "private").mkdir(exist_ok=True)
    (run / "private" / "examples.md").write_text("SECRET")
    (run / "audit.json").write_text(json.dumps({"left_out": ["SECRET"]}))
    (run / "results.json").write_text(json.dumps({name: column(name) for name in names}))
elif kind != "setup":
    (run / "recipe.yaml").write_text("")
    log = [{"step": 1, "reward": 0.1, "num_samples": 7}, {"train_runtime": 12.5, "step": 3}]
    (run / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    for step in (1, 2, 10) if options.get("snapshot_steps", ["null"]) != ["null"] else ():
        (run / "snapshots" / f"step-{step}").mkdir(parents=True)
        record = json.dumps({"step": step, "seconds": step * 2.0})
        (run / "snapshots" / f"step-{step}" / "snapshot.json").write_text(record)
    until = time.monotonic() + 20
    while kind == "train" and Path("calls.log").read_text().count("train") < int(os.environ.get("FAKE_TOGETHER", 0)):
        assert time.monotonic() < until, "alone"
        time.sleep(0.02)
    (run / "manifest.json").write_text(json.dumps({"stage": kind, "files": []}))
""".replace("SECRET", SECRET)


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository of fake scripts."""
    for name in ("pmc_rl/train.py", "pmc_rl/finetune.py", "pmc_rl/control.py", "eval/run.py", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FAKE)
    return tmp_path


SETTINGS = {
    "question": "Is <it> so?",
    "recipe": str(REPO / "recipes/quickstart/unlearn.yaml"),
    "output_dir": "out",
    "seeds": [3, 4],
    "setup": ["setup.py {output_dir}/untrained"],
    "finetune_recipe": str(REPO / "recipes/quickstart/finetune.yaml"),
    "finetune": {"use_cpu": True, "model_name_or_path": "{output_dir}/untrained", "dataset_name": "owner/data"},
    "retain_only": {"train_configs": ["retain90"]},
    "overrides": {"use_cpu": True, "dataset_name": "owner/data"},
    "variants": {"plain": {}, "hot": {"temperature": 2.0}},
    "controls": ["refusals", "retain_only"],
    "controls_of": "hot",
    "snapshot_steps": 5,
}
SMALL = {key: SETTINGS[key] for key in ("recipe", "output_dir", "overrides")} | {
    "variants": {"plain": {}, "hot": {"temperature": 2.0}, "cold": {"temperature": 0.5}},
    "seeds": [0],
}
SMALL["overrides"] = SMALL["overrides"] | {"model_name_or_path": "owner/model"}
# of SETTINGS: setup; 2 models, 2 runs and 2 controls a seed; 2 courses of the first seed; 1 audit a seed
JOBS = 1 + 4 + 4 + 4 + 2 + 2


def write_study(root: Path, **settings) -> str:
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def start(root: Path, *options: str, **settings) -> int:
    path = write_study(root, **settings)
    return study_script.run_study(parse_study([path, *options]), path, root)


def calls(root: Path) -> list[str]:
    """What was launched since the last look."""
    path = root / "calls.log"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def files(root: Path) -> dict[str, int]:
    """Files of the study's runs with their times."""
    return {str(path): path.stat().st_mtime_ns for path in root.glob("out/seed*/**/*") if path.is_file()}


# the settings


def test_all_problems_of_a_study_are_lines(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "recipe: a.yaml\nseeds: 3\nvariantz: {}\nattacks: [samplin]\nattacks: []\n[1]: 2\nparallel_runs: a\n"
    )
    found = errors_of(parse_study, [str(path), "--seedz", "1", "--attack_samples", "3", "--output_dir", "a"])
    assert found == [
        "command line: unknown option '--seedz'. Did you mean '--seeds'?",
        "command line: unknown option '--attack_samples'. It takes output_dir, seeds, parallel_runs",
        f"{path}:2: seeds: 3 is not a list (write [3])",
        f"{path}:3: unknown key 'variantz'. Did you mean 'variants'?",
        f'{path}:4: attacks: "samplin" is not one of sampling, prefilling, options, token_shift, relearning, '
        "quantization. Did you mean 'sampling'?",
        f"{path}:5: 'attacks' is given twice (first at line 4)",
        f"{path}:6: a list or a mapping cannot be a key",
        f'{path}:7: parallel_runs: "a" is not an int',
        f"{path}: variants: missing",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": []}, "seeds: must not be empty"),
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"variants": {}}, "variants: must not be empty"),
        ({"axes": {"top_k": []}}, "axes: 'top_k' has no values"),
        ({"axes": {"temperature": [1, 2]}}, "variants: hot: temperature: axes give it as well"),
        ({"axes": {"dataset_name": ["a"]}}, 
         "axes: dataset_name: one audit asks all runs alike, so it belongs into overrides"),
        ({"variants": {"a": {"prompt_template": "{question}"}}},
         "variants: a: prompt_template: one audit asks all runs alike, so it belongs into overrides"),
        ({"variants": {"a": {"seed": 1}}}, "variants: a: seed: the study gives it itself"),
        ({"overrides": {"output_dir": "x"}}, "overrides: output_dir: the study gives it itself"),
        ({"overrides": {"model_name_or_path": "x"}},
         "overrides: model_name_or_path: finetune_recipe makes the model; remove one of them"),
        ({"variants": {"a b": {}, "a=b": {}}},
         "variants: 'a b' and another run are both 'a_b' as a folder; choose another name"),
        ({"variants": {"after": {}}}, "variants: 'after' is taken; choose another name"),
        ({"variants": {"control refusals": {}}}, "variants: 'control refusals' is taken; choose another name"),
        ({"variants": {"=": {}}}, "variants: '=': a name needs a letter or a digit"),
        ({"overrides": {"reward_weights": [1, 0]}, "variants": {"a": {"reward_funcs": ["b.c", "d.e"]}}},
         "variants: a: reward_weights of overrides is for other rewards; give reward_weights here too, or null"),
        ({"overrides": {"max_reward": 1}, "axes": {"reward_weights": [[1, 1, 0.5]]}},
         "axes: max_reward of overrides is for other rewards; give max_reward here too, or null"),
        ({"controls_of": "cold"}, "controls_of: 'cold' is none of plain, hot"),
        ({"finetune_recipe": None}, "finetune: needs finetune_recipe, whose overrides these are"),
        ({"retain_only_model": "x"}, "retain_only_model: given together with retain_only; keep one of them"),
        ({"parallel_runs": 0}, "parallel_runs: 0 is not at least 1"),
        ({"setup": ["a.py 'b"]}, "setup: \"a.py 'b\": No closing quotation"),
        ({"setup": [""]}, "setup: an empty line; write a script's path and its arguments"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(tmp_path, changes, line):
    path = write_study(tmp_path, **SETTINGS | {"controls_of": None} | changes)
    found = errors_of(parse_study, [path])
    key = line.partition(":")[0]
    number = next(
        (i for i, text in enumerate(Path(path).read_text().splitlines(), 1) if text.startswith(f"{key}:")), None
    )
    assert f"{path}:{number}: {line}" in found


def test_command_line_replaces_keys(tmp_path):
    path = write_study(tmp_path, **SETTINGS)
    study = parse_study([path, "--seeds", "7", "8", "--output_dir=x", "--parallel_runs", "2"])
    assert (study.seeds, study.output_dir, study.parallel_runs) == ([7, 8], "x", 2)
    assert parse_study([path, "--seeds", "7"]).seeds == [7]
    assert errors_of(parse_study, []) == errors_of(parse_study, ["--seeds"])
    assert errors_of(parse_study, [path, "7"])[0].startswith("command line: unexpected '7'")


def test_help_names_all_keys(capsys):
    assert study_script.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {key}  " in told for key in SETTINGS)


# the plan

NAMES = st.text("ab1_ =.-", min_size=1, max_size=5)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # others may use the machine
@given(
    st.dictionaries(NAMES, st.fixed_dictionaries({"x": st.integers()}), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from("pqr"), st.lists(VALUES, min_size=1, max_size=3), max_size=3),
)
def test_each_variant_meets_each_combination(variants, axes):
    runs = expand(variants, axes)
    for name, own in runs.items():
        assert all(own[key] in values for key, values in axes.items()) and set(own) == {"x", *axes}
        assert any(name == variant or name.startswith(f"{variant} ") for variant in variants)
    distinct = all(len({json.dumps(value) for value in values}) == len(values) for values in axes.values())
    texts = any(isinstance(value, str) for values in axes.values() for value in values)
    count = len(variants)
    for values in axes.values():
        count *= len(values)
    assert len(runs) <= count
    if distinct and not texts and len(variants) == 1:  # else two may have one name, which parse_study reports
        assert len(runs) == count


def test_names_of_a_grid():
    runs = expand({"plain": {"a": 1}}, {"k": [5, 20], "f": [[1], {"b": 2}], "s": ["x y"]})
    assert list(runs) == [f"plain k={k} f=no.{i} s=x y" for k in (5, 20) for i in (1, 2)]
    assert runs["plain k=5 f=no.2 s=x y"] == {"a": 1, "k": 5, "f": {"b": 2}, "s": "x y"}
    assert slug("plain k=5 f=no.2 s=x y") == "plain_k_5_f_no.2_s_x_y"


@settings(deadline=None)  # others may use the machine
@given(st.text(max_size=20))
def test_a_slug_is_safe(name):
    assert re.fullmatch(r"([A-Za-z0-9+-]([A-Za-z0-9._+-]*[A-Za-z0-9+-])?)?", slug(name)) and slug(slug(name)) == slug(
        name
    )


def read_back(words: list[str], hint: Any) -> Any:
    return next(value for value in read_words(words, hint) if mismatch(value, hint) is None)


@settings(deadline=None)  # others may use the machine
@given(
    st.one_of(
        st.tuples(st.just(bool), st.booleans()),
        st.tuples(st.just(int), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just(float), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just(str), st.text(max_size=9)),
        st.tuples(st.just(int | None), st.none()),
        st.tuples(st.just(list[str]), st.lists(st.text(max_size=5), max_size=4)),
        st.tuples(
            st.just(list[str]), st.lists(st.sampled_from(["a.b", "1", "null", "--x", "[a", "true"]), max_size=4)
        ),
        st.tuples(st.just(list[float] | None), st.lists(st.integers(-3, 3), max_size=3)),
        st.tuples(
            st.just(dict[str, dict[str, Any]]),
            st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), VALUES, max_size=2), max_size=2),
        ),
    )
)
def test_overrides_are_read_back_as_they_were(case):
    hint, value = case
    option, *words = option_words({"key": value})
    assert option == "--key"
    assert not any(word.startswith("--") for word in words) or hint is str
    got = read_back(words, hint)
    assert got == value and type(got) is type(value)


def test_plain_lists_are_words():
    assert option_words({"a": ["b", "c"], "d": ["e"], "f": [1, 2], "g": None, "h": [], "i": ["j", "--k"]}) == [
        *("--a", "b", "c", "--d", '["e"]', "--f", "[1, 2]", "--g", "null", "--h", "[]", "--i", '["j", "--k"]')
    ]


def test_braces_of_templates_stay():
    study = Study(recipe="a", output_dir="o", variants={"a": {}})
    assert fill(["{output_dir}/{seed}", {"k": "{question}{{x}}"}, 3], study, 7) == ["o/7", {"k": "{question}{{x}}"}, 3]
    assert fill("{output_dir}{seed}", study, None) == "o{seed}"


def test_jobs_come_after_what_they_need(tmp_path):
    jobs = make_jobs(parse_study([write_study(tmp_path, **SETTINGS)]))
    assert len(jobs) == JOBS and len({job.name for job in jobs}) == JOBS and len({job.proof for job in jobs}) == JOBS
    seen, stages = set(), []
    for job in jobs:
        assert set(job.needs) <= seen
        seen.add(job.name)
        stages.append(job.stage)
    order = ["setup", "finetune", "train", "control", "course", "audit"]
    assert stages == sorted(stages, key=order.index)  # a stage is launched as a whole
    by_name = {job.name: job for job in jobs}
    assert (
        by_name["seed3/hot"].overrides["snapshot_steps"] == 5
        and "snapshot_steps" not in by_name["seed4/hot"].overrides
    )
    assert by_name["seed3/control_retain_only"].overrides["snapshot_steps"] is None  # not those of the run's recipe
    assert by_name["seed3/control_refusals"].arguments == ("refusals", "out/seed3/hot")
    assert by_name["seed4/audit"].overrides["also"] == [
        f"{name}=out/seed4/{name}" for name in ("hot", "control_refusals", "control_retain_only")
    ]
    assert set(by_name["seed4/audit"].needs) == {
        f"seed4/{name}" for name in ("plain", "hot", "control_refusals", "control_retain_only", "retain_only")
    }


def test_no_log_and_no_output_shows_texts(tmp_path):
    for job in make_jobs(parse_study([write_study(tmp_path, **SETTINGS)])):
        assert job.overrides.get("log_completions", False) is False
        assert job.stage in ("setup", "finetune", "control") or "log_completions" in job.overrides


def test_mistakes_in_a_variant_are_found_first(root):
    settings = SMALL | {
        "variants": {"plain": {"num_generationz": 3}, "hot": {"temperature": -1, "top_k": "many"}, "cold": {}},
        "overrides": SMALL["overrides"] | {"tokenizer_name_or_path": "null"},
    }
    path = root / "study.yaml"
    assert errors_of(start, root, **settings) == [
        f"{path}: plain: unknown option '--num_generationz'. Did you mean '--num_generations'?",
        f"{path}: hot: temperature: -1 is not greater than 0",
        f'{path}: hot: top_k: "many" is not an int',
        f'{path}: cold: tokenizer_name_or_path: "null" cannot be given on a command line; write it into the recipe',
    ]
    found = errors_of(start, root, **SMALL | {"overrides": SMALL["overrides"] | {"top_p": 2}})
    assert found == [f"{path}: top_p: 2 is not greater than 0 and at most 1"]  # of all runs: once, without a name
    assert calls(root) == []


def test_what_is_missing_is_found_first(root):
    rewards = {"reward_funcs": ["rewards.rouge.rouge_dissimilarit"]}
    settings = SETTINGS | {
        "setup": ["setupp.py {output_dir}/untrained"],
        "overrides": SETTINGS["overrides"] | {"forget_config": None, "forget_file": ["forget.jsonl", "more.jsonl"]},
        "variants": {"plain": {}, "guided": rewards},
        "controls_of": None,
    }
    found = errors_of(start, root, **settings)
    assert found[:2] == [f"forget_file: there is no '{name}.jsonl' in {str(root)!r}" for name in ("forget", "more")]
    assert found[2].startswith(f"setup: there is no 'setupp.py' in {str(root)!r}; did you mean '")
    assert found[3].startswith(
        "reward_funcs: rewards.rouge has no function or class 'rouge_dissimilarit'; did you mean"
    )
    assert len(found) == 4
    assert len(errors_of(start, root, **SMALL | {"retain_only_model": "./none"})) == 1
    assert calls(root) == []


def test_children_do_not_take_themselves_for_processes_of_the_study():
    kept = {"PATH": "p", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RANKING": "1"}
    names = ("ACCELERATE_USE_CPU", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "FSDP_VERSION", "DEEPSPEED_X")
    given_ = kept | {name: "1" for name in names}
    assert child_environment(given_) == kept and len(given_) > len(kept)


def test_a_study_is_no_distributed_program(root, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = write_study(root, **SMALL)
    assert "start it with python" in errors_of(study_script.main, [path], root)[0]


# launching


def test_a_study_from_start_to_end(root, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start(root, **SETTINGS) == 0
    launched = calls(root)
    assert len(launched) == JOBS
    assert launched[0] == "setup out/untrained"
    assert launched.count("run out/seed3/plain") == launched.count("run out/seed3/plain course") == 1
    environment = json.loads((root / "environment.json").read_text())
    assert "ACCELERATE_MIXED_PRECISION" not in environment and environment["PATH"] == os.environ["PATH"]
    out = root / "out"
    told = capsys.readouterr().out
    assert f"0 of {JOBS} jobs are done, {JOBS} to do, in {out}" in told
    assert f"{JOBS} of {JOBS}\n" in told and told.count(" start  ") == told.count(" done   ") == JOBS
    assert told.endswith("Private files left: none.\n")
    assert not list(out.rglob("private"))
    results = json.loads((out / "seed3" / "results.json").read_text())
    assert list(results) == ["before", "after", "retain_only", "hot", "control_refusals", "control_retain_only"]
    assert "sampling" in results["after"]["attacks"] and (out / "seed4" / "audit.json").exists()
    course = json.loads((out / "seed3" / "course_hot.json").read_text())
    assert [(point["step"], point["seconds"]) for point in course] == [
        (0, 0.0),
        (1, 2.0),
        (2, 4.0),
        (3, 12.5),
        (10, 20.0),
    ]
    assert not (out / "seed4" / "course_hot.json").exists()

    before = files(root)
    (out / "study.html").unlink()
    assert start(root, **SETTINGS) == 0
    assert calls(root) == [] and files(root) == before and (out / "study.html").exists()
    told = capsys.readouterr().out
    assert "nothing to do: 8 runs are there" in told and told.endswith("Private files left: none.\n")
    # the same folder by its whole path is the same study
    assert start(root, "--output_dir", str(out), **SETTINGS) == 0 and calls(root) == []


def test_a_failed_study_goes_on(root, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "train out/seed3/hot")
    assert start(root, **SETTINGS) == 1
    first = calls(root)
    assert first[-2:] == ["train out/seed3/plain", "train out/seed3/hot"]  # nothing is begun after it
    told = capfd.readouterr()
    lines = told.err.splitlines()
    assert lines[0].startswith("seed3/hot failed (exit code 3); the end of ")
    assert [line.strip() for line in lines[1:16]] == [f"log line {i}" for i in range(15, 30)]
    assert len(lines) == 17 and not (root / "out" / "study.html").exists()
    assert (root / "out/seed3/hot/half").exists()
    before = files(root)

    monkeypatch.delenv("FAKE_FAIL")
    assert start(root, **SETTINGS) == 0
    second = calls(root)
    assert second[0] == "train out/seed3/hot" and len(first) + len(second) == JOBS + 1
    after = files(root)
    assert all(after[path] == time for path, time in before.items() if "/hot" not in path and "/plain/" not in path)
    assert "4 of 17" not in capfd.readouterr().err


def test_private_files_of_a_failed_study_are_named(root, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "train out/seed4")
    settings = SETTINGS | {"seeds": [3]}
    assert start(root, **settings) == 0  # leaves none
    monkeypatch.setenv("FAKE_FAIL", "run out/seed3/hot")
    (root / "out/seed3/course_hot.json").unlink()
    (root / "out/seed3/course_plain.json").unlink()
    capfd.readouterr()
    assert start(root, **settings) == 1
    folder = root / "out/seed3/plain/private"
    told = capfd.readouterr().out
    assert f"Private files left: {folder}. They go when the study is done.\n" in told and folder.exists()
    monkeypatch.delenv("FAKE_FAIL")
    assert start(root, **settings) == 0 and not folder.exists()


def test_a_setup_script_that_failed_finds_no_leftovers(root, monkeypatch):
    (root / "out").mkdir()
    (root / "data").mkdir()
    (root / "data" / "mine").write_text("mine")
    monkeypatch.setenv("FAKE_FAIL", "setup out/untrained")
    settings = SETTINGS | {
        "setup": ["setup.py {output_dir}/data", "setup.py {output_dir}/untrained {output_dir}/data data"]
    }
    assert start(root, **settings) == 1
    monkeypatch.delenv("FAKE_FAIL")
    before = (root / "out/data/half").stat().st_mtime_ns
    calls(root)
    assert start(root, **settings) == 0
    assert calls(root)[:2] == ["setup out/untrained", "finetune out/seed3/finetuned"]
    assert (root / "out/data/half").stat().st_mtime_ns == before and (root / "data" / "mine").exists()


def test_a_command_that_writes_nothing_has_failed(root, capfd):
    (root / "eval" / "run.py").write_text("print('well')")
    assert start(root, **SMALL) == 1
    assert "seed0/audit failed (no " in capfd.readouterr().err


def test_changed_settings_are_refused(root):
    assert start(root, **SMALL) == 0
    calls(root)
    before = files(root)
    changed = SMALL | {"variants": SMALL["variants"] | {"hot": {"temperature": 3.0, "top_k": 4}}}
    place = root / "out/seed0/hot"
    assert errors_of(start, root, **changed) == [
        f"{place}: the study's settings have changed for this run (temperature was 2.0, is 3.0, top_k was 10, is 4); "
        "choose another output_dir, or remove the folder to run it again"
    ]
    assert files(root) == before and calls(root) == []
    # so are those that only the recipe tells of
    recipe = root / "recipe.yaml"
    text = Path(SMALL["recipe"]).read_text()
    recipe.write_text(text)
    settings = SMALL | {"recipe": str(recipe), "output_dir": "other", "variants": {"plain": {}}}
    assert start(root, **settings) == 0
    recipe.write_text(text.replace("retain_weight: 0.4", "retain_weight: 0.5"))
    assert "retain_weight was 0.4, is 0.5" in errors_of(start, root, **settings)[0]


def test_a_removed_run_is_made_again_with_its_audit(root):
    assert start(root, **SETTINGS) == 0
    calls(root)
    remove(root / "out/seed3/plain")
    assert start(root, **SETTINGS) == 0
    assert calls(root) == ["train out/seed3/plain", "run out/seed3/plain course", "run out/seed3/plain"]
    remove(root / "out/seed3/hot")
    assert errors_of(start, root, **SETTINGS) == [
        f"{root / 'out/seed3' / name}: it was made with {root / 'out/seed3/hot'}, which is not there; "
        "remove it as well"
        for name in ("control_refusals", "control_retain_only")
    ]
    assert calls(root) == []


def test_a_study_grows(root):
    """A further variant and a further seed: what is there stays, and the audits see the new run."""
    assert start(root, **SMALL) == 0
    calls(root)
    more = SMALL | {"variants": SMALL["variants"] | {"warm": {"temperature": 1.1}}}
    assert start(root, **more) == 0
    assert calls(root) == ["train out/seed0/warm", "run out/seed0/plain"]
    assert "warm" in json.loads((root / "out/seed0/results.json").read_text())
    assert start(root, "--seeds", "0", "1", **more) == 0
    assert calls(root) == [*(f"train out/seed1/{name}" for name in more["variants"]), "run out/seed1/plain"]
    # other attacks are asked for of runs that are there
    assert start(root, "--seeds", "0", "1", **more, attack_samples=3) == 0
    assert calls(root) == ["run out/seed0/plain", "run out/seed1/plain"]


def test_a_folder_of_somebody_else_is_left_alone(root):
    (root / "out").mkdir()
    (root / "out" / "mine").write_text("mine")
    assert "holds files, but no study" in errors_of(start, root, **SMALL)[0]
    assert [path.name for path in (root / "out").iterdir()] == ["mine"]
    (root / "out" / "mine").unlink()
    assert start(root, **SMALL) == 0
    (root / "out/seed0/plain.command.json").unlink()
    assert errors_of(start, root, **SMALL) == [
        f"{root / 'out/seed0/plain'}: this study has not made it; choose another output_dir"
    ]


def test_two_studies_do_not_share_a_folder(root):
    with locked(root / "out"):
        assert "another study" in errors_of(start, root, **SMALL)[0]
    assert start(root, **SMALL) == 0


def test_parallel_runs(root, monkeypatch):
    monkeypatch.setenv("FAKE_TOGETHER", "3")  # each waits for the others
    assert start(root, **SMALL | {"parallel_runs": 3}) == 0
    launched = calls(root)
    assert sorted(launched[:3]) == [f"train out/seed0/{name}" for name in ("cold", "hot", "plain")]
    assert launched[3:] == ["run out/seed0/plain"]


def test_parallel_runs_end_when_another_one_fails(root, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_TOGETHER", "2")
    monkeypatch.setenv("FAKE_FAIL", "train out/seed0/plain")
    assert start(root, **SMALL | {"parallel_runs": 2}) == 1
    assert (root / "out/seed0/hot/manifest.json").exists()
    output = capfd.readouterr()
    assert "failed seed0/plain" in output.out and "plain failed (exit code 3)" in output.err


def test_after_a_failure_no_run_is_begun_and_those_that_run_end(monkeypatch):
    other_begun, failed, begun, ended = threading.Event(), threading.Event(), [], []
    monkeypatch.setattr(study_launch, "tell", lambda line: failed.set() if line.startswith("failed a0") else None)

    def run(job: Job) -> None:
        begun.append(job.name)
        if job.name == "a0":
            assert other_begun.wait(30)
            raise JobFailed("a0 broke")
        other_begun.set()
        assert failed.wait(30)
        ended.append(job.name)

    jobs = [Job(f"a{i}", "train", "x", ()) for i in range(5)] + [Job("b", "audit", "x", ())]
    assert run_jobs(jobs, len(jobs), 2, Children(), run) == ["a0 broke"]
    assert sorted(begun) == ["a0", "a1"] and ended == ["a1"]


def remove(folder: Path) -> None:
    subprocess.run(["rm", "-r", str(folder)], check=True)


def in_background(root: Path, path: str) -> multiprocessing.Process:
    def main():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell or nohup has these ignore
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.exit(study_script.main([path], root))

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    until = time.monotonic() + 30
    while not (root / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    return process


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_study_stops_its_runs_and_goes_on(root, monkeypatch, capfd, number):
    monkeypatch.setenv("FAKE_HANG", "train out/seed0/hot")
    path = write_study(root, **SMALL)
    process = in_background(root, path)
    child = int((root / "hangs").read_text())
    assert lives(child)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == 130 and not lives(child)
    assert "Stopped" in capfd.readouterr().err
    assert calls(root) == ["train out/seed0/plain", "train out/seed0/hot"]
    monkeypatch.delenv("FAKE_HANG")
    assert start(root, **SMALL) == 0
    assert calls(root) == ["train out/seed0/hot", "train out/seed0/cold", "run out/seed0/plain"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_study_leaves_its_folder_to_the_run_that_still_lives(root, monkeypatch):
    monkeypatch.setenv("FAKE_HANG", "train out/seed0/hot")
    process = in_background(root, write_study(root, **SMALL))
    child = int((root / "hangs").read_text())
    process.kill()
    process.join()
    try:
        monkeypatch.delenv("FAKE_HANG")
        assert "another study, or a run of one" in errors_of(start, root, **SMALL)[0]
    finally:
        os.kill(child, signal.SIGKILL)
    while lives(child):
        time.sleep(0.02)
    calls(root)
    assert start(root, **SMALL) == 0
    assert calls(root) == ["train out/seed0/hot", "train out/seed0/cold", "run out/seed0/plain"]


def test_an_unforeseen_error_stops_the_others():
    jobs = [Job(f"a{i}", "train", "x", ()) for i in range(2)]
    children = Children()

    def run(job: Job) -> None:
        if job.name == "a1":
            time.sleep(0.3)
            raise KeyError("well")
        children.call([sys.executable, "-c", "import time; time.sleep(60)"])

    started = time.perf_counter()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyError):
            run_jobs(jobs, 2, 2, children, run)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert time.perf_counter() - started < 20


def test_time_left():
    assert time_left(["train", "train", "audit"], {"train": [10.0, 20.0]}, 1) == 45
    assert time_left(["train", "audit"], {"train": [10.0], "audit": [2.0]}, 2) == 6


# the results

POINTS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6
)


@settings(deadline=None)  # others may use the machine
@given(POINTS)
def test_dominators_by_brute_force(points):
    found = dominators(points)
    assert list(found) == list(points)
    for name, (x, y) in points.items():
        expected = []
        for other, (u, v) in points.items():
            no_worse, better = not (u < x or v < y), u > x or v > y
            if no_worse and better:
                expected.append(other)
        assert found[name] == expected
    front = [points[name] for name, by in found.items() if not by]
    assert front  # someone is best, and everyone else is dominated by one of the front
    assert all(any(other in front for other in map(points.get, by)) for by in found.values() if by)
    best = sorted(set(front))
    assert [y for _, y in best] == sorted((y for _, y in best), reverse=True)


def test_less_leakage_is_better():
    numbers = {
        "a": (90, 99, 0.2),
        "b": (80, 98, 0.1),
        "c": (70, 99.5, 0.3),
        "d": (None, 100, 0.0),
        "e": (60, 90, None),
    }
    summary = {
        name: {
            number: None if value is None else (value, 0.1)
            for number, value in zip(("unlearn_quality", "utility", "worst"), values, strict=True)
        }
        for name, values in numbers.items()
    }
    assert compare(summary, list("abcde")) == {
        "utility": {"a": [], "b": ["a"], "c": [], "e": ["a", "b", "c"]},
        "worst": {"a": [], "b": [], "c": ["a", "b"]},
    }
    assert list(compare(summary, ["b", "c"])["worst"]) == ["b", "c"]


def test_equal_points_do_not_dominate_each_other():
    assert dominators({"a": (1, 1), "b": (1, 1), "c": (1, 0)}) == {"a": [], "b": [], "c": ["a", "b"]}


def test_staircase():
    assert staircase([(3, 1), (1, 5)], 0, -1) == ([0, 1, 1, 3, 3], [5, 5, 1, 1, -1])


@pytest.mark.parametrize(("y", "better", "end"), [("utility", "up", 0), ("worst", "down", 1)])
def test_dominated_means_are_hollow_and_no_part_of_the_front(y, better, end):
    values = {"a": (90, 50, 0.5), "b": (95, 60, 0.4), "c": (80, 99, 0.1)}
    names = ("unlearn_quality", "utility", "worst_sampling")
    rows = [
        {
            "model": model,
            **dict.fromkeys(("worst_prefilling", "prefilling_greedy")),
            **dict(zip(names, own, strict=True)),
        }
        for model, own in values.items()
    ]
    summary = {
        model: {name: (value, None) for name, value in zip((*names[:2], "worst"), own, strict=True)}
        for model, own in values.items()
    }
    axes = Figure().subplots()
    draw_pareto(axes, LIGHT, rows, list(values), summary, compare(summary, list(values))[y], y, better, None)
    means = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(means) == ["a", "b", "c"]
    filled = {name for name, line in means.items() if line.get_markerfacecolor() != LIGHT["page"]}
    assert filled == {"b", "c"}
    front = axes.get_lines()[-1]
    place = 1 if y == "utility" else 2
    assert list(front.get_xdata()[1:]) == [80, 80, 95, 95]
    assert list(front.get_ydata()) == [
        *(values["c"][place], values["c"][place], values["b"][place], values["b"][place], axes.get_ylim()[end])
    ]


def test_many_models_differ_in_colour_or_marker():
    names = [str(i) for i in range(64)]
    assert len({style_of(names, name) for name in names}) == 64


@settings(deadline=None)  # others may use the machine
@given(st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), max_size=6))
def test_aggregate(values):
    numbers = [value for value in values if value is not None]
    found = aggregate(values)
    if not numbers:
        assert found is None
    else:
        assert found[0] == pytest.approx(mean(numbers))
        assert found[1] == (pytest.approx(stdev(numbers), abs=1e-6) if len(numbers) > 1 else None)


def test_numbers_of_a_column_of_a_real_audit():
    before, after = column("before"), column("after")
    after["answer_kinds"]["forget"] |= {"distinct": 0.75}
    after["utility"] = 80.5
    numbers = column_numbers(after, before)
    assert numbers == {
        "unlearn_quality": pytest.approx(90),
        "utility": 80.5,
        "utility_change": pytest.approx(-8.3),
        "leak": 1 / 6,
        "refusal": 2 / 6,
        "gibberish": 0,
        "copy": 1 / 6,
        "hallucination": 2 / 6,
        "fluent": 4 / 6,
        "distinct": 0.75,
        "worst_sampling": pytest.approx(
            max(run["worst_case"]["mean"] for run in after["attacks"]["sampling"].values())
        ),
        "worst_prefilling": pytest.approx(
            max(run["worst_case"]["mean"] for run in after["attacks"]["prefilling"].values() if "worst_case" in run)
        ),
        "prefilling_greedy": pytest.approx(
            max(run["greedy"]["mean"] for run in after["attacks"]["prefilling"].values() if "greedy" in run)
        ),
        "extraction_strength": after["memorization"]["extraction_strength"]["mean"],
    }


def test_what_an_audit_does_not_have_is_none():
    absent = {"not_available": "why"}
    numbers = column_numbers(
        {
            "unlearn_quality": None,
            "utility": 90.0,
            "answer_kinds": {},
            "memorization": absent,
            "attacks": {"sampling": absent, "prefilling": {"a": absent}},
        },
        {"utility": 95.0},
    )
    assert {name for name, value in numbers.items() if value is not None} == {"utility", "utility_change"}
    assert numbers["utility_change"] == -5
    assert log_numbers([]) == {"train_seconds": None, "num_samples": None}
    assert log_numbers([{"num_samples": 3}, {"num_samples": 9}, {"train_runtime": 2.5}])["num_samples"] == 9


def test_a_course_without_snapshots(tmp_path):
    results = {name: {"unlearn_quality": 1.0, "utility": 2.0} for name in ("before", "after")}
    assert [point["step"] for point in course_points(results, tmp_path)] == [0]  # no log: no one knows when it ended
    (tmp_path / "training_log.jsonl").write_text('{"step": 4, "train_runtime": 9.0}\n')
    assert [point["step"] for point in course_points(results, tmp_path)] == [0, 4]


def test_differences_are_of_the_same_seed():
    names = ("worst_sampling", "worst_prefilling", "prefilling_greedy", "fluent", "distinct", "train_seconds")
    rows = [
        {"seed": seed, "model": model, "unlearn_quality": quality, "utility": 1.0, **dict.fromkeys(names)}
        for seed, model, quality in [(0, "a", 10), (0, "b", 12), (1, "b", 54), (1, "a", 50)]
    ]
    found = differences(rows, "a")
    assert found["b"]["unlearn_quality"] == (3, pytest.approx(2**0.5)) and found["a"]["unlearn_quality"] == (0, 0)
    assert found["b"]["worst"] is None


# the report


class Tags(HTMLParser):
    """What a page holds: tags with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert start(root, **SETTINGS) == 0
    out = root / "out"
    told = capsys.readouterr().out
    assert SECRET not in told and "control: refusals" in told
    with (out / "study.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    models = ["plain", "hot", "control: refusals", "control: retain_only", "retain-only model", "before"]
    assert [row["model"] for row in rows] == models * 2 and [row["seed"] for row in rows] == ["3"] * 6 + ["4"] * 6
    results = json.loads((out / "seed4" / "results.json").read_text())
    assert float(rows[6]["unlearn_quality"]) == results["after"]["unlearn_quality"]
    assert float(rows[8]["unlearn_quality"]) == results["control_refusals"]["unlearn_quality"]
    assert float(rows[8]["utility_change"]) == results["control_refusals"]["utility"] - results["before"]["utility"]
    assert (rows[6]["train_seconds"], rows[6]["num_samples"], rows[6]["fluent"]) == ("12.5", "7", "0.75")
    means = {
        model: tuple(
            mean(float(row[name]) for row in rows if row["model"] == model) for name in ("unlearn_quality", "utility")
        )
        for model in models[:4]
    }
    by = dominators(means)
    assert {row["model"]: row["dominated"] for row in rows} == {
        **{model: str(int(bool(by[model]))) for model in models[:4]},
        **dict.fromkeys(models[4:], ""),
    }

    page = (out / "study.html").read_text()
    tags = Tags(page)
    assert tags.open == []
    assert "Is <it> so?" in tags.text and "<it>" not in page
    assert all(model in tags.text for model in models)
    assert f"{means['hot'][0]:.1f}" in tags.text
    for model, others in by.items():
        assert (f"{model}dominated by {', '.join(others)}" in tags.text) == bool(others)
    assert sum(name == "svg" and attrs.get("class") == "plot" for name, attrs in tags.tags) == 2 + 4
    assert "temperature2.0" in tags.text and "snapshot" not in tags.text
    # one file: nothing is fetched, nothing runs
    links = [attrs.get(key) for _, attrs in tags.tags for key in ("href", "src") if attrs.get(key)]
    assert all(link.startswith("#") for link in links) and "url(http" not in page and "@import" not in page
    assert not {"script", "link", "img", "iframe"} & {name for name, _ in tags.tags}
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    assert all(page.count(f"{name}: #") == 2 for name in used)  # light and dark
    assert "#a17e" not in page

    ElementTree.parse(out / "pareto.svg")
    assert "var(" not in (out / "pareto.svg").read_text() and "#a17e" not in (out / "pareto.svg").read_text()
    for path in [*out.glob("study.*"), out / "pareto.svg", *out.rglob("course_*.json"), *out.rglob("*.command.json")]:
        assert SECRET not in path.read_text(), path
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*.log")} == {0o600}
    assert str(root) not in page


def test_a_report_of_one_seed_one_run_and_no_numbers(root):
    script = FAKE.replace('"unlearn_quality": 20 + 80 * value', '"unlearn_quality": None')
    (root / "eval" / "run.py").write_text(script)
    assert start(root, **SMALL | {"variants": {"plain": {}}}) == 0
    page = Tags((root / "out/study.html").read_text())
    assert page.open == [] and "Course" not in page.text and "Against" not in page.text and "±" not in page.text
    ElementTree.parse(root / "out/pareto.svg")


def test_the_order_of_the_models(tmp_path):
    study = parse_study([write_study(tmp_path, **SMALL | {"retain_only_model": "x"})])
    assert [(model.name, model.column, model.folder, model.competes) for model in models_of(study)] == [
        ("plain", "after", "plain", True),
        ("hot", "hot", "hot", True),
        ("cold", "cold", "cold", True),
        ("retain-only model", "retain_only", None, False),
        ("before", "before", None, False),
    ]


def test_summaries_are_over_seeds():
    names = ("unlearn_quality", "worst_sampling", "worst_prefilling", "prefilling_greedy")
    rows = []
    for seed, value in enumerate((0.2, 0.4)):
        row = dict.fromkeys(json.loads(json.dumps([*study_numbers(), "seed", "model"])))
        rows.append(
            row | {"seed": seed, "model": "a"} | dict.fromkeys(names, value) | {"worst_prefilling": 0.9 - value}
        )
    found = summarize(rows)["a"]
    assert found["unlearn_quality"] == (pytest.approx(0.3), pytest.approx(stdev([0.2, 0.4])))
    assert found["worst"] == (pytest.approx(0.6), pytest.approx(stdev([0.7, 0.5]))) and found["utility"] is None


def study_numbers() -> tuple[str, ...]:
    from pmc_rl.study_results import NUMBERS

    return NUMBERS


# the shipped studies


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_studies(path):
    study = parse_study([str(path)])
    jobs = make_jobs(study)
    settings = read_settings(jobs, str(path), REPO)
    without_data = {name: own | {"dataset_name": "owner/data"} for name, own in settings.items()}
    check_inputs(study, jobs, without_data, REPO)
    assert study.question and study.output_dir.startswith("runs/studies/") and not Path(study.output_dir).is_absolute()
    header = path.read_text().partition("question:")[0]
    assert f"python pmc_rl/study.py recipes/studies/{path.name}" in header and "Hardware, time and result" in header
    assert study.controls_of in study.variants
