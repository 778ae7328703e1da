"""Runs a function in a process of its own, with a pipe to it."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from atelier.errors import ProgramError


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
