"""The server of a soak, and what its faults may touch."""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from atelier.errors import ProgramError
from loadtest.restarts.versions import Shelf
from loadtest.server_process import ServerProcess
from loadtest.soak.credentials import Credentials

POLL_S = 0.02
LIMIT_S = 20.0  # for a fault to show what it does


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running server, its repository and its credentials; each is changed by one fault at a time."""

    server: ServerProcess
    shelf: Shelf
    credentials: Credentials
    of_process: threading.Lock = field(default_factory=threading.Lock)
    of_shelf: threading.Lock = field(default_factory=threading.Lock)
    of_certificate: threading.Lock = field(default_factory=threading.Lock)
    of_tokens: threading.Lock = field(default_factory=threading.Lock)
    kills: list[tuple[float, float]] = field(default_factory=list)  # when the process was killed, and seen to be dead

    @property
    def address(self) -> tuple[str, int]:
        """Where it serves."""
        return "127.0.0.1", self.server.port

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Where its metrics page is."""
        return "127.0.0.1", self.server.metrics_port

    @cached_property
    def context(self) -> ssl.SSLContext:
        """TLS of its clients."""
        return self.credentials.context


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Returns once it holds. Raises ProgramError NO_EFFECT if it does not in time."""
    until_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until_s:
            raise ProgramError("NO_EFFECT", f"{what}, for {limit_s:g} s")
        time.sleep(POLL_S)
