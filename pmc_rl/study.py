"""Study: `python pmc_rl/study.py STUDY.yaml [--key value ...]`. Launches runs and audits itself and compares them.

A stopped study goes on where it stopped; one that is done writes its report again.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pmc_rl.output import RECORD, write_private, write_text
from pmc_rl.recipe import exit_on_recipe_error
from pmc_rl.snapshots import SNAPSHOTS
from pmc_rl.study_config import Study, parse_study, usage
from pmc_rl.study_launch import Children, JobFailed, child_environment, interrupt_on_signals, locked, run_jobs, tell
from pmc_rl.study_plan import Job, check_inputs, make_jobs, option_words, read_settings
from pmc_rl.study_report import write_report
from pmc_rl.study_results import course_points
from pmc_rl.values import RecipeError

REPO = Path(__file__).resolve().parents[1]
LOG_LINES = 15
RECORD_ALONE = {RECORD, "README.md"}


def sort_out(jobs: list[Job], settings: dict[str, dict], out: Path) -> list[Job]:
    """
    The jobs that are still to be done.

    Raises:
        RecipeError: a folder holds what this study has not made, or would make otherwise now.
    """
    to_do: dict[str, Job] = {}
    errors = []
    for job in jobs:
        place, now, before = out / job.name, _record(job, settings), _read_record(out, job)
        absent = [need for need in job.needs if need in to_do]
        if before is None and (place.exists() or (out / job.proof).exists()):
            errors.append(f"{place}: this study has not made it; choose another output_dir")
        elif not (out / job.proof).exists() or (job.is_audit and (absent or not now.items() <= before.items())):
            to_do[job.name] = job
        elif not now.items() <= before.items():
            errors.append(
                f"{place}: the study's settings have changed for this run ({_difference(before, now)}); "
                "choose another output_dir, or remove the folder to run it again"
            )
        elif absent:
            errors.append(f"{place}: it was made with {out / absent[0]}, which is not there; remove it as well")
    if errors:
        raise RecipeError(errors)
    return list(to_do.values())


def _record(job: Job, settings: dict[str, dict]) -> dict:
    # the values as well: a recipe may change while the command stays
    return json.loads(json.dumps({"command": job.command, "settings": settings.get(job.name, {})}))


def _record_path(out: Path, job: Job) -> Path:
    return out / f"{job.name}.command.json"


def _read_record(out: Path, job: Job) -> dict | None:
    try:
        return json.loads(_record_path(out, job).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _difference(before: dict, now: dict) -> str:
    """The settings that differ, or the commands if no setting does."""
    old, new = before["settings"], now["settings"]
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        return ", ".join(f"{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}" for key in keys)
    return f"it was {' '.join(before['command'])}"


def launch(job: Job, settings: dict[str, dict], root: Path, out: Path, children: Children, lock: int) -> None:
    """Removes what a stopped attempt has left, runs the command and keeps what the study needs of it."""
    log, command = out / f"{job.name}.log", [sys.executable, *job.command]
    log.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (*_leftovers(job, root, out), out / job.proof):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    record = _record(job, settings) | {"makes": _makes(job, root, out)}
    write_text(_record_path(out, job), json.dumps(record, indent=2) + "\n")
    if job.stage == "course":
        snapshots = (Path(job.arguments[0]).parent / SNAPSHOTS).as_posix()
        names = sorted((path.name for path in (root / snapshots).glob("step-*")), key=lambda name: int(name[5:]))
        command += option_words({"also": [f"{name}={snapshots}/{name}" for name in names]})
    log.unlink(missing_ok=True)
    log.touch(mode=0o600)  # a traceback may show what is to be forgotten
    with log.open("w", encoding="utf-8") as stream:
        code = children.call(
            command,
            cwd=root,
            env=child_environment(dict(os.environ)),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),  # held as long as a run lives, also when the study itself is killed
        )
    if code == 0:
        _keep(job, root, out)
    if code != 0 or not (out / job.proof).exists():
        end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        how = f"exit code {code}" if code else f"no {out / job.proof}"
        raise JobFailed("\n".join([f"{job.name} failed ({how}); the end of {log}:", *(f"    {line}" for line in end)]))


def _makes(job: Job, root: Path, out: Path) -> list[str]:
    """What a setup script is told of the study's folder that is not there yet; the rest is its input."""
    words = job.arguments if job.stage == "setup" else ()
    return [word for word in words if (root / word).is_relative_to(out) and not (root / word).exists()]


def _leftovers(job: Job, root: Path, out: Path) -> list[Path]:
    """What an attempt that was stopped may have left."""
    if job.stage == "setup":
        return [root / word for word in (_read_record(out, job) or {"makes": []})["makes"]]
    return [] if job.is_audit else [out / job.name]


def _keep(job: Job, root: Path, out: Path) -> None:
    """The study's own copy of an audit, since the next one of the run replaces it; the mark of a setup script."""
    if job.stage == "setup":
        write_text(out / job.proof, "")
    run = (root / job.arguments[0]).parent if job.is_audit else None
    if run is not None and (run / "results.json").exists():
        results = (run / "results.json").read_text(encoding="utf-8")
        if job.stage == "course":
            write_text(out / job.proof, json.dumps(course_points(json.loads(results), run), indent=2) + "\n")
        else:
            write_text((out / job.proof).with_name("audit.json"), (run / "audit.json").read_text(encoding="utf-8"))
            write_text(out / job.proof, results)


def private_folders(out: Path) -> list[Path]:
    """Folders of the study's runs that hold what is to be forgotten, and not only the record of a run."""
    private = [path for path in out.glob("seed*/*/private") if {file.name for file in path.iterdir()} - RECORD_ALONE]
    return sorted([*private, *out.glob("seed*/*/checkpoint-*")])


def run_study(study: Study, path: str, root: Path = REPO) -> int:
    """
    Does what is left to do and writes the report.

    Args:
        path (`str`): the study's file, for messages.
        root (`Path`): the repository, whose scripts are run in it.

    Returns:
        the exit code.
    """
    out = root / study.output_dir
    if out.is_relative_to(root):  # so that both ways of giving the folder are the same study
        study = replace(study, output_dir=str(out.relative_to(root)))
    jobs = make_jobs(study)
    settings = read_settings(jobs, path, root)
    with locked(out) as lock:
        to_do = sort_out(jobs, settings, out)
        if to_do:
            check_inputs(study, jobs, settings, root)
            tell(f"{len(jobs) - len(to_do)} of {len(jobs)} jobs are done, {len(to_do)} to do, in {out}")
        else:
            runs = sum(job.stage in ("train", "control") for job in jobs)
            tell(f"nothing to do: {runs} runs are there, and their audits; the report is written again")
        children = Children()
        failures = run_jobs(
            to_do,
            len(jobs),
            study.parallel_runs,
            children,
            lambda job: launch(job, settings, root, out, children, lock),
        )
        if failures:
            print("\n".join([*failures, "Mend it and give the same command again."]), file=sys.stderr)
            _tell_private(out)
            return 1
        write_report(study, out)
        for folder in private_folders(out):
            record = folder / RECORD
            kept = record.read_text(encoding="utf-8") if record.exists() else None
            shutil.rmtree(folder)
            if kept is not None:  # without it neither an audit nor a control of the run finds its data again
                write_private(folder.parent, RECORD, kept)
        _tell_private(out)
    return 0


def _tell_private(out: Path) -> None:
    left = ", ".join(map(str, private_folders(out)))
    print(f"Private files left: {left or 'none'}.{' They go when the study is done.' if left else ''}", flush=True)
    if records := len([*out.glob(f"seed*/*/private/{RECORD}")]):
        print(f"private/{RECORD} of {records} runs stays (hashes of their data, and paths): publish none.", flush=True)


def main(argv: list[str], root: Path = REPO) -> int:
    """Study -> runs and audits -> report; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(usage())
        return 0
    study = parse_study(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError(["a study launches its runs itself: start it with python, not accelerate launch"])
    interrupt_on_signals()
    try:
        return run_study(study, argv[0], root)
    except KeyboardInterrupt:
        print("\nStopped, and all runs with it; the same command goes on from here.", file=sys.stderr)
        _tell_private(root / study.output_dir)
        return 130


if __name__ == "__main__":
    with exit_on_recipe_error():
        sys.exit(main(sys.argv[1:]))
