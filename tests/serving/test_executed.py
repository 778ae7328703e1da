"""What the device executes: every request once, and none for which nobody waits any more."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.attack.http2 import Connection, literal, message, opening, request_headers, reset
from loadtest.front_ends import ENDS, KILL, SIGTERM, End
from loadtest.load.protocols import Reference
from loadtest.restarts.cycles import Starter, kill, restart
from loadtest.restarts.steady_load import ONCE, RIGHT
from loadtest.server_process import ServerProcess, server_process
from tests.reliability.plugin import Figure
from tests.serving.recording_server import executed_by, numbered
from tests.serving.running import scrape, wait_for

SERVER = "tests.serving.recording_server"
STREAMS = 100  # of a connection
NUM_CONNECTIONS = 3  # of requests that are cancelled, and as many of those that expire
NUM_QUICK = 60  # requests in a row, after which the server knows again how fast the device is
EXPIRES = literal(b"grpc-timeout", b"200m")
ENOUGH_S = 30.0


@dataclasses.dataclass
class Asked:
    """A server on a device that holds when it is told to, and what it was asked."""

    server: ServerProcess
    executed: Path
    hold: Path
    images: Reference
    sent: Counter[str] = dataclasses.field(default_factory=Counter)
    answered: list[int] = dataclasses.field(default_factory=list)  # numbers

    @contextlib.contextmanager
    def connected(self, count: int) -> Iterator[list[Connection]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(Connection(("127.0.0.1", self.server.port))) for _ in range(count)]

    def ask(self, connection: Connection, kind: str, extra: bytes = b"") -> int:
        """Sends a request with a number of its own; returns its stream."""
        number = 1 + self.sent.total() % (len(self.images.images) - 1)
        self.sent[kind] += 1
        body = pb.ClassifyRequest(images=self.images.images[number].tobytes()).SerializeToString()
        stream = connection.next_stream()
        connection.send(opening(stream, request_headers(extra=extra)))
        connection.send_data(stream, message(body), time.monotonic() + ENOUGH_S)
        if kind == "OK":
            self.answered.append(number)
        return stream

    def calls(self) -> Counter[str]:
        """Counts the calls on the metrics page, by status."""
        return Counter({code: int(number) for (_, code), number in scrape(self.server).calls().items()})

    def ask_in_vain(self) -> None:
        """Has the device hold, and requests wait for it until they are cancelled or expire."""
        with self.connected(1) as (holder,), self.connected(2 * NUM_CONNECTIONS) as connections:
            cancelling, expiring = connections[:NUM_CONNECTIONS], connections[NUM_CONNECTIONS:]
            self.hold.touch()
            held = self.ask(holder, "OK")
            wait_for(lambda: executed_by(self.executed)[-1:] == self.answered[-1:])
            waiting = {each: [self.ask(each, "CANCELLED") for _ in range(STREAMS)] for each in cancelling}
            wait_for(lambda: self._num_queued() == NUM_CONNECTIONS * STREAMS)
            ending = {each: [self.ask(each, "DEADLINE_EXCEEDED", EXPIRES) for _ in range(STREAMS)] for each in expiring}
            for connection, streams in waiting.items():
                connection.send(b"".join(map(reset, streams)))
            await_all(ending)
            wait_for(lambda: self._num_queued() == 0)
            self.hold.unlink()
            await_all({holder: [held]})
            for _ in range(NUM_QUICK):
                await_all({holder: [self.ask(holder, "OK")]})

    def _num_queued(self) -> float:
        return scrape(self.server).value("atelier_queue_images")


def await_all(streams: dict[Connection, list[int]]) -> None:
    until_s = time.monotonic() + ENOUGH_S
    for connection, of_each in streams.items():
        assert all(connection.wait_for(stream, until_s) for stream in of_each)


@pytest.mark.slow
@pytest.mark.fault("S18", "S22")
@pytest.mark.goal("G14", of="requests, cancelled or expired in the queue", ci=1_200, release=100_000)
def test_what_is_cancelled_or_expires_in_the_queue_is_not_executed(
    front_end: str, tmp_path: Path, size: int, figure: Figure
) -> None:
    hold, executed = tmp_path / "hold", tmp_path / "executed"
    # Batches are larger than all that waits: nothing is handed to the device before the one that it holds has ended.
    settings = ["--port", "0", "--front-end", front_end, "--max-batch-size", "1024"]
    with server_process(SERVER, *settings, "--executed", str(executed), "--hold", str(hold)) as server:
        asked = Asked(server, executed, hold, numbered(1 << 16))
        counted: Counter[str] = Counter()
        while counted["CANCELLED"] + counted["DEADLINE_EXCEEDED"] < size:
            asked.ask_in_vain()
            wait_for(lambda: asked.calls().total() >= asked.sent.total())
            counted = asked.calls()
        assert server.stop() == 0
        assert server.num_answered == asked.sent["OK"]
    in_vain = counted["CANCELLED"] + counted["DEADLINE_EXCEEDED"]
    num_executed = len(executed_by(executed)) - asked.sent["OK"]
    figure(f"{num_executed} of {in_vain:,} executed; {counted.total():,} received: " + told(counted))
    assert executed_by(executed) == asked.answered
    # Behind so many pauses of the device a server may say at once that a deadline is too short.
    counted["DEADLINE_EXCEEDED"] += counted.pop("RESOURCE_EXHAUSTED", 0)
    assert counted == asked.sent


@pytest.mark.slow
@pytest.mark.fault("S20")
@pytest.mark.parametrize(("timeout", "late_s"), [(b"0m", 0.0), (b"1m", 0.1)])
def test_request_whose_deadline_has_passed_when_it_arrives_is_not_executed(
    front_end: str, tmp_path: Path, timeout: bytes, late_s: float
) -> None:
    settings = ["--port", "0", "--front-end", front_end, "--executed", str(tmp_path / "executed")]
    with server_process(SERVER, *settings) as server:
        with Connection(server.address) as connection:
            body = message(pb.ClassifyRequest(images=numbered(8).images[7].tobytes()).SerializeToString())
            for _ in range(20):
                stream = connection.next_stream()
                connection.send(opening(stream, request_headers(extra=literal(b"grpc-timeout", timeout))))
                time.sleep(late_s)
                connection.send_data(stream, body, time.monotonic() + ENOUGH_S)
                assert connection.wait_for(stream, time.monotonic() + ENOUGH_S)
            assert connection.answered == b""
        wait_for(lambda: scrape(server).calls() == {("Classify", "DEADLINE_EXCEEDED"): 20})
        assert server.stop() == 0
    assert executed_by(tmp_path / "executed") == []


@pytest.mark.slow
@pytest.mark.fault("S20")
@pytest.mark.parametrize("timeout_s", [0.0, 0.001])
def test_client_that_gives_no_time_gets_no_answer(front_end: str, tmp_path: Path, timeout_s: float) -> None:
    """Of a device that takes 20 ms; a server that is busy may say at once that the deadline is too short.

    On the wire no time is a millisecond here, and what arrives within it an idle device is given: no more is promised.
    """
    settings = ["--port", "0", "--front-end", front_end, "--executed", str(tmp_path / "executed")]
    asked, ends = pb.ClassifyRequest(images=numbered(8).images[7].tobytes()).SerializeToString(), Counter[str]()
    with server_process(SERVER, *settings, "--image-s", "0.02") as server:
        with grpc.insecure_channel(server.target) as channel:
            grpc.channel_ready_future(channel).result(ENOUGH_S)
            classify: Any = channel.unary_unary(f"/{SERVICE}/Classify")
            for _ in range(20):
                with pytest.raises(grpc.RpcError) as caught:
                    classify(asked, timeout_s)
                failure: Any = caught.value
                ends[failure.code().name] += 1
        assert server.stop() == 0
    assert ends.keys() <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(counts.items()))


# --- Ends under load -------------------------------------------------------------------------------------------------

RATE = 200.0
LONGEST_S = 5  # that an end and its pause take, on a busy machine


@pytest.fixture
def recording(front_end: str, tmp_path: Path) -> Starter:
    options = ["--metrics-port", "0", "--executed", str(tmp_path / "executed"), "--image-s", "0.002"]
    return partial(server_process, SERVER, *options, "--front-end", front_end)


def images_for(num_ends: int) -> Reference:
    """So many images that none is asked about twice."""
    return numbered(int(RATE * LONGEST_S * (num_ends + 1)))


@pytest.mark.slow
@pytest.mark.goal("G2", of="SIGTERM restarts, executions counted by the device", ci=2, release=200)
def test_restarts_execute_every_request_once(
    front_end: str, recording: Starter, tmp_path: Path, size: int, figure: Figure
) -> None:
    reference = images_for(size)
    cycles = restart(recording, reference, number=size, rate=RATE)
    executed = Counter(executed_by(tmp_path / "executed"))
    answered = [entry.image for entry in cycles.journal if entry.outcome == RIGHT and entry.image]
    figure(f"of {len(answered):,} answers {sum(executed[number] > 1 for number in answered)} executed twice")
    assert cycles.faults(ENDS[front_end][SIGTERM]) == []
    assert RATE < len(cycles.journal) <= len(reference.images)
    assert executed == Counter(answered)


@pytest.mark.fault("S36")
@pytest.mark.slow
@pytest.mark.goal("G1", of="SIGTERM restarts, under a client that never retries", ci=3, release=200)
def test_restarts_fail_calls_that_are_not_repeated_as_unavailable_and_execute_none_of_them(
    front_end: str, recording: Starter, tmp_path: Path, size: int, figure: Figure
) -> None:
    reference = images_for(size + 10)  # calls that fail at once leave none for later
    cycles = restart(recording, reference, number=size, rate=RATE, client=ONCE)
    found, executed = cycles.account, Counter(executed_by(tmp_path / "executed"))
    answered = [entry.image for entry in cycles.journal if entry.outcome == RIGHT and entry.image]
    num_executed = sum(executed[entry.image] for entry in cycles.journal if entry.outcome != RIGHT)
    figure(f"of {found.sent:,} requests {told(Counter(found.failed))}, of which {num_executed} were executed")
    excused = ("UNAVAILABLE", *ENDS[front_end][SIGTERM].excused)
    assert "UNAVAILABLE" in found.failed
    assert cycles.faults(End(excused=excused)) == []
    assert RATE < len(cycles.journal) <= len(reference.images)
    assert executed == Counter(answered)


@pytest.mark.slow
@pytest.mark.goal("G2", of="kill -9 of the process that serves, executions counted by the device", ci=2, release=200)
def test_kills_execute_a_request_once_an_attempt(
    front_end: str, recording: Starter, tmp_path: Path, size: int, figure: Figure
) -> None:
    reference = images_for(size)
    cycles = kill(recording, reference, number=size, rate=RATE)
    executed = Counter(executed_by(tmp_path / "executed"))
    asked = [entry for entry in cycles.journal if entry.image]
    again = {entry.image: executed[entry.image] - 1 for entry in asked if executed[entry.image] > 1}
    repeated = {entry.image: entry.retried for entry in asked if entry.retried}
    figure(f"of {len(asked):,} requests {len(repeated)} were repeated, and {len(again)} executed twice")
    assert cycles.faults(dataclasses.replace(ENDS[front_end][KILL], longest_s=None)) == []
    assert RATE < len(cycles.journal) <= len(reference.images)
    assert all(count <= repeated.get(number, 0) for number, count in again.items())
    assert all(executed[entry.image] for entry in asked if entry.outcome == RIGHT)
