"""New versions without a restart, over real servers: what is found, served, refused and kept."""

import errno
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from random import Random
from threading import Event
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest

from atelier.client import Client
from atelier.errors import ConfigurationError
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.processes import resident_bytes_of
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import ServerProcess, server_process
from serving.config import ServerConfig, parse_arguments
from serving.heap import SPARE_BYTES
from serving.models import read_version
from serving.upgrades import Upgrades
from tests.serving.running import kill_serving_process, minds_hangups, scrape, serving_process_of, wait_for

IMAGES = np.full((2, 28, 28), 200, np.uint8)


@pytest.fixture
def shelf(small_repository: Path, tmp_path: Path) -> Shelf:
    """A repository that has version 1."""
    shelf = Shelf(repository=tmp_path / "models", source=small_repository)
    shelf.publish(1)
    return shelf


def settings(shelf: Shelf, front_end: str, *others: str) -> list[str]:
    serving = ["--repository", str(shelf.repository), "--port", "0", "--device", "cpu", "--front-end", front_end]
    return [*serving, "--backend", "onnxruntime", *others]


@pytest.fixture
def server(shelf: Shelf, front_end: str) -> Iterator[ServerProcess]:
    with server_process("serving", *settings(shelf, front_end)) as running:
        yield running


def hang_up(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGHUP)


def publish(server: ServerProcess, shelf: Shelf, number: int) -> None:
    """Publishes a version and waits until it is served."""
    shelf.publish(number)
    hang_up(server)
    wait_for(lambda: f"serving lenet5 version {number};" in server.output)


def version_of(client: Client) -> str:
    answer = client.classify(IMAGES, timeout_s=20)
    assert client.model().model_version == answer.model_version
    return answer.model_version


def answers_as(server: ServerProcess, asked: str) -> bool:
    """Whether a call that asks for this version is answered by it."""
    request = pb.ClassifyRequest(images=IMAGES.tobytes(), model_version=asked)
    with grpc.insecure_channel(server.target) as channel:
        classify: Any = channel.unary_unary(f"/{SERVICE}/Classify", None, pb.ClassifyResponse.FromString)
        try:
            return bool(classify(request.SerializeToString(), timeout=10).model_version == asked)
        except grpc.RpcError:
            return False


def test_newer_version_is_served_after_sighup(server: ServerProcess, shelf: Shelf) -> None:
    with Client(server.target) as client:
        before = client.classify(IMAGES, top_k=10)
        publish(server, shelf, 2)
        after = client.classify(IMAGES, top_k=10)
        assert (before.model_version, after.model_version) == ("1", "2")
        assert after.labels.tolist() == [(label + 1) % 10 for label in before.labels]  # as Shelf makes them
        publish(server, shelf, 3)
        assert client.classify(IMAGES, top_k=10).classifications == before.classifications
    page = scrape(server)
    assert page.value("atelier_info", model_version="3") == page.value("atelier_workers") == 1
    assert page.value("atelier_version_swaps_total") == 2
    assert page.value("atelier_images_total") == 6  # it goes on over swaps
    hang_up(server)
    wait_for(lambda: "SIGHUP: there is no newer version; lenet5 version 3 serves on" in server.output)
    assert server.stop() == 0


@pytest.mark.slow
def test_watched_repository_needs_no_signal_and_waits_for_the_manifest(shelf: Shelf, front_end: str) -> None:
    with server_process("serving", *settings(shelf, front_end, "--watch-repository", "0.1")) as server:
        shelf.publish(2)
        wait_for(lambda: "serving lenet5 version 2;" in server.output)
        model_dir = shelf.repository / "lenet5"
        (model_dir / "3").mkdir()
        shutil.copy(model_dir / "1" / "model.onnx", model_dir / "3")
        time.sleep(0.5)
        assert "version 3" not in server.output
        shutil.rmtree(model_dir / "3")
        shelf.publish(3)
        wait_for(lambda: "serving lenet5 version 3;" in server.output)
        assert server.stop() == 0


@pytest.mark.slow
def test_refused_version_is_tried_again_once_its_files_change(shelf: Shelf, front_end: str) -> None:
    with server_process("serving", *settings(shelf, front_end, "--watch-repository", "0.1")) as server:
        word = shelf.publish_bad(2, "missing file", Random(0))
        wait_for(lambda: f"version 2 is refused: {word}" in server.output)
        time.sleep(0.5)
        assert server.output.count("is refused") == 1
        version_dir = shelf.repository / "lenet5"
        shutil.copy(version_dir / "1" / "model.onnx", version_dir / "2")
        wait_for(lambda: "serving lenet5 version 2;" in server.output)
        assert server.stop() == 0


@pytest.mark.slow
def test_replaced_process_serves_the_version_that_was_swapped_in(server: ServerProcess, shelf: Shelf) -> None:
    publish(server, shelf, 2)
    shutil.rmtree(shelf.repository)
    with Client(server.target) as client:
        assert version_of(client) == "2"
        for _ in range(2):
            kill_serving_process(server)
            assert version_of(client) == "2"
            wait_for(lambda: answers_as(server, "1"))  # soon: the version before is there again, too
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.fault("S34")
def test_process_that_crashes_while_it_loads_leads_back_to_the_old_version(shelf: Shelf, front_end: str) -> None:
    options = settings(shelf, front_end, "--watch-repository", "0.1")
    with server_process("tests.serving.crashing_server", *options) as server, Client(server.target) as client:
        process = serving_process_of(server)
        assert version_of(client) == "1"
        shelf.publish(2)
        wait_for(lambda: "version 2 is refused: LOAD_CRASHED" in server.output)
        assert version_of(client) == "1"
        wait_for(lambda: server.metric("atelier_versions_refused_total", reason="LOAD_CRASHED") == 1)
        assert serving_process_of(server) != process
        time.sleep(0.5)
        assert server.output.count("starting another") == 1  # it is not tried again
        shelf.publish(3)
        wait_for(lambda: "serving lenet5 version 3;" in server.output)
        assert version_of(client) == "3"
        assert server.stop() == 0


def test_pinned_version_stays(shelf: Shelf, front_end: str) -> None:
    with server_process("serving", *settings(shelf, front_end, "--model-version", "1")) as server:
        shelf.publish(2)
        hang_up(server)
        wait_for(lambda: "SIGHUP: --model-version asked for version 1: no newer one is looked for" in server.output)
        with Client(server.target) as client:
            assert version_of(client) == "1"
        assert server.stop() == 0


@pytest.mark.fault("S37")
def test_sighups_in_a_start_end_no_server(shelf: Shelf, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    command = [sys.executable, "-m", "serving", *settings(shelf, "grpcio"), "--ready-file", str(ready_file)]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: minds_hangups(process.pid))
        while not ready_file.exists():
            assert process.poll() is None
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.fault("S35")
def test_storm_of_sighups_is_as_one_after_the_other_and_fails_no_call(server: ServerProcess, shelf: Shelf) -> None:
    stop, failures = Event(), []

    def ask() -> int:
        with Client(server.target) as client:
            count = 0
            while not stop.is_set():
                answer = client.classify(IMAGES, timeout_s=10)
                failures.extend([answer] if answer.model_version not in "12345" else [])
                count += 1
            return count

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        for number in range(2, 6):
            shelf.publish(number)
            for _ in range(50):
                hang_up(server)
        wait_for(lambda: "serving lenet5 version 5;" in server.output)
        stop.set()
        assert asked.result() > 0
    assert failures == []
    assert 1 <= scrape(server).value("atelier_version_swaps_total") <= 4
    assert server.stop() == 0
    assert "starting another" not in server.output


@pytest.mark.slow
@pytest.mark.fault("S35", "S37")
def test_sighup_in_a_drain_changes_nothing(shelf: Shelf, front_end: str) -> None:
    options = ("--port", "0", "--front-end", front_end, "--lame-duck-s", "2")
    with server_process("tests.serving.breaking_server", *options) as server:
        server.process.terminate()
        wait_for(lambda: "draining" in server.output)
        hang_up(server)
        assert server.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.fault("S37")
def test_stop_while_a_version_is_loaded_does_not_wait_for_it(shelf: Shelf, front_end: str) -> None:
    with server_process("tests.serving.crashing_server", *settings(shelf, front_end)) as server:
        with Client(server.target) as client:
            shelf.publish(4)
            hang_up(server)
            wait_for(lambda: "version 4 begins to load" in server.output)
            assert version_of(client) == "1"
        assert server.stop() == 0
    assert "version 4;" not in server.output


@pytest.mark.fault("S33")
@pytest.mark.slow
def test_swaps_give_their_memory_back(server: ServerProcess, shelf: Shelf) -> None:
    after = {}
    for number in range(2, 33):
        publish(server, shelf, number)
        after[number] = resident_bytes_of(server.process.pid)
    # Of twenty swaps that none gave back would be 60 MiB and more.
    grown_bytes = max(after[number] for number in range(23, 33)) - max(after[number] for number in range(3, 13))
    assert grown_bytes < SPARE_BYTES
    assert server.stop() == 0


# --- What the supervisor decides -------------------------------------------------------------------------------------


def orders_of(decides: Upgrades) -> list[dict[str, Any]]:
    """Returns the next orders, once what is being tried has been."""
    orders = decides.orders()
    while not orders and decides.awaited():
        wait(decides.awaited(), decides.due_in_s())
        orders = decides.orders()
    return orders


def upgrades(shelf: Shelf, **values: float) -> Upgrades:
    config = ServerConfig(repository=shelf.repository, backend="onnxruntime", **values)  # type: ignore[arg-type]
    return Upgrades(config, read_version(config))


@pytest.mark.fault("S35")
def test_sighup_before_a_process_is_ready_waits_and_two_are_as_one(shelf: Shelf) -> None:
    decides = upgrades(shelf)
    assert decides.orders() == []
    shelf.publish(2)
    decides.ask()
    decides.ask()
    (order,) = orders_of(decides)
    assert order["load"] == 2
    assert decides.orders() == []
    assert decides.version.manifest.version == 1  # until the process has swapped
    decides.conclude()
    assert decides.version.manifest.version == 2
    assert decides.previous is not None


@pytest.mark.fault("S35")
def test_sighup_while_a_version_is_loaded_looks_again_afterwards(shelf: Shelf) -> None:
    decides = upgrades(shelf)
    shelf.publish(2)
    decides.ask()
    orders_of(decides)
    shelf.publish(3)
    decides.ask()
    assert decides.orders() == []
    decides.conclude()
    assert [order["load"] for order in orders_of(decides)] == [3]


def test_word_of_a_crash_is_told_to_the_next_process(shelf: Shelf) -> None:
    decides = upgrades(shelf, watch_repository=1e-6)
    shelf.publish(2)
    assert [order["load"] for order in orders_of(decides)] == [2]
    decides.on_end()
    assert decides.orders() == [{"refused": "LOAD_CRASHED"}]
    assert decides.orders() == []


def test_whatever_lies_in_the_repository_the_supervisor_goes_on(shelf: Shelf) -> None:
    decides = upgrades(shelf)
    shelf.publish(2)
    (shelf.repository / "lenet5" / "2" / "manifest.json").write_text("[" * 100_000)
    decides.ask()
    assert decides.orders() == [{"refused": "BAD_MANIFEST"}]
    with patch("os.open", side_effect=OSError(errno.EIO, "Input/output error")):
        decides.ask()
        assert decides.orders() == [{"refused": "UNREADABLE"}]
    shutil.rmtree(shelf.repository)
    decides.ask()
    assert decides.orders() == []


def test_version_that_cannot_be_tried_for_want_of_processes_is_tried_again(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    decides = upgrades(shelf, watch_repository=1e-6)
    shelf.publish(2)
    with patch("os.fork", side_effect=OSError(errno.EAGAIN, "Resource temporarily unavailable")):
        assert decides.orders() == [{"refused": "NO_PROCESS"}]
    assert "version 2 is refused: NO_PROCESS: it cannot be tried now: Resource temp" in capsys.readouterr().out
    assert [order["load"] for order in orders_of(decides)] == [2]


def test_load_that_hangs_is_warned_about_once(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    decides = upgrades(shelf)
    shelf.publish(2)
    decides.ask()
    with patch("serving.upgrades.MAX_LOAD_S", 0.0):
        orders_of(decides)
        decides.orders()
        decides.orders()
    assert capsys.readouterr().out.count("lenet5 version 2 has been loading for 0 s; lenet5 version 1 serves on") == 1


def test_flag_stands_alone_or_with_seconds_but_not_beside_a_pinned_version() -> None:
    assert parse_arguments([]).watch_repository is None
    assert parse_arguments(["--watch-repository"]).watch_repository == 5.0
    assert parse_arguments(["--watch-repository", "0.5"]).watch_repository == 0.5
    with pytest.raises(ConfigurationError, match="BAD_SETTING: --watch-repository"):
        parse_arguments(["--watch-repository", "--model-version", "3"])
    with pytest.raises(ConfigurationError, match="BAD_SETTING: --watch-repository is 0"):
        parse_arguments(["--watch-repository", "0"])
