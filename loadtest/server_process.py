"""A server under test, in a process of its own, on a port that the system chose."""

import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families


@dataclass
class ServerProcess:
    """A running server; its output is kept as it comes."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    target: str = ""  # what a client connects to
    metrics_url: str = ""  # empty if it has no such page

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.target.rpartition(":")[2])

    @property
    def metrics_port(self) -> int:
        """Where its metrics page listens; 0 if it has none."""
        return int(self.metrics_url.rpartition(":")[2].partition("/")[0] or 0)

    @property
    def output(self) -> str:
        """Everything printed so far, stdout and stderr."""
        return "".join(self.lines)

    def metric(self, name: str, **labels: str) -> float:
        """Reads the metrics page; returns the sum of this metric's samples that have these labels."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:  # noqa: S310 - it is http
            families = list(text_string_to_metric_families(reply.read().decode()))
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

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
    """Runs a server until the block ends; it is ready when it has printed `... on <address>`.

    In a process group of its own, Ctrl-C does not reach it: it goes on until the block ends.

    Raises RuntimeError, with what it printed, where it ends or is silent instead.
    """
    group = 0 if own_group else None
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=group
    )
    server = ServerProcess(process)
    ready = threading.Event()
    reader = threading.Thread(target=_read_output, args=(server, ready), daemon=True)
    reader.start()
    try:
        if not ready.wait(ready_timeout_s) or not server.target:
            raise RuntimeError(f"{' '.join(command)} did not start:\n{server.output}")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join(10)
        if process.stdout is not None:
            process.stdout.close()


def _read_output(server: ServerProcess, ready: threading.Event) -> None:
    if server.process.stdout is None:
        return
    for line in server.process.stdout:
        server.lines.append(line)
        if found := re.search(r"metrics at (http://\S+)", line):
            server.metrics_url = found[1]
        if found := re.search(r"(?:serving|echo).* on (unix:\S+?|\S+?:\d+)[,:]?(?:\s|$)", line):
            server.target = found[1]
            ready.set()
    ready.set()  # the process ended
