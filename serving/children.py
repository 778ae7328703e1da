"""Forks the supervisor's child processes, each with a pipe to it, and knows how the one that serves is doing."""

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # that the supervisor acts on
STACKS_SIGNAL = signal.SIGUSR1  # has a process write its Python stacks to stderr, whatever holds its threads
SERVING = "atelier-serve"  # the name of the process that serves, in ps and top
STABLE_S = 5.0  # once a process has been ready for so long, what ends it is no fault of its start

# What a process does, with its end of the pipe; its exit code.
Work = Callable[[Connection], int]
Inherited = Sequence[Connection | socket.socket]


def start_process(work: Work, inherited: Inherited, name: str) -> tuple[BaseProcess, Connection]:
    """Forks; the process, and the supervisor's end of the pipe to it. `inherited` is closed in the child.

    `name`, of 15 bytes at most, is what ps and top call it on Linux.

    The caller has one thread, or the child may wait for locks that nobody in it will release.
    """
    fork = multiprocessing.get_context("fork")
    link, childs_end = fork.Pipe()
    process = fork.Process(target=_run_in_child, args=(work, name, childs_end, [link, *inherited]), name=name)
    with _signals_held():  # until the child has its own way with them
        process.start()
    childs_end.close()
    return process, link


def _run_in_child(work: Work, name: str, link: Connection, inherited: Inherited) -> None:
    """Closes what is the supervisor's in the new process, and runs: pipes and port must close with the supervisor."""
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(name)
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:  # they reach all of a terminal's or a service's processes; the supervisor acts
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.exit(work(link))


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@dataclass(eq=False)
class Child:
    """The serving process, and the supervisor's end of the pipe to it."""

    process: BaseProcess
    link: Connection
    ready_s: float = math.inf  # when it said that it was, on the monotonic clock
    failure: str = ""  # why it cannot go on, a word
    has_lost_device: bool = False
    num_silent: int = 0  # seconds of the supervisor's own running in which nothing was heard of it

    @property
    def is_ready(self) -> bool:
        """It serves, or has served."""
        return self.ready_s < math.inf

    def ask_for_stacks(self) -> None:
        """Has the process write its Python stacks to the log, if it can do anything at all."""
        if self.is_ready and self.process.pid is not None:  # before that the signal would end it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, STACKS_SIGNAL)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that has ended, as a shell reports it."""
        code = self.process.exitcode or 0
        return 128 - code if code < 0 else code

    @property
    def may_fail_again(self) -> bool:
        """It broke by itself, and before it was ready or soon after."""
        is_own_fault = self.has_lost_device or not (self.failure or self.process.exitcode == -signal.SIGKILL)
        return is_own_fault and (not self.is_ready or time.monotonic() - self.ready_s < STABLE_S)
