"""Study: `python eval/study/run.py STUDY.yaml [--key value ...]`. Launches trainings and audits and compares them.

The same command goes on where a study was stopped, and helps where it runs on another machine with the same folder.
"""

import os
import shutil
import signal
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path

from pmc_rl.errors import exit_on_recipe_error  # first: it switches telemetry off

if find_spec("optuna") is None:
    sys.exit("error: a study needs optuna: pip install -e '.[study]'")

# isort: split
from optuna.trial import TrialState

from eval.study.commands import check_study
from eval.study.report import write_report
from eval.study.settings import parse_study
from eval.study.trials import JOURNAL, TrialFailed, Trials, locked
from pmc_rl.errors import RecipeError
from pmc_rl.output import RECORD, write_private

REPO = Path(__file__).resolve().parents[2]


def main(argv: list[str], root: Path = REPO) -> int:
    """Study -> trials -> report; returns the exit code."""
    study = parse_study(argv)
    if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:  # its runs would inherit these
        raise RecipeError(["a study launches its runs itself: start it with python, not accelerate launch"])
    out = root / study.output_dir
    if out.is_relative_to(root):  # so that both ways of giving the folder are the same study
        study.output_dir = str(out.relative_to(root))
    settings = check_study(study, argv[0], root)
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).exists():
        raise RecipeError([f"output_dir: {str(out)!r} holds files, but no study; choose another folder"])
    out.mkdir(parents=True, exist_ok=True)
    workers = [Trials(study, settings, out, root) for _ in range(study.parallel_runs)]
    workers[0].enqueue()
    failures = work(workers)
    for failure in failures:
        print(failure, file=sys.stderr)
    with locked(out / "locks" / "report"):  # the last workers may end together
        if not failures:
            write_report(study, workers[0].get(TrialState.COMPLETE), out)
            for folder in private_folders(out):
                remove_private(folder)
        left = private_folders(out)
    print(f"Private files left: {', '.join(map(str, left)) or 'none'}.", flush=True)
    if left:
        print("They go when the study is done.", flush=True)
    if records := len([*out.glob(f"seed*/*/private/{RECORD}")]):
        print(f"private/{RECORD} of {records} runs stays (hashes of their data, and paths): publish none.", flush=True)
    return 1 if failures else 0


def work(workers: list[Trials]) -> list[str]:
    """Lets all workers work until nothing is left; after a failure or a signal no trial is begun. What failed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it does so as on Ctrl-C
    failures = []
    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(worker.work) for worker in workers]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            failures.append("Stopped; the same command goes on from here.")
            for worker in workers:
                worker.end_command()
        for worker in workers:
            worker.stopped = True
    signal.signal(signal.SIGTERM, before)
    for future in () if failures else futures:
        try:
            future.result()
        except TrialFailed as error:
            failures.append(f"{error}\nMend it and give the same command again.")
    return failures


def private_folders(out: Path) -> list[Path]:
    """Folders of the study's runs that hold what is to be forgotten, and not only the record of a run."""
    private = [*out.glob("seed*/private"), *out.glob("seed*/*/private")]
    private = [path for path in private if {file.name for file in path.iterdir()} - {RECORD, "README.md"}]
    return sorted([*private, *out.glob("seed*/*/checkpoint-*")])


def remove_private(folder: Path) -> None:
    """Removes all but the record of a run, without which neither an audit nor a control finds its data again."""
    record = folder / RECORD
    kept = record.read_text(encoding="utf-8") if record.exists() else None
    shutil.rmtree(folder)
    if kept is not None:
        write_private(folder.parent, RECORD, kept)


if __name__ == "__main__":
    with exit_on_recipe_error():
        sys.exit(main(sys.argv[1:]))
