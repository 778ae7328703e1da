"""A device that breaks for good, behind a real server: its process ends, another serves, clients get their answers."""

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from atelier.client import ClassifyError, Client
from loadtest.server_process import ServerProcess, server_process
from tests.serving.fake_backend import image
from tests.serving.running import scrape, wait_for


@contextmanager
def breaking_server(front_end: str, *arguments: str) -> Iterator[ServerProcess]:
    settings = ("--port", "0", "--front-end", front_end, *arguments)
    with server_process("tests.serving.breaking_server", *settings) as server:
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


def pauses_s(server: ServerProcess) -> list[float]:
    """What the warnings say, in order; 0 where another starts at once."""
    found = re.findall(r"starting another(?: in ([\d.]+) s)?$", server.output, re.MULTILINE)
    return [float(pause or 0) for pause in found]


@pytest.mark.slow
@pytest.mark.fault("S31")
def test_clients_get_right_answers_across_a_process_whose_device_breaks(front_end: str) -> None:
    with breaking_server(front_end, "--lives", "5") as server, Client(server.target) as client:
        with ThreadPoolExecutor(8) as pool:
            outcomes = Counter(pool.map(lambda number: outcome_of(client, 1 + number % 9), range(200)))
        assert set(outcomes) == {"right", "INTERNAL"}
        assert outcomes["INTERNAL"] <= 3 * 8  # the requests of three batches; all others were answered
        assert scrape(server).value("atelier_worker_restarts_total") == 1
        assert server.stop() == 0
    assert "BACKEND_BROKEN: 3 batches in a row failed" in server.output
    assert pauses_s(server) == [0]


@pytest.mark.fault("S26")
@pytest.mark.slow
def test_process_after_process_that_breaks_is_replaced_ever_more_slowly(front_end: str) -> None:
    with breaking_server(front_end, "--lives", "0,0,0,0") as server:
        for _ in range(4):
            break_device(server)
        wait_until_it_serves(server)
        assert pauses_s(server) == [0, 0.25, 0.5, 1]
        assert scrape(server).value("atelier_worker_restarts_total") == 4
        assert server.stop() == 0


@pytest.mark.slow
def test_replacement_that_has_lasted_is_itself_replaced_at_once(front_end: str) -> None:
    with breaking_server(front_end, "--lives", "0,1") as server:
        break_device(server)
        wait_until_it_serves(server)
        time.sleep(5.2)
        break_device(server)
        wait_until_it_serves(server)
        assert pauses_s(server) == [0, 0]
        assert server.stop() == 0


@pytest.mark.fault("S37")
@pytest.mark.slow
def test_stop_during_a_pause_ends_the_server_at_once(front_end: str) -> None:
    with breaking_server(front_end, "--lives", "0,0,0,0,0,0,0") as server:
        for _ in range(6):
            break_device(server)
        wait_for(lambda: pauses_s(server)[-1:] == [4])
        began_s = time.monotonic()
        server.stop(signal.SIGTERM, timeout_s=30)
        assert time.monotonic() - began_s < 3
    assert server.output.count(" starts") == 6


@pytest.mark.fault("S51")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "word"), [("raises", "BACKEND_BROKEN"), ("drifts", "BAD_PROBE"), ("hangs", "BACKEND_HUNG")]
)
def test_device_that_breaks_while_nobody_asks_is_found_and_replaced(front_end: str, fault: str, word: str) -> None:
    settings = ("--idle-fault", fault, "--probe-after-s", "0.3", "--hang-timeout-s", "1")
    with breaking_server(front_end, *settings) as server:
        wait_for(lambda: has_been_replaced(server))
        assert word in server.output
        with Client(server.target) as client:
            client.wait_until_ready(timeout_s=30)
        page = scrape(server)
        assert page.value("atelier_images_total") == page.value("atelier_batches_total", outcome="ok") == 0
        assert server.stop() == 0


@pytest.mark.fault("S27", "S52")
@pytest.mark.slow
def test_stacks_of_a_process_that_stands_still_are_in_the_log_before_it_is_killed(front_end: str) -> None:
    settings = ("--idle-fault", "stands", "--probe-after-s", "0.3", "--hang-timeout-s", "0.5")  # and 5 s of grace
    with breaking_server(front_end, *settings) as server:
        wait_for(lambda: "starting another" in server.output)
        with Client(server.target) as client:
            client.wait_until_ready(timeout_s=30)
        assert server.stop() == 0
    stacks = re.search(r"^(Current thread|Thread) 0x[^$]*in stand_still$", server.output, re.MULTILINE)
    assert stacks is not None, server.output
    assert stacks.start() < server.output.index(": it is killed")


def has_been_replaced(server: ServerProcess) -> bool:
    """Whether another process serves, and says so; one that is about to end may leave its page unfinished."""
    try:
        return "starting another" in server.output and scrape(server).value("atelier_worker_restarts_total") == 1
    except OSError:
        return False
