"""Watches a server's processes from outside: what they hold in memory, and whether all of them are still there."""

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

import psutil

from loadtest.memory import processes_of, resident_bytes_of

EVERY_S = 0.25
MEBIBYTE = 1 << 20


class Watch:
    """Samples the memory of a program (PSS: pages that its processes share count once) while it is entered."""

    def __init__(self, pid: int) -> None:
        """Raises NoSuchProcess if there is no such program."""
        self._pid = pid
        self._processes = processes_of(pid)
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.before_mb = self.most_mb = self.now_mb()

    def now_mb(self) -> float:
        """Returns what it holds; 0 if it has ended."""
        with contextlib.suppress(psutil.Error):
            return resident_bytes_of(self._pid) / MEBIBYTE
        return 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every process that was there at first still runs."""
        return all(_runs(process) for process in self._processes)

    def settled_mb(self, most_mb: float, limit_s: float) -> float:
        """Waits until it holds at most so much, or the time is over; what it holds then."""
        until_s = time.monotonic() + limit_s
        while (held_mb := self.now_mb()) > most_mb and time.monotonic() < until_s:
            time.sleep(EVERY_S)
        return held_mb

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.most_mb = max(self.most_mb, self.now_mb())


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
