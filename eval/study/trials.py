"""The trials of a study: taken from its Optuna journal by any number of workers, each a training with its audit."""

import fcntl
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from eval.study.commands import (
    audit_overrides,
    control_folders,
    model_overrides,
    option_words,
    run_overrides,
    setup_commands,
)
from eval.study.results import trial_numbers
from eval.study.settings import Run, StudySettings, distribution, grid_runs, ranges, replace_ranges
from pmc_rl.errors import RecipeError, show
from pmc_rl.output import MANIFEST

JOURNAL = "journal.log"
CACHE = "private/cache/rows.sqlite"  # of an audit, below the folder of its run
BEGUN = (TrialState.COMPLETE, TrialState.RUNNING)
LOG_LINES = 15
POLL = 2.0  # seconds between two looks at trials that others work on


class TrialFailed(Exception):
    """A command failed; the message tells which, and the end of its log."""


def run_of(trial: FrozenTrial | Trial) -> Run:
    return Run(**trial.user_attrs["run"])


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int]:
    """
    Holds a file's lock. The kernel takes it back when everything that holds it is dead, commands included that got the
    file descriptor: nothing has to guess from a clock whether somebody still works.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield stream.fileno()


class Trials:
    """
    The journal of a study and what is done with it. Several workers, threads of one process or processes of several
    machines with one folder, each with a journal object of its own, share the trials.

    Args:
        study ([`~eval.study.settings.StudySettings`]): the settings.
        settings (`dict[str, dict]`): what each run of the grid is given, by its folder, from `check_study`.
        out, root (`Path`): the study's folder, and the repository, whose scripts are run in it.
    """

    def __init__(self, study: StudySettings, settings: dict[str, dict], out: Path, root: Path):
        self.study = study
        self.settings = settings
        self.out = out
        self.root = root
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.journal = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
            study_name="study",
            directions=list(study.objectives.values()),
            load_if_exists=True,
        )
        self.command: subprocess.Popen | None = None
        self.stopped = False

    def get(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in these states, or all, in their order."""
        return self.journal.get_trials(deepcopy=False, states=states or None)

    def enqueue(self) -> None:
        """
        Puts every run of the grid into the journal that is not there.

        Raises:
            RecipeError: a run was made, or begun, with other settings than those of now.
        """
        with locked(self.out / "locks" / "queue"):
            self._give_back()
            errors = []
            for trial in self.get(*BEGUN):
                run, before = run_of(trial), trial.user_attrs["settings"]
                now = {"search": self.study.search} if run.searched else self.settings.get(run.folder, before)
                pairs = {key: (before.get(key), now.get(key)) for key in before | now}
                changes = [f"{key} was {show(old)}, is {show(new)}" for key, (old, new) in pairs.items() if old != new]
                if changes:
                    made = f"{self.out / run.folder}: it was made with other settings ({', '.join(changes)})"
                    errors.append(f"{made}; choose another output_dir")
            if errors:
                raise RecipeError(sorted(errors))
            known = self._live_folders()
            for run in grid_runs(self.study):
                if run.folder not in known:
                    self._enqueue(run)

    def _give_back(self) -> None:
        """What was begun by somebody who is dead, or failed, waits again, with the values it had."""
        for trial in self.get(TrialState.RUNNING):
            with suppress(BlockingIOError), locked(self._lock_of(trial), wait=False):
                self.journal.tell(trial.number, state=TrialState.FAIL)
        live = self._live_folders()
        for trial in self.get(TrialState.FAIL):
            run = run_of(trial)
            if run.folder not in live and (run.searched or run.folder in self.settings):
                live.add(run.folder)
                self.journal.enqueue_trial(trial.params, user_attrs=trial.user_attrs)

    def _live_folders(self) -> set[str]:
        return {run_of(trial).folder for trial in self.get(*BEGUN, TrialState.WAITING)}

    def _enqueue(self, run: Run) -> None:
        self.journal.enqueue_trial({}, user_attrs={"run": asdict(run)})

    def _lock_of(self, trial: FrozenTrial | Trial) -> Path:
        return self.out / "locks" / f"trial_{trial.number}"

    def work(self) -> None:
        """
        Does trials until all are done; waits while others work on the last ones, since they may die.

        Raises:
            TrialFailed: a command failed.
        """
        while not self.stopped:
            with ExitStack() as stack:
                with locked(self.out / "locks" / "queue"):
                    self._give_back()
                    trial = self._take()
                    if trial is not None:
                        lock = stack.enter_context(locked(self._lock_of(trial)))
                if trial is not None:
                    self._do(trial, lock)
                    continue
            if not self.get(TrialState.RUNNING):
                return
            time.sleep(POLL)

    def _take(self) -> Trial | None:
        """The trial that waits longest, else a new one of the search; None if there is none."""
        if not self.get(TrialState.WAITING):
            count = sum(run_of(trial).searched for trial in self.get(*BEGUN))
            if not self.study.search or count >= self.study.search_trials:
                return None
            seed = self.study.seeds[0]
            # seeded by how many are known: the same trials give the same values, whoever asks
            self.journal.sampler = optuna.samplers.TPESampler(
                seed=seed + count, n_startup_trials=max(4, self.study.search_trials // 3), constant_liar=True
            )
            self._enqueue(Run(f"search_{count + 1}", seed, {}))
        run = run_of(self.get(TrialState.WAITING)[0])
        if run.searched:
            trial = self.journal.ask({name: distribution(given) for name, given in ranges(self.study.search).items()})
            run = Run(run.name, run.seed, replace_ranges(self.study.search, trial.params))
            settings = {"search": self.study.search}
        else:
            trial = self.journal.ask()
            if run.folder not in self.settings:  # the study names it no longer
                self.journal.tell(trial, state=TrialState.FAIL)
                return self._take()
            [run] = [now for now in grid_runs(self.study) if now.folder == run.folder]
            settings = self.settings[run.folder]
        trial.set_user_attr("run", asdict(run))
        trial.set_user_attr("settings", settings)
        return trial

    def _do(self, trial: Trial, lock: int) -> None:
        run, started = run_of(trial), time.perf_counter()
        say(f"start  {run.folder}")
        try:
            numbers = self._train_and_audit(run, lock)
        except BaseException:
            self.journal.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("numbers", numbers)
        trial.set_user_attr("seconds", time.perf_counter() - started)
        # Optuna takes no missing values: what cannot be had counts as the worst there is
        worst = {"maximize": -math.inf, "minimize": math.inf}
        own = {name: value for name, value in numbers["after"].items() if value is not None}
        self.journal.tell(trial, [own.get(name, worst[way]) for name, way in self.study.objectives.items()])

        done = self.get(TrialState.COMPLETE)
        left = len(grid_runs(self.study)) + (self.study.search_trials if self.study.search else 0) - len(done)
        minutes = left * fmean(trial.user_attrs["seconds"] for trial in done) / self.study.parallel_runs / 60
        progress = f"{len(done)} of {len(done) + left}" + (f"; some {minutes:.0f} min left" if left else "")
        say(f"done   {run.folder} in {trial.user_attrs['seconds']:.0f} s, {progress}")

    def _train_and_audit(self, run: Run, lock: int) -> dict[str, dict]:
        study, folder = self.study, self.out / run.folder
        self._make_models(run.seed)
        controls = control_folders(study, run)
        for place in (folder, *(self.root / control for control in controls.values())):
            shutil.rmtree(place, ignore_errors=True)  # what an attempt that was stopped has left
        overrides = run_overrides(study, run)
        script = "eval/baselines.py" if overrides.get("method") else "pmc_rl/train.py"
        self._call(run.folder, [script, study.recipe, *option_words(overrides)], lock)
        made = f"{study.output_dir}/{run.folder}"
        for name, control in controls.items():
            words = ["eval/study/control.py", name.removeprefix("control_"), made, "--output_dir", control]
            self._call(f"{run.folder}_{name}", words, lock)
        # what the models before and retain-only answer has been asked by the seed's first audit
        shared = self.out / f"seed{run.seed}" / "private" / "rows.sqlite"
        if shared.exists():
            (folder / CACHE).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy(shared, folder / CACHE)
        words = ["eval/run.py", f"{made}/recipe.yaml", *option_words(audit_overrides(study, run))]
        self._call(f"{run.folder}_audit", words, lock)
        if not shared.exists():
            shared.parent.mkdir(mode=0o700, exist_ok=True)
            mine = shared.with_name(folder.name)
            shutil.copy(folder / CACHE, mine)
            mine.replace(shared)
        return trial_numbers(folder, {name: self.root / control for name, control in controls.items()})

    def _make_models(self, seed: int) -> None:
        """Setup scripts and the models of a seed, once each: what makes them holds their lock, not a trial's."""
        with locked(self.out / "locks" / "setup") as lock:
            for i, command in enumerate(setup_commands(self.study), 1):
                done = self.out / f"setup_{i}.done"
                if not done.exists():
                    self._call(f"setup_{i}", command, lock)
                    done.touch()
        with locked(self.out / "locks" / f"models_{seed}") as lock:
            for name, overrides in model_overrides(self.study, seed).items():
                place = f"seed{seed}/{name}"
                if not (self.out / place / MANIFEST).exists():
                    shutil.rmtree(self.out / place, ignore_errors=True)
                    command = ["pmc_rl/finetune.py", self.study.finetune_recipe, *option_words(overrides)]
                    self._call(place, command, lock)

    def _call(self, name: str, command: list[str], lock: int) -> None:
        """Runs a command of the repository, which holds a lock as long as it lives, also when the study is killed."""
        if self.stopped:
            raise TrialFailed(f"{name}: stopped before it began")
        log = self.out / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        log.touch(mode=0o600)  # a traceback may show what is to be forgotten
        with log.open("w", encoding="utf-8") as stream:
            streams = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
            self.command = subprocess.Popen([sys.executable, *command], cwd=self.root, pass_fds=(lock,), **streams)
            code = self.command.wait()
            self.command = None
        if code != 0:
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            lines = [f"{name} failed (exit code {code}); the end of {log}:", *(f"    {line}" for line in end)]
            raise TrialFailed("\n".join(lines))

    def end_command(self) -> None:
        """Ends the command that runs now, if any; no other is started."""
        self.stopped = True
        if self.command is not None:
            self.command.terminate()


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}\n", end="", flush=True)
