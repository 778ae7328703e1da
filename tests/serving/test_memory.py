"""Memory, files and threads of a server stay as they are, however many requests it answers."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from loadtest.bench.h2load import CLASSIFY, SINGLE, H2Load, Target, classify_body
from loadtest.server_process import server_process
from tests.reliability.plugin import Figure
from tests.serving.running import serving_process_of

MAX_GROWTH_MB = 8

# grpcio's pools and the allocator's arenas fill up over about 10,000 requests (7 MB); a leak grows after them too.
WARM_UP_REQUESTS = 15_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load: apt-get install nghttp2-client")
@pytest.mark.goal("G13", of="requests of one image", ci=25_000, release=1_000_000)
def test_requests_leave_no_memory_file_or_thread_behind(
    front_end: str, small_repository: Path, size: int, figure: Figure
) -> None:
    options = ["--repository", str(small_repository), "--port", "0", "--front-end", front_end]
    with server_process("serving", *options) as server:
        process = serving_process_of(server)
        url = f"http://{server.target}{CLASSIFY}"
        target = Target(name="served", pid=process.pid, url=url, body_for=classify_body)
        bench = H2Load(1.0)

        def held_after(num_requests: int) -> tuple[float, int, int]:
            bench.offer(target, dataclasses.replace(SINGLE, num_requests=num_requests))
            return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()

        before_mb, *before = held_after(WARM_UP_REQUESTS)
        after_mb, *after = held_after(size)
    figure(f"{after_mb - before_mb:+.1f} MB after {WARM_UP_REQUESTS:,}; files and threads {before} then {after}")
    assert after_mb - before_mb <= MAX_GROWTH_MB
    assert after == before
