"""Looks at a running server from outside: its processes, its metrics, and what is sent to it by hand."""

import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from loadtest.processes import serving_process
from loadtest.server_process import ServerProcess


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Returns once it holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.02)


def serving_process_of(server: ServerProcess) -> psutil.Process:
    """The process that the supervisor has started; waits for it while it is being replaced."""
    return serving_process(server.process.pid, 30.0)


def kill_serving_process(server: ServerProcess) -> None:
    """Kills it, and returns when it has gone."""
    process = serving_process_of(server)
    process.kill()
    wait_for(lambda: has_ended(process))


def has_ended(process: psutil.Process | int) -> bool:
    """Whether it, or the one of this number, runs no more, be its status still to be read by its parent or not."""
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return known.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # its parent may read the status at any moment
        return True


def running_children_of(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    """Returns those that it has started and that have not ended."""
    return [child for child in process.children(recursive=recursive) if not has_ended(child)]


def minds_hangups(pid: int) -> bool:
    """Whether SIGHUP no longer ends a process: it is ignored or caught."""
    masks = re.findall(r"Sig(?:Ign|Cgt):\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return any(int(mask, 16) & 1 << signal.SIGHUP - 1 for mask in masks)


class Page:
    """One scrape, as Prometheus' own parser understands it."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of this name that have these labels."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        assert samples, f"{name} is not on the page"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def calls(self) -> dict[tuple[str, str], float]:
        """All that are not 0, by method and status."""
        samples = self.families["atelier_requests"].samples
        return {(sample.labels["method"], sample.labels["code"]): sample.value for sample in samples if sample.value}


def scrape(server: ServerProcess) -> Page:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:  # noqa: S310 # it is http
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        return Page(reply.read().decode())


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


@contextmanager
def sent_path(server: ServerProcess, path: bytes) -> Iterator[socket.socket]:
    """h2 frames by hand: client libraries do not send every path."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
    # HPACK (RFC 7541): :method POST, :scheme http, :authority x, :path, content-type, te
    headers = b"\x83\x86\x01\x01x\x04" + bytes([len(path)]) + path
    headers += b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(preface + frame(1, 4, 1, headers))
        yield connection
