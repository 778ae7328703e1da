"""A program with all its processes: memory on the host and on the GPU, processor time, and whether all still run."""

import contextlib
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

import psutil

from atelier.errors import ProgramError
from loadtest.server_process import comes_true
from serving.children import SERVING

EVERY_S = 0.25
MEBIBYTE = 1 << 20


def processes_of(pid: int) -> list[psutil.Process]:
    """Returns a program's first process and those that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def resident_bytes_of(pid: int) -> int:
    """Sums up what all its processes hold; pages that they share count once (PSS), if the system reports it."""

    def bytes_of(process: psutil.Process) -> int:
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.rss)  # only Linux tells what is shared

    return _summed(pid, bytes_of)


def _summed(pid: int, bytes_of: Callable[[psutil.Process], int]) -> int:
    total = 0
    for process in processes_of(pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += bytes_of(process)
    return total


def cpu_s(pid: int) -> float:
    """Reads user and system time of the first process and of all that it started."""
    return sum(sum(process.cpu_times()[:2]) for process in processes_of(pid))


def device_bytes_of(pid: int) -> int | None:
    """Sums up what all its processes hold on GPUs, contexts included; None if nvidia-smi reports nothing."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    pids = {str(process.pid) for process in processes_of(pid)}
    rows = [line.split(", ") for line in lines]
    mebibytes = [int(row[1]) for row in rows if len(row) == 2 and row[0] in pids and row[1].isdecimal()]
    return sum(mebibytes) << 20 if mebibytes else None


class Watch:
    """Watches the memory of a program (PSS: pages that its processes share count once) while it is entered.

    To find the PSS keeps a core for milliseconds, beside what is being measured. So in between only the RSS is sampled,
    which the system counts anyway, and what that has grown by is added to the PSS of the beginning.
    """

    def __init__(self, pid: int) -> None:
        """Raises NoSuchProcess if there is no such program."""
        self._pid = pid
        self._processes = processes_of(pid)
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.before_mb = self.now_mb()
        self._rss_before = self._most_rss = self._rss_bytes()

    def now_mb(self) -> float:
        """Returns what it holds; 0 if it has ended."""
        with contextlib.suppress(psutil.Error):
            return resident_bytes_of(self._pid) / MEBIBYTE
        return 0.0

    @property
    def most_mb(self) -> float:
        """Returns the most that it held at a sample."""
        return self.before_mb + (self._most_rss - self._rss_before) / MEBIBYTE

    @property
    def is_whole(self) -> bool:
        """Whether every process that was there at first still runs."""
        return all(is_running(process) for process in self._processes)

    def settled_mb(self, most_mb: float, limit_s: float) -> float:
        """Waits until it holds at most so much, or the time is over; what it holds then."""
        until_s = time.monotonic() + limit_s
        while (held_mb := self.now_mb()) > most_mb and time.monotonic() < until_s:
            time.sleep(EVERY_S)
        return held_mb

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _rss_bytes(self) -> int:
        return _summed(self._pid, lambda process: process.memory_info().rss)

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_S):
            with contextlib.suppress(psutil.Error):
                self._most_rss = max(self._most_rss, self._rss_bytes())


def is_running(process: psutil.Process) -> bool:
    """Returns whether it has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _serves(child: psutil.Process) -> bool:
    try:
        return sys.platform != "linux" or child.name() == SERVING
    except psutil.NoSuchProcess:
        return False


def serving_process(pid: int, limit_s: float = 60.0) -> psutil.Process:
    """Returns the child of a server's first process that serves, or is about to.

    An open page and a version that is tried are children too; on Linux the serving one is known by its name. Raises
    ProgramError NOTHING_SERVES if there is none for so long.
    """
    found: list[psutil.Process] = []

    def is_found() -> bool:
        found[:] = [child for child in psutil.Process(pid).children() if is_running(child) and _serves(child)]
        return bool(found)

    if not comes_true(is_found, limit_s):
        raise ProgramError("NOTHING_SERVES", f"process {pid} has no child that serves, for {limit_s:g} s")
    return found[0]


# --- A function in a process of its own, with a pipe to it ------------------------------------------------------------


class Child:
    """A process that runs `work(*arguments, pipe)`; spawned, not forked: grpc's threads do not survive a fork."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._name = name
        self._process = context.Process(target=_run, args=(work, arguments, theirs), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def receive(self, limit_s: float | None = None) -> Any:
        """Returns what it sends next. Raises ProgramError CHILD_DIED if it ends, or sends nothing for so long."""
        try:
            if self.pipe.poll(None if limit_s is None else max(0.0, limit_s)):
                return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        raise ProgramError("CHILD_DIED", f"the process of {self._name} ended early, or is stuck")

    def end(self, patience_s: float = 2.0) -> None:
        """Closes the pipe, which it notices, and kills it if it goes on."""
        self.pipe.close()
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(work: Callable[..., None], arguments: tuple[Any, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    work(*arguments, pipe)
