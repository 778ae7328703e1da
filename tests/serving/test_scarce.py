"""A server that may have little: few files, a small stack, one core, a clock that jumps."""

import ast
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from atelier.client import Client
from loadtest.server_process import ServerProcess, program_process

ROOT = Path(__file__).parents[2]
IMAGES = np.full((2, 28, 28), 7, np.uint8)
SERVER = "tests.serving.breaking_server"


@contextmanager
def limited(front_end: str, limits: str) -> Iterator[ServerProcess]:
    """A server behind these commands of a shell."""
    server = shlex.join([sys.executable, "-m", SERVER, "--port", "0", "--front-end", front_end])
    with program_process(["bash", "-c", f'{limits}; exec {server} "$@"', "bash"]) as process:
        yield process


@pytest.mark.fault("O11")
def test_server_starts_with_256_files_a_small_stack_and_one_core(front_end: str) -> None:
    limits = f"ulimit -n 256; ulimit -s 256; taskset -cp {min(os.sched_getaffinity(0))} $$ >/dev/null"
    with limited(front_end, limits) as server, Client(server.target) as client:
        assert client.classify(IMAGES).labels.tolist() == [7, 7]
        assert server.stop() == 0
    if front_end == "native":
        assert "up to 156 connections at once, for it may open no more files (ulimit -n)" in server.output


@pytest.mark.fault("O11")
def test_server_that_may_open_too_few_files_says_how_many_it_needs(front_end: str) -> None:
    server = shlex.join([sys.executable, "-m", SERVER, "--port", "0", "--front-end", front_end])
    done = subprocess.run(["bash", "-c", f"ulimit -n 64; exec {server}"], capture_output=True, text=True, check=False)
    assert done.returncode == os.EX_CONFIG
    expected = "error: TOO_FEW_FILES: the server may open 64 files, connections among them, and needs 256 ("
    assert done.stderr.startswith(expected)


@pytest.mark.slow
@pytest.mark.fault("S54")
def test_server_without_files_serves_those_who_are_connected_and_others_once_there_are_some(front_end: str) -> None:
    with limited(front_end, "ulimit -n 256") as server, Client(server.target) as client, ExitStack() as crowd:
        client.classify(IMAGES)
        for _ in range(300):
            crowd.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        for _ in range(20):
            assert client.classify(IMAGES, timeout_s=5).labels.tolist() == [7, 7]
        crowd.close()
        with Client(server.target) as other:
            assert other.classify(IMAGES, timeout_s=10).labels.tolist() == [7, 7]
        assert server.stop() == 0
    assert "starting another" not in server.output


# --- Clocks ----------------------------------------------------------------------------------------------------------

# What may look at the wall's clock: it stamps lines of the log, and looks at certificates.
WALL_CLOCK = {"serving/access.py", "serving/logs.py", "serving/request_log.py"}
RUSTS_WALL_CLOCK = {"native/src/records.rs"}
WALLS = {"time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}


@pytest.mark.fault("O2")
def test_nothing_but_the_log_and_certificates_looks_at_the_walls_clock() -> None:
    python = [path for wing in ("serving", "atelier") for path in (ROOT / wing).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in python
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in WALLS
    }
    assert found == WALL_CLOCK
    rust = {path for path in (ROOT / "native" / "src").rglob("*.rs") if "SystemTime" in path.read_text()}
    assert {path.relative_to(ROOT).as_posix() for path in rust} == RUSTS_WALL_CLOCK


# Interposed: the wall's clock of this process and its children is so many seconds off, from one second after its start
# on. All that is monotonic is as it was.
JUMP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
typedef int (*Get)(clockid_t, struct timespec *);
static Get get;
static double began_s;
static double now_s(void) {
    struct timespec now;
    get(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}
__attribute__((constructor)) static void begin(void) {
    get = (Get)dlsym(RTLD_NEXT, "clock_gettime");
    began_s = now_s();
}
static long offset_s(void) { return now_s() - began_s < 1.0 ? 0 : atol(getenv("JUMP_S")); }
int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!get) begin();
    int result = get(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += offset_s();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    return now ? (*now = found.tv_sec) : found.tv_sec;
}
"""


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    source, library = (tmp_path_factory.getbasetemp() / f"jump.{kind}" for kind in ("c", "so"))
    source.write_text(JUMP)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.fault("O2")
@pytest.mark.parametrize("jump_s", [3600, -320_000_000])
def test_clock_that_jumps_loses_no_request(
    front_end: str, jump: Path, jump_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(jump))
    monkeypatch.setenv("JUMP_S", str(jump_s))
    server = [sys.executable, "-m", SERVER, "--port", "0", "--front-end", front_end, "--image-s", "0.001"]
    with program_process([*server, "--hang-timeout-s", "2"]) as running, Client(running.target) as client:
        until_s = time.monotonic() + 1.5
        while time.monotonic() < until_s:
            assert client.classify(IMAGES, timeout_s=5).labels.tolist() == [7, 7]
        assert client.is_serving()
        monkeypatch.undo()  # or the clock of what is started next jumps too
        assert running.stop() == 0
    assert "starting another" not in running.output
