"""A server under test, in a process of its own, on a port that the system chose."""

import fcntl
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

POLL_S = 0.005  # how late a server may be found ready: starts are measured
FIRST_DYNAMIC_PORT = 32768


@dataclass
class ServerProcess:
    """A running server; its output is kept as it comes."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)  # what it wrote to its --ready-file

    @property
    def target(self) -> str:
        """What a client connects to, the first if there are several."""
        return str(self.ready["targets"][0])

    @property
    def metrics_url(self) -> str:
        """Its page for Prometheus; empty if it has none."""
        return str(next(iter(self.ready.get("metrics", ())), ""))

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.target.rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, for a socket."""
        return "127.0.0.1", self.port

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Where its metrics page listens; port 0 if it has none."""
        return "127.0.0.1", urlsplit(self.metrics_url).port or 0

    @property
    def output(self) -> str:
        """Everything printed so far, stdout and stderr."""
        until_s, stdout = time.monotonic() + 1.0, self.process.stdout
        while stdout and not stdout.closed and _num_unread(stdout.fileno()) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        time.sleep(POLL_S)  # for the reader to keep what it has just read
        return "".join(self.lines)

    def metric(self, name: str, **labels: str) -> float:
        """Reads the metrics page; returns the sum of this metric's samples that have these labels."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:  # noqa: S310 - it is http
            families = list(text_string_to_metric_families(reply.read().decode()))
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    @property
    def num_answered(self) -> int | None:
        """How many requests it has answered, by its own last line; None if it has not printed one."""
        found = re.search(r"answered (\d+) requests", self.output)
        return int(found[1]) if found else None

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Sends a signal and waits; the exit code. Raises TimeoutExpired where it does not end."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def server_process(
    module: str, *arguments: str, ready_timeout_s: float = 60.0, own_group: bool = False
) -> AbstractContextManager[ServerProcess]:
    """Runs `python -m <module>`, as `program_process` does."""
    command = [sys.executable, "-m", module, *arguments]
    return program_process(command, ready_timeout_s=ready_timeout_s, own_group=own_group)


@contextmanager
def program_process(
    command: Sequence[str], *, ready_timeout_s: float = 60.0, own_group: bool = False
) -> Iterator[ServerProcess]:
    """Runs a server until the block ends; it is ready when it has written the `--ready-file` that it is given.

    In a process group of its own, Ctrl-C does not reach it: it goes on until the block ends.

    Raises RuntimeError, with what it printed, if it ends or is silent instead.
    """
    group = 0 if own_group else None
    with tempfile.TemporaryDirectory(prefix="atelier-ready-") as directory:
        ready_file = Path(directory, "ready.json")
        process = subprocess.Popen(  # noqa: S603
            [*command, "--ready-file", str(ready_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=group,
        )
        server = ServerProcess(process)
        reader = threading.Thread(target=_read_output, args=(server,), daemon=True)
        reader.start()
        try:
            comes_true(lambda: ready_file.exists() or process.poll() is not None, ready_timeout_s, POLL_S)
            if not ready_file.exists():
                _end(process)
                reader.join(10)
                raise RuntimeError(f"{' '.join(command)} did not start:\n{server.output}")
            server.ready = json.loads(ready_file.read_bytes())
            yield server
        finally:
            _end(process)
            reader.join(10)
            if process.stdout is not None:
                process.stdout.close()


def comes_true(condition: Callable[[], bool], longest_s: float, every_s: float = 0.02) -> bool:
    """Waits until it holds; false if it does not in time."""
    until_s = time.monotonic() + longest_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(every_s)
    return True


def free_port() -> int:
    """Returns a port that nobody uses, below those from which the system takes a client's.

    While no server listens, a client's own end of a connection to a port above might get that very port.
    """
    while True:
        port = random.randrange(20_000, FIRST_DYNAMIC_PORT)  # noqa: S311
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _num_unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _read_output(server: ServerProcess) -> None:
    for line in server.process.stdout or ():
        server.lines.append(line)
