"""Commands of a study: several at once, with a line at each start and end, and stopped together."""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from pmc_rl.study_plan import Job
from pmc_rl.values import RecipeError

LOCK = ".study.lock"
# what `accelerate launch` leaves behind: a run would take itself for one process of the study
LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}
LAUNCHER_PREFIXES = ("ACCELERATE_", "MASTER_", "FSDP_", "DEEPSPEED_", "TORCHELASTIC_")
GRACE = 10  # seconds a run has to end before it is killed


class JobFailed(Exception):
    """A command failed; the message tells which, and the end of its log."""


class Children:
    """The commands that run now; after `stop` none is started any more."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stopped = False
        self.running: set[subprocess.Popen] = set()

    def call(self, command: list[str], **kwargs) -> int:
        with self.lock:
            if self.stopped:
                raise JobFailed("stopped before it began")
            # a session of its own: a Ctrl-C reaches it only through `stop`, which also reaches what it has started
            process = subprocess.Popen(command, start_new_session=True, **kwargs)
            self.running.add(process)
        try:
            return process.wait()
        finally:
            self.running.discard(process)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            left = list(self.running)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in left:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            until = time.monotonic() + GRACE
            while any(process.poll() is None for process in left) and time.monotonic() < until:
                time.sleep(0.05)
            left = [process for process in left if process.poll() is None]


def child_environment(environment: dict[str, str]) -> dict[str, str]:
    """An environment without what a launcher says to its own processes."""
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }


def time_left(stages: list[str], seconds: dict[str, list[float]], parallel: int) -> float:
    """Seconds that jobs of these stages will take: as those before, of the same stage where there is one."""
    known = [value for values in seconds.values() for value in values]
    return sum(fmean(seconds.get(stage) or known) for stage in stages) / parallel


def run_jobs(to_do: list[Job], total: int, parallel: int, children: Children, run: Callable[[Job], None]) -> list[str]:
    """Stage after stage, `parallel` jobs at once; after a failure nothing new is begun. Returns what failed."""
    seconds: dict[str, list[float]] = {}
    failures: list[str] = []
    left = [job.stage for job in to_do]
    counting = threading.Lock()

    def timed(job: Job) -> None:
        if failures:
            return
        tell(f"start  {job.name}")
        started = time.perf_counter()
        try:
            run(job)
        except JobFailed as error:
            failures.append(str(error))
            tell(f"failed {job.name}; no other run is begun")
            return
        taken = time.perf_counter() - started
        with counting:
            left.remove(job.stage)
            seconds.setdefault(job.stage, []).append(taken)
            more = f"; about {time_left(left, seconds, parallel) / 60:.0f} min left" if left else ""
            tell(f"done   {job.name} in {taken:.0f} s, {total - len(left)} of {total}{more}")

    for stage in dict.fromkeys(job.stage for job in to_do):
        with ThreadPoolExecutor(parallel if stage != "setup" else 1) as pool:  # setup scripts build on each other
            try:
                for future in as_completed([pool.submit(timed, job) for job in to_do if job.stage == stage]):
                    future.result()
            except BaseException:
                _ignore_signals()  # a second Ctrl-C must not keep runs from being stopped
                children.stop()
                pool.shutdown(cancel_futures=True)
                raise
    return failures


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}\n", end="", flush=True)


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """
    Keeps other studies out of the folder: as long as this one or a run that it has started lives.

    Raises:
        RecipeError: the folder is in use, or holds something that is no study.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / LOCK).exists():
        raise RecipeError([f"output_dir: {str(out)!r} holds files, but no study; choose another folder"])
    with (out / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError([f"output_dir: another study, or a run of one, works in {str(out)!r}"]) from None
        yield stream.fileno()


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def interrupt_on_signals() -> None:
    """A study that is told to end does so as on Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _interrupt)


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
