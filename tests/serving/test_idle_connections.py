"""Thousands of TLS connections that do nothing cost little memory, and nobody else a call."""

import asyncio
import ssl
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from atelier.client import Client
from loadtest.server_process import server_process
from tests.conftest import import_s
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from tests.serving.running import frame, serving_process_of, wait_for
from tests.serving.test_access import make_certificate

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
AT_ONCE = 50  # handshakes
NUM_CALLS = 200
MAX_KB = 40  # of the serving process, each
IMAGE = np.zeros((1, 1, 28, 28), np.uint8)


async def open_idle(port: int, authority: Path, number: int) -> list[asyncio.StreamWriter]:
    """Connects so many clients, which say that they speak HTTP/2, and then nothing."""
    context, turns = ssl.create_default_context(cafile=str(authority)), asyncio.Semaphore(AT_ONCE)
    context.set_alpn_protocols(["h2"])

    async def connect() -> asyncio.StreamWriter:
        async with turns:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            writer.write(PREFACE)
            await reader.readexactly(9)  # the server's settings
            return writer

    return await asyncio.gather(*(connect() for _ in range(number)))


def p99_s(client: Client) -> float:
    """Of calls one after the other."""
    times_s = []
    for _ in range(NUM_CALLS):
        began_s = time.perf_counter()
        client.classify(IMAGE, timeout_s=10)
        times_s.append(time.perf_counter() - began_s)
    return sorted(times_s)[int(0.99 * NUM_CALLS)]


@needs_native
@pytest.mark.fault("S16")
@pytest.mark.timing
@pytest.mark.goal("G11", of="idle TLS connections", ci=300, release=10_000)
def test_idle_connections_cost_little_and_disturb_nobody(
    small_repository: Path, tmp_path: Path, size: int, figure: Figure
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    files = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    options = ["--repository", str(small_repository), "--port", "0", "--front-end", "native", *files]
    with server_process("serving", *options) as server, Client(server.target, tls=certificate) as client:
        process = serving_process_of(server)
        quiet_s, quiet = p99_s(client), held_by(process)
        loop = asyncio.new_event_loop()
        idle = loop.run_until_complete(open_idle(server.port, certificate, size))
        crowded_s, crowded = p99_s(client), held_by(process)
        assert crowded[1] >= quiet[1] + size  # none was turned away
        for writer in idle:
            writer.transport.abort()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
        wait_for(lambda: process.num_fds() <= quiet[1], timeout_s=5)
    each_kb = (crowded[0] - quiet[0]) / size / 1e3
    figure(f"{each_kb:.1f} KB each; p99 {quiet_s * 1e3:.1f} ms before, {crowded_s * 1e3:.1f} ms beside them, 0 failed")
    assert each_kb <= MAX_KB
    assert crowded_s <= max(2 * quiet_s, 0.005, import_s() / 10)


def held_by(process: psutil.Process) -> tuple[int, int]:
    """Bytes and files."""
    return process.memory_info().rss, process.num_fds()
