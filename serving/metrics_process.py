"""The process that serves the metrics page, as the supervisor has it: started, restarted, ended, never waited for."""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.child_process import Inherited, start_process
from serving.errors import ResourceUnavailableError, how_to_install, run_program
from serving.metrics import Board
from serving.port import open_listeners
from serving.served_model import say

RESTART_PAUSE_S = 5.0  # at least, between two starts: one that cannot start is no reason to fork all the time
NAME = "metrics-page"  # as `ps` and `top` show it


class MetricsProcess:
    """Listens from the start on; `look_after` starts the process, and another where it has ended."""

    def __init__(self, board: Board, host: str, port: int) -> None:
        """Port 0 lets the system choose. Raises ResourceUnavailableError where the port or the library is not there."""
        if find_spec("prometheus_client") is None:
            cure = f"{how_to_install('serve')}; --metrics-port 0 does without"
            raise ResourceUnavailableError("NO_LIBRARY", "prometheus_client is not installed", cure)
        self._board = board
        self._listeners = open_listeners(host, port)
        self._process: BaseProcess | None = None
        self._link: Connection | None = None
        self._next_start_s = 0.0
        self.url = f"http://{host}:{self._listeners[0].getsockname()[1]}/metrics"

    @property
    def handles(self) -> list[Connection | socket.socket]:
        """What no other process may inherit."""
        return [*self._listeners, *([self._link] if self._link else [])]

    def look_after(self, inherited: Callable[[], Inherited]) -> None:
        """`inherited`: what is the supervisor's besides."""
        if self._process is not None:
            if self._process.exitcode is None or time.monotonic() < self._next_start_s:
                return
            say("warning: the process that serves the metrics ended: starting another")
        self._end()
        self._next_start_s = time.monotonic() + RESTART_PAUSE_S
        with contextlib.suppress(OSError):  # the system has no process to spare, now
            self._process, self._link = start_process(self._serve, inherited(), NAME)

    def _serve(self, link: Connection) -> int:
        """In the process: serves until the supervisor is gone."""
        with contextlib.suppress(OSError):  # Linux
            Path("/proc/self/comm").write_text(NAME)

        def main(_arguments: list[str]) -> int:
            from serving.metrics_page import serve_page  # its library is no other process's

            serve_page(self._board, self._listeners)
            with contextlib.suppress(EOFError, OSError):
                link.recv_bytes()
            return os.EX_OK

        return run_program(main, [])

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # it has nothing to lose
            self._process.join()
        if self._link is not None:
            self._link.close()
        self._process = self._link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        for listener in self._listeners:
            listener.close()
