"""A server in a container sheds load before its memory is full: the kernel would end it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.client import Client
from atelier.wire import SERVICE
from atelier.wire.classifier_pb2 import ClassifyRequest
from loadtest.server_process import ServerProcess, program_process
from serving.container_memory import ContainerMemory, Pressure
from tests.serving.fake_backend import image
from tests.serving.running import wait_for

MB = 1_000_000
V1_ROOT = Path("/sys/fs/cgroup/memory")
# Holds so many bytes, as a neighbour in the container would, until its input ends.
HOLD = "import sys; held = b'x' * int(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def write(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("memory_", "memory.", 1)).write_text(f"{text}\n")


def pressure_in(root: Path, own: str) -> Pressure:
    (root / "own").write_text(own)
    return ContainerMemory(root, root / "own").pressure()


@pytest.mark.fault("S55")
@pytest.mark.parametrize(
    ("usage", "inactive", "expected"),
    [
        (79, 0, Pressure.NOTHING),
        (80, 0, Pressure.LARGE),
        (90, 0, Pressure.ALL),
        (95, 10, Pressure.LARGE),
        (100, 60, Pressure.NOTHING),
    ],
)
def test_what_is_refused_follows_the_working_set(tmp_path: Path, usage: int, inactive: int, expected: Pressure) -> None:
    v2 = tmp_path / "v2"
    write(v2, memory_max=100, memory_current=usage, memory_stat=f"anon 5\ninactive_file {inactive}")
    assert pressure_in(v2, "0::/\n") is expected
    v1 = tmp_path / "v1"
    stat = f"cache 5\ntotal_inactive_file {inactive}"
    write(v1 / "memory", memory_limit_in_bytes=100, memory_usage_in_bytes=usage, memory_stat=stat)
    assert pressure_in(v1, "5:cpu:/x\n4:memory:/seen/from/outside\n0::/\n") is expected


def test_level_is_left_only_a_little_below_and_a_limit_may_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, memory_max=100, memory_current=80, memory_stat="inactive_file 0")
    (tmp_path / "own").write_text("0::/\n")
    memory, found = ContainerMemory(tmp_path, tmp_path / "own"), []
    for usage in (80, 79, 80, 77, 79):
        write(tmp_path, memory_current=usage)
        found.append(memory.pressure())
    assert found == [Pressure.LARGE] * 3 + [Pressure.NOTHING] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "the container's memory is 80 % full: large requests are refused",
        "the container's memory is 77 % full: nothing is refused for it any more",
    ]
    write(tmp_path, memory_max=80)
    assert memory.pressure() is Pressure.ALL


def test_tightest_of_the_groups_around_the_process_counts_and_no_limit_is_none(tmp_path: Path) -> None:
    write(tmp_path, memory_max="max", memory_current=95)
    assert pressure_in(tmp_path, "0::/pod/server\n") is Pressure.NOTHING
    write(tmp_path / "pod" / "server", memory_max="max", memory_current=95)
    write(tmp_path / "pod", memory_max=100, memory_current=95)
    assert pressure_in(tmp_path, "0::/pod/server\n") is Pressure.ALL
    write(tmp_path / "v1" / "memory", memory_limit_in_bytes=9223372036854771712, memory_usage_in_bytes=95)
    assert pressure_in(tmp_path / "v1", "4:memory:/\n") is Pressure.NOTHING
    assert ContainerMemory(tmp_path, tmp_path / "missing").pressure() is Pressure.NOTHING


@contextmanager
def limited_group(limit_bytes: int) -> Iterator[Path]:
    """A group of processes with so much memory; skips where it cannot be made."""
    group = V1_ROOT / f"atelier-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"needs root, and control groups v1: {error}")
    try:
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def within(group: Path, *command: str) -> list[str]:
    """The command, to be run in the group."""
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]


@contextmanager
def held(group: Path, num_bytes: int) -> Iterator[None]:
    command = within(group, sys.executable, "-c", HOLD, str(num_bytes))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.stdin.close()


def outcome_of(server: ServerProcess, num_images: int) -> str:
    """OK, or the status and the first word of the refusal; nothing is tried again."""
    message = ClassifyRequest(images=image(1, num_images).tobytes()).SerializeToString()
    options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(server.target, options) as channel:
        try:
            call: Any = channel.unary_unary(f"/{SERVICE}/Classify")
            call(message, timeout=10)
        except grpc.RpcError as error:
            return f"{error.code().name} {str(error.details()).partition(':')[0]}"
    return "OK"


SHORT = "RESOURCE_EXHAUSTED MEMORY_SHORT"


@pytest.mark.fault("S55")
@pytest.mark.slow
def test_server_whose_memory_runs_short_refuses_large_requests_then_all_and_recovers(
    front_end: str, small_repository: Path
) -> None:
    limit = 600 * MB
    options = ["--repository", str(small_repository), "--port", "0", "--front-end", front_end]
    with limited_group(limit) as group:
        command = within(group, sys.executable, "-m", "serving", *options)
        with program_process(command) as server, Client(server.target) as client:

            def outcomes() -> tuple[str, str]:
                assert client.is_serving()
                return outcome_of(server, 1), outcome_of(server, 100)  # 784 and 78,400 bytes

            def used() -> int:
                return int((group / "memory.usage_in_bytes").read_text())

            assert outcomes() == ("OK", "OK")
            with held(group, int(0.85 * limit) - used()):
                wait_for(lambda: outcomes() == ("OK", SHORT), 10)
                with held(group, int(0.93 * limit) - used()):
                    wait_for(lambda: outcomes() == (SHORT, SHORT), 10)
                wait_for(lambda: outcomes() == ("OK", SHORT), 10)
            wait_for(lambda: outcomes() == ("OK", "OK"), 10)
            assert server.stop() == 0
            assert "memory is 9" in server.output
