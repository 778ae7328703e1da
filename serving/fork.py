"""Forks processes that have a pipe to the supervisor, and close what else is its own."""

import contextlib
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)  # that the supervisor acts on

# What a process does, with its end of the pipe; its exit code.
Work = Callable[[Connection], int]
Inherited = Sequence[Connection | socket.socket]


def start_process(work: Work, inherited: Inherited, name: str) -> tuple[BaseProcess, Connection]:
    """Forks; the process, and the supervisor's end of the pipe to it. `inherited` is closed in the child.

    The caller has one thread, or the child may wait for locks that nobody in it will release.
    """
    fork = multiprocessing.get_context("fork")
    link, childs_end = fork.Pipe()
    process = fork.Process(target=_run_in_child, args=(work, childs_end, [link, *inherited]), name=name)
    with _signals_held():  # until the child has its own way with them
        process.start()
    childs_end.close()
    return process, link


def _run_in_child(work: Work, link: Connection, inherited: Inherited) -> None:
    """Closes what is the supervisor's in the new process, and runs: pipes and port must close with the supervisor."""
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
