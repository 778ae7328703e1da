"""A server under test, in a process of its own, on a port that the system chose."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class ServerProcess:
    """A running `python -m <module>`; its output is kept as it comes."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    target: str = ""  # what a client connects to
    metrics_port: int = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.target.rpartition(":")[2])

    @property
    def output(self) -> str:
        """Everything printed so far, stdout and stderr."""
        return "".join(self.lines)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Sends a signal and waits; the exit code. Raises TimeoutExpired where it does not end."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextmanager
def server_process(
    module: str, *arguments: str, ready_timeout_s: float = 60.0, own_group: bool = False
) -> Iterator[ServerProcess]:
    """Runs a server until the block ends; it is ready when it has printed `... on <address>`.

    In a process group of its own, Ctrl-C does not reach it: it goes on until the block ends.

    Raises RuntimeError, with what it printed, where it ends or is silent instead.
    """
    command = [sys.executable, "-m", module, *arguments]
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
        if found := re.search(r"metrics at http://\S+:(\d+)/", line):
            server.metrics_port = int(found[1])
        if found := re.search(r"(?:serving|echo).* on (unix:\S+?|\S+?:\d+)[,:]?(?:\s|$)", line):
            server.target = found[1]
            ready.set()
    ready.set()  # the process ended
