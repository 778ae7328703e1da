"""A device that breaks for good, behind a real server: its process ends, another serves, clients get their answers."""

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from atelier.client import ClassifyError, Client
from loadtest.server_process import ServerProcess, server_process
from tests.serving.fake_backend import image
from tests.serving.test_metrics import scrape
from tests.serving.test_supervisor import sent_path_that_is_not_utf8, wait_for, workers_of

SETTINGS = ("--port", "0", "--lame-duck-s", "0.1", "--workers", "1")


@contextmanager
def breaking_server(*arguments: str) -> Iterator[ServerProcess]:
    with server_process("tests.serving.breaking_server", *SETTINGS, *arguments) as server:
        yield server


def outcome_of(client: Client, label: int) -> str:
    """Whether the answer was right or wrong, or the status that the call failed with."""
    try:
        return "right" if client.classify(image(label)).labels.tolist() == [label] else "wrong"
    except ClassifyError as error:
        return error.status


def break_device(server: ServerProcess) -> None:
    """Has three batches fail, of a process that may have to be waited for."""
    outcomes: Counter[str] = Counter()
    with Client(server.target) as client:
        while outcomes["INTERNAL"] < 3:
            outcomes[outcome_of(client, 1)] += 1
            assert outcomes["UNAVAILABLE"] < 10, server.output


def wait_until_it_serves(server: ServerProcess) -> None:
    with Client(server.target) as client:
        wait_for(lambda: outcome_of(client, 7) == "right")


def kill_worker(server: ServerProcess) -> None:
    wait_until_it_serves(server)
    (worker,) = workers_of(server)
    worker.kill()
    worker.wait(30)


def pauses_s(server: ServerProcess) -> list[float]:
    """What the warnings say, in order; 0 where another starts at once."""
    found = re.findall(r"(?:another takes over|starting another)(?: in (\d+) s)?$", server.output, re.MULTILINE)
    return [float(pause or 0) for pause in found]


def test_clients_get_right_answers_across_a_process_whose_device_breaks() -> None:
    with breaking_server("--lives", "5") as server, Client(server.target) as client, ThreadPoolExecutor(8) as pool:
        outcomes = Counter(pool.map(lambda number: outcome_of(client, number % 10), range(200)))
        page = scrape(server)
        assert set(outcomes) == {"right", "INTERNAL"}
        assert outcomes["INTERNAL"] <= 3 * 8  # the requests of three batches; all others were answered
        assert page.calls()["Classify", "INTERNAL"] == outcomes["INTERNAL"]
        assert page.value("atelier_batches_total", outcome="failed") == 3
        assert page.value("atelier_worker_restarts_total") == 1
        assert server.stop() == 0
    assert "error: BACKEND_BROKEN: 3 batches in a row failed (another worker takes over; " in server.output
    assert pauses_s(server) == [0]


def test_process_after_process_that_breaks_is_replaced_ever_more_slowly() -> None:
    with breaking_server("--lives", "0,0,0") as server:
        for _ in range(3):
            break_device(server)
        wait_until_it_serves(server)
        assert pauses_s(server) == [0, 1, 2]
        assert scrape(server).value("atelier_worker_restarts_total") == 3
        assert server.stop() == 0


def test_replacement_that_has_lasted_is_itself_replaced_at_once() -> None:
    with breaking_server("--lives", "0,1", "--stable-s", "1") as server:
        break_device(server)
        wait_until_it_serves(server)
        time.sleep(1.5)
        break_device(server)
        wait_until_it_serves(server)
        assert pauses_s(server) == [0, 0]
        assert server.stop() == 0


def test_worker_that_dies_again_soon_is_waited_for_too() -> None:
    with breaking_server() as server:
        kill_worker(server)
        kill_worker(server)
        wait_until_it_serves(server)
        assert pauses_s(server) == [0, 1]
        assert server.stop() == 0


def test_stop_during_a_pause_ends_the_server_at_once() -> None:
    with breaking_server("--pause-s", "60") as server:
        kill_worker(server)
        wait_for(lambda: pauses_s(server) == [60])
        assert server.stop(signal.SIGTERM, timeout_s=30) == 0
    assert server.output.count(" starts") == 1


def test_what_strangers_can_cause_is_never_waited_for() -> None:
    """With one worker, a pause would be an outage."""
    with breaking_server() as server:
        for _ in range(4):
            wait_until_it_serves(server)
            before = workers_of(server)
            with sent_path_that_is_not_utf8(server):
                psutil.wait_procs(before, timeout=30)
        wait_until_it_serves(server)
        assert server.output.count("ACCEPT_FAILED") == 4
        assert server.stop() == 0
    assert pauses_s(server) == [0, 0, 0, 0]
