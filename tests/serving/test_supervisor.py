"""The supervisor and its serving process, over a real server: who dies is replaced, and nobody is left behind."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from atelier.answers import ClassifyError
from atelier.client import Client
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import ServerProcess, server_process
from tests.conftest import command
from tests.serving.conftest import needs_native
from tests.serving.running import (
    kill_serving_process,
    minds_hangups,
    running_children_of,
    scrape,
    sent_path,
    serving_process_of,
    wait_for,
)

IMAGES = np.zeros((2, 28, 28), np.uint8)


@contextmanager
def serving(repository: Path, front_end: str, *arguments: str) -> Iterator[ServerProcess]:
    settings = ("--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", "--repository", str(repository), *settings, *arguments) as server:
        yield server


@pytest.fixture
def server(small_repository: Path, front_end: str) -> Iterator[ServerProcess]:
    with serving(small_repository, front_end) as running:
        yield running


def test_all_answers_are_counted(server: ServerProcess) -> None:
    for _ in range(10):
        with Client(server.target) as client:
            for _ in range(5):
                client.classify(IMAGES)
    assert server.stop() == 0
    assert "answered 50 requests, 100 images" in server.output


@pytest.mark.slow
@pytest.mark.fault("S29")
def test_killed_process_is_replaced_at_once_and_clients_do_not_notice(server: ServerProcess) -> None:
    with Client(server.target) as client:
        for _ in range(4):
            client.classify(IMAGES, timeout_s=10)
            kill_serving_process(server)
            client.classify(IMAGES, timeout_s=10)
    assert server.output.count("ended with exit code 137: starting another\n") == 4
    assert server.stop() == 0


@pytest.mark.slow
@needs_native
def test_call_on_a_new_connection_waits_for_the_process_that_replaces_another() -> None:
    settings = ("--port", "0", "--metrics-port", "0", "--front-end", "native", "--image-s", "0.003")
    with server_process("tests.serving.breaking_server", *settings) as server:  # it warms up for 0.4 s
        kill_serving_process(server)
        with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
            classify: Any = channel.unary_unary("/atelier.v1.Classifier/Classify")
            assert classify(pb.ClassifyRequest(images=bytes(784)).SerializeToString(), timeout=20)


@pytest.mark.slow
def test_path_that_is_not_utf8_ends_no_server(server: ServerProcess) -> None:
    with sent_path(server, b"/\xff"):
        time.sleep(0.5)
        with Client(server.target) as client:
            client.wait_until_ready(timeout_s=20)
            client.classify(IMAGES, timeout_s=10)
    assert server.stop() == 0


@pytest.mark.fault("S27", "S52")
@pytest.mark.slow
def test_process_that_stands_still_is_killed_and_replaced(small_repository: Path, front_end: str) -> None:
    with serving(small_repository, front_end, "--hang-timeout-s", "0.5") as server:  # and five seconds of grace
        before = serving_process_of(server)
        before.send_signal(signal.SIGSTOP)
        wait_for(lambda: "starting another" in server.output)
        assert serving_process_of(server) != before
        with Client(server.target) as client:
            client.wait_until_ready(timeout_s=20)
            client.classify(IMAGES)
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.fault("S39")
def test_process_does_not_outlive_a_killed_supervisor(server: ServerProcess) -> None:
    process = serving_process_of(server)
    server.process.kill()
    process.wait(30)


@pytest.mark.fault("S37")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_everything_at_once(front_end: str, second: signal.Signals) -> None:
    settings = ("--port", "0", "--front-end", front_end, "--lame-duck-s", "60")
    with server_process("tests.serving.breaking_server", *settings) as server:
        process = serving_process_of(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.output)
        assert server.stop(second) == 128 + second
        assert psutil.wait_procs([process], timeout=30)[1] == []


@pytest.mark.slow
def test_every_replacement_serves_the_bytes_that_were_verified_at_the_start(
    small_repository: Path, front_end: str, tmp_path: Path
) -> None:
    """Whatever becomes of the repository: a newer version that is damaged, and its own files gone."""
    version_dir = shutil.copytree(small_repository / "lenet5" / "1", tmp_path / "lenet5" / "1")
    with serving(tmp_path, front_end) as server, Client(server.target) as client:
        before = client.model(), client.classify(IMAGES, top_k=10)
        shutil.rmtree(version_dir)
        (tmp_path / "lenet5" / "2").mkdir()
        (tmp_path / "lenet5" / "2" / "manifest.json").write_text("no manifest")
        kill_serving_process(server)
        after = client.model(), client.classify(IMAGES, top_k=10, timeout_s=10)
        assert after[0] == before[0]
        assert after[1].classifications == before[1].classifications
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.fault("O4")
def test_server_waits_for_a_device_that_is_away_for_some_starts(front_end: str) -> None:
    settings = ("--port", "0", "--front-end", front_end, "--failing-starts", "1,2,3,4")
    with server_process("tests.serving.breaking_server", *settings) as server, Client(server.target) as client:
        client.classify(IMAGES + 7)
        kill_serving_process(server)
        assert client.classify(IMAGES + 7, timeout_s=30).labels.tolist() == [7, 7]
        assert server.output.count("error: NO_GPU: the device has gone (plug it in)") == 4
        assert server.stop() == 0


def test_server_whose_first_start_fails_ends_with_its_code(front_end: str) -> None:
    done = command("tests.serving.breaking_server", "--port", 0, "--front-end", front_end, "--failing-starts", "0")
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr == "error: NO_GPU: the device has gone (plug it in)\n"


@pytest.mark.fault("O5")
def test_server_whose_gpu_is_full_ends_with_the_cure(front_end: str) -> None:
    done = command("tests.serving.breaking_server", "--port", 0, "--front-end", front_end, "--no-memory")
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.startswith("error: GPU_MEMORY: the GPU has no memory left for this (")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.fault("S38")
def test_drain_that_takes_too_long_ends_with_exit_code_70_and_tells_who_waits(front_end: str) -> None:
    settings = ("--port", "0", "--front-end", front_end, "--slow-s", "8", "--drain-timeout-s", "0.3")
    with (
        server_process("tests.serving.breaking_server", *settings) as server,
        ThreadPoolExecutor(1) as pool,
        Client(server.target) as client,
    ):
        accepted = pool.submit(client.classify, IMAGES + 7, timeout_s=3)
        time.sleep(0.5)
        assert server.stop() == os.EX_SOFTWARE
        with pytest.raises(ClassifyError) as caught:
            accepted.result()
        assert caught.value.status == "UNAVAILABLE"
    assert "error: DRAIN_TIMEOUT: 1 requests were unanswered after 0.3 s" in server.output


@pytest.mark.slow
@pytest.mark.fault("S37")
@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_stop_in_a_start_ends_with_exit_code_0(small_repository: Path, front_end: str, delay_s: float) -> None:
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu", "--front-end", front_end)
    process = subprocess.Popen([sys.executable, "-m", "serving", *settings], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: minds_hangups(process.pid))  # before that Python itself is still starting
        time.sleep(delay_s)
        process.terminate()
        error = process.communicate(timeout=60)[1]
        assert (process.returncode, error) == (0, "")
    finally:
        process.kill()


# NumPy does so with what its imports of datetime raise.
SWALLOWING = """
import os, runpy, signal, sys, time

class Swallowing:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            except BaseException:
                pass

sys.meta_path.insert(0, Swallowing())
sys.argv = ["serving", "--repository", "/nowhere"]
runpy.run_module("serving", run_name="__main__")
"""


@pytest.mark.fault("S37")
def test_stop_that_a_library_would_swallow_ends_the_start_too() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWING], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fault("O14")
@pytest.mark.timing
def test_server_that_was_stopped_for_a_while_goes_on_and_runs_nothing_that_has_expired(front_end: str) -> None:
    settings = ("--port", "0", "--front-end", front_end, "--hang-timeout-s", "0.5")
    with server_process("tests.serving.breaking_server", *settings) as server, Client(server.target) as client:
        client.classify(IMAGES + 7)
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        with pytest.raises(ClassifyError, match="DEADLINE_EXCEEDED"):
            client.classify(IMAGES + 7, timeout_s=1.5)
        for process in processes:
            process.resume()
        began_s = time.monotonic()
        assert client.classify(IMAGES + 7, timeout_s=10).labels.tolist() == [7, 7]
        assert time.monotonic() - began_s < 2
        assert scrape(server).value("atelier_images_total") == 4
        assert server.stop() == 0
    assert "starting another" not in server.output


@pytest.mark.fault("O12")
@pytest.mark.slow
def test_server_that_is_process_1_drains_and_reaps_what_it_started(front_end: str, tmp_path: Path) -> None:
    """As in a container without an init of its own."""
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a PID namespace")
    ready_file = tmp_path / "ready.json"
    settings = ["--port", "0", "--front-end", front_end, "--ready-file", str(ready_file)]
    process = subprocess.Popen([*alone, sys.executable, "-m", "tests.serving.breaking_server", *settings])
    try:
        wait_for(ready_file.exists)
        (first,) = psutil.Process(process.pid).children()
        with Client(json.loads(ready_file.read_text())["targets"][0]) as client:
            for _ in range(3):
                assert client.classify(IMAGES + 7, timeout_s=20).labels.tolist() == [7, 7]
                running_children_of(first)[0].kill()
            assert client.classify(IMAGES + 7, timeout_s=20).labels.tolist() == [7, 7]
        wait_for(lambda: first.children() == running_children_of(first), 10)  # none is still to be buried
        first.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_port_is_closed_while_accepted_requests_are_answered(front_end: str) -> None:
    """Else new connections would wait in the backlog, and be reset at the end."""
    settings = ("--port", "0", "--front-end", front_end, "--slow-s", "3")
    with server_process("tests.serving.breaking_server", *settings) as server, ThreadPoolExecutor(1) as pool:
        with Client(server.target) as client:
            accepted = pool.submit(client.classify, IMAGES + 7, timeout_s=20)
            time.sleep(1.0)
            server.process.terminate()
            time.sleep(1.0)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5)
            assert accepted.result().labels.tolist() == [7, 7]
        assert server.process.wait(30) == 0


@pytest.mark.fault("S36")
def test_call_in_a_drain_is_told_to_retry_elsewhere(front_end: str) -> None:
    settings = ("--port", "0", "--front-end", front_end, "--lame-duck-s", "5")
    with (
        server_process("tests.serving.breaking_server", *settings) as server,
        grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        classify: Any = channel.unary_unary("/atelier.v1.Classifier/Classify")
        classify(bytes_of_one_image())
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.output)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in range(100):  # the word to drain may still be on its way to the process
                classify(bytes_of_one_image())
                time.sleep(0.02)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "700") in [tuple(pair) for pair in error.trailing_metadata()]


@pytest.mark.slow
@pytest.mark.fault("S56")
def test_server_goes_on_if_nobody_reads_its_log(front_end: str) -> None:
    """A pipe that is full: the supervisor must neither wait for its reader nor stop replacing what dies.

    It counts the lines that are lost meanwhile.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "tests.serving.breaking_server", "--port", "0", "--front-end", front_end]
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    try:
        server = ServerProcess(process)  # type: ignore[arg-type]  # whose output nobody reads
        target = target_printed_to(reader)
        fill(writer)
        with Client(target) as client:
            client.classify(IMAGES + 7)
            for _ in range(3):
                kill_serving_process(server)
                assert client.classify(IMAGES + 7, timeout_s=20).labels.tolist() == [7, 7]
            while select.select([reader], [], [], 0)[0]:
                os.read(reader, 65536)
            kill_serving_process(server)
            assert client.classify(IMAGES + 7, timeout_s=20).labels.tolist() == [7, 7]
        process.terminate()
        assert process.wait(30) == 0
        lines = os.read(reader, 65536).decode().splitlines()
        # Each of the three had a line of its own that was lost, and so had the process that took its place.
        assert lines[0] == "atelier: warning: 3 lines were lost here: nobody read the log"
        assert lines[1].startswith("atelier: warning: the serving process ended with exit code 137: starting another")
    finally:
        process.kill()
        process.wait(30)
        os.close(reader)
        os.close(writer)


def target_printed_to(reader: int) -> str:
    printed = ""
    while not (found := re.search(r"serving .* on (\S+:\d+):", printed)):
        printed += os.read(reader, 4096).decode()
    return found[1]


def fill(writer: int) -> None:
    """Until a pipe takes no more."""
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)


def bytes_of_one_image() -> bytes:
    return pb.ClassifyRequest(images=bytes(784)).SerializeToString()
