"""Starts the page's process when somebody opens the page, from the supervisor, which never waits for it.

The supervisor holds the listening sockets, and forks when a connection waits in one of them: until then the page costs
a socket. The process ends by itself once nobody has looked for a while; whatever breaks it costs the page only.
"""

import os
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from atelier.errors import ProgramError, ResourceUnavailableError
from atelier.program import how_to_install, run_program, say
from serving.children import Inherited, start_process
from serving.config import ServerConfig
from serving.listening import Listening, is_loopback
from serving.models import ModelVersion
from serving.playground.entrance import NO_ENTRANCE, Entrance, open_entrance

MAX_FILES = 128  # of the process, connections among them
PAUSE_S = 5.0  # between two starts, at least
LIBRARIES = ("starlette", "uvicorn")


def listen(config: ServerConfig) -> Listening | None:
    """Opens the page's port; without it the server serves all the same, and a line says why there is no page.

    Raises ConfigurationError BAD_HOST, and NO_LIBRARY for a page that was asked for by its port.
    """
    if config.playground_port == 0:
        return None
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        what, cure = f"{missing[0]} is not installed", how_to_install("playground")
        if config.playground_port is not None:
            raise ResourceUnavailableError("NO_LIBRARY", f"asked for the page that looks inside: {what}", cure)
        say(f"no page looks inside the network: {what} ({cure})")
        return None
    try:
        return Listening([config.playground_host], config.playground_port_to_open, flag="--playground-port")
    except ResourceUnavailableError as error:
        say(f"warning: no page looks inside the network: {error}")
        return None


def open_playground(config: ServerConfig, target: str, stack: ExitStack, *, only_reserve: bool) -> "Playground":
    """Opens the page's port, and its way to `Classify` at `target`, for as long as the stack is open.

    Raises ProgramError as `listen`.
    """
    listening = listen(config)
    if listening is None:
        return Playground(config)
    stack.enter_context(listening)
    try:
        entrance = open_entrance(config, target, stack, only_reserve=only_reserve)
    except (OSError, ProgramError) as error:
        say(f"warning: no page looks inside the network: no private socket for it: {error}")
        listening.close()
        return Playground(config)
    playground = Playground(config, listening, entrance)
    stack.callback(playground.stop)
    return playground


class Playground:
    """Holds the page's sockets, and its process while there is one."""

    def __init__(
        self, config: ServerConfig, listening: Listening | None = None, entrance: Entrance = NO_ENTRANCE
    ) -> None:
        """`listening` is None if there is no page; `entrance` is its way to `Classify`."""
        self._config, self.entrance = config, entrance
        self._sockets = listening.sockets if listening else []
        scheme = "https" if config.has_tls and not is_loopback(config.playground_host) else "http"
        self.addresses = [f"{scheme}://{address}/" for address in listening.addresses] if listening else []
        self._process: BaseProcess | None = None
        self._link: Connection | None = None  # its end tells the process that the supervisor is gone
        self._next_start_s = 0.0

    @property
    def inherited(self) -> Inherited:
        """What another process of the supervisor's must close: the page's sockets and the pipe to its process."""
        return [*self._sockets, *([self._link] if self._link else [])]

    def awaited(self) -> list[socket.socket | int]:
        """Returns what `act` is to be called for: a first connection, or the end of the process; look every second."""
        if self._process is not None:
            return [self._process.sentinel]
        return [] if time.monotonic() < self._next_start_s else list(self._sockets)

    def act(self, events: Sequence[object], versions: Sequence[ModelVersion], inherited: Inherited) -> None:
        """Starts the process if somebody waits, or notes that it has ended; `inherited` is not for it."""
        if self._process is not None and self._process.sentinel in events:
            self._note_end()
        elif self._process is None and any(each in events for each in self._sockets):
            self._start(versions, inherited)

    def stop(self) -> None:
        """Ends the process, which has nothing to finish."""
        if self._process is not None:
            self._process.kill()
            self._note_end(is_wanted=True)

    def _start(self, versions: Sequence[ModelVersion], inherited: Inherited) -> None:
        def work(link: Connection) -> int:
            os.nice(10)
            # Connections that never finish TLS's handshake are not counted as ours, and take 256 KiB each.
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
            return run_program(lambda _arguments: self._serve(versions, link), [], extras="playground")

        self._next_start_s = time.monotonic() + PAUSE_S
        self._process, self._link = start_process(work, inherited, "atelier-page")

    def _serve(self, versions: Sequence[ModelVersion], link: Connection) -> int:
        import asyncio  # in the process: the supervisor loads neither an event loop nor a runtime

        from serving.playground.serve import serve

        asyncio.run(serve(self._config, versions, self.entrance, self._sockets, link))
        return os.EX_OK

    def _note_end(self, *, is_wanted: bool = False) -> None:
        assert self._process is not None and self._link is not None  # noqa: S101 # for mypy
        self._process.join()
        self._link.close()
        if self._process.exitcode and not is_wanted:
            ended = f"the page's process ended with exit code {self._process.exitcode}"
            say(f"warning: {ended}: whoever opens it starts another")
        self._process = self._link = None
