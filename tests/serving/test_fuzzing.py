"""Mutants of messages and of byte streams, sent to real servers: each is answered or refused, and nothing else happens.

A failure names a seed and a number: `Method.mutant(seed, number)` in tests/fuzz/messages.py makes that mutant again.
`ATELIER_FUZZ_SEED=7` has other mutants than the gate's.
"""

import contextlib
import http
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import ServerProcess, server_process
from tests.fuzz.documents import request_in_json
from tests.fuzz.messages import IMAGE, METHODS, Method, is_lax
from tests.fuzz.offers import HANG_S, LEAK, REFUSAL, Found, Offer
from tests.fuzz.streams import send_streams, stream
from tests.reliability.plugin import Figure
from tests.serving.conftest import HAS_NATIVE, needs_native
from tests.serving.running import running_children_of, scrape, serving_process_of

SEED = int(os.environ.get("ATELIER_FUZZ_SEED", "1"))
BLOCK = 20_000  # mutants between two honest calls
MEBIBYTE = 1 << 20
AUDITED = "tests.serving.audited_server"
GROWTH = {"native": 64 * MEBIBYTE, "grpcio": 256 * MEBIBYTE}  # grpcio gives memory back late; it levels off at 170
# What becomes of a ModelInferRequest with a short timeout is a matter of time.
JSON_STATUSES = {200, 400, 404, 413, 422, 429, 504}  # 504: a request may have a timeout of its own
MALFORMED = "INVALID_ARGUMENT MALFORMED"
TIMED = {"OK", "DEADLINE_EXCEEDED EXPIRED", "RESOURCE_EXHAUSTED DEADLINE_TOO_SHORT"}


class Honest:
    """A server under mutants, and a client that wants of it what it said before."""

    def __init__(self, server: ServerProcess, front_end: str) -> None:
        self.server, self._front_end = server, front_end
        self.target = server.target
        self._process = serving_process_of(server)
        self._said = self._answer()
        self._rss: int | None = None

    def check(self) -> None:
        """Asks as an honest client; the answer, the process and its memory must be as before."""
        assert self._answer() == self._said
        assert self._process.is_running() and serving_process_of(self.server).pid == self._process.pid
        rss = self._process.memory_info().rss
        self._rss = rss if self._rss is None else self._rss
        assert rss < self._rss + GROWTH[self._front_end], f"{self._rss / MEBIBYTE:.0f} MiB became {rss / MEBIBYTE:.0f}"

    def check_counts(self) -> None:
        """Looks at the server's own counts: nothing was UNKNOWN or INTERNAL, over any protocol."""
        codes = {code for _, code in scrape(self.server).calls()}
        assert not codes & {"UNKNOWN", "INTERNAL"}

    def cpu_s(self) -> float:
        """Returns the CPU time that the server has spent, its processes that decode included, in steps of 10 ms."""
        times = [process.cpu_times() for process in (self._process, *running_children_of(self._process))]
        return float(sum(time.user + time.system for time in times))

    def _answer(self) -> list[tuple[int, float]]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.target, options=options) as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE}/Classify", response_deserializer=pb.ClassifyResponse.FromString
            )
            reply = call(pb.ClassifyRequest(images=IMAGE, top_k=10).SerializeToString(), timeout=60)
        return [(each.label, each.probability) for each in reply.classifications[0].predictions]


@pytest.fixture(scope="module")
def servers(small_repository: Path) -> Iterator[dict[str, Honest]]:
    """A server of each front end for all tests here: what one of them has broken, the next ones see too."""
    settings = ["--repository", str(small_repository), "--port", "0", "--playground-port", "0", "--device", "cpu"]
    with contextlib.ExitStack() as stack:
        started = {}
        for name in ("grpcio", "native") if HAS_NATIVE else ("grpcio",):
            started[name] = stack.enter_context(server_process(AUDITED, *settings, "--front-end", name))
        yield {name: Honest(server, name) for name, server in started.items()}
        for server in started.values():
            assert server.stop() == 0
            assert not re.search("Traceback|panicked|EXECUTES", server.output), server.output


@pytest.fixture
def honest(servers: dict[str, Honest], front_end: str) -> Honest:
    """One of them."""
    return servers[front_end]


@contextlib.contextmanager
def offers_to(honest: Honest, seed: int = SEED) -> Iterator[list[Offer]]:
    """Opens connections for each method."""
    offers = [Offer(method, honest.target, seed, honest.cpu_s) for method in METHODS]
    yield offers
    for offer in offers:
        offer.close()


@pytest.mark.slow
@pytest.mark.fault("S1", "S2", "S4", "S7")
@pytest.mark.goal("G22", of="mutated messages, with an audit hook in the server", ci=4_000, release=1_000_000)
@pytest.mark.goal("G8", of="mutated messages", ci=4_000, release=1_000_000)
def test_mutated_message_is_answered_or_refused(honest: Honest, size: int, figure: Figure) -> None:
    found, starts = Found(), [0] * len(METHODS)
    with offers_to(honest) as offers:
        while found.num_answered < size and not found.faults:
            block = min(BLOCK, size - found.num_answered)
            for index, offer in enumerate(offers):
                end = starts[index] + max(1, round(block * offer.method.share))
                offer.send(range(starts[index], end), found)
                starts[index] = end
            honest.check()
    figure(f"{found.figures()}; none above {max(0.01, found.slowest_s) * 1e3:.0f} ms alone")
    assert not found.faults, "\n".join(found.faults[:20])
    honest.check_counts()
    assert {outcome.partition(" ")[0] for outcome in found.outcomes} >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


@pytest.mark.fault("S15")
@pytest.mark.goal("G8", of="raw byte streams", ci=1_500, release=100_000)
def test_raw_byte_stream_ends_its_connection_and_nothing_else(
    honest: Honest, front_end: str, size: int, figure: Figure
) -> None:
    num_answered, slow = 0, list[int]()
    for start in range(0, size, BLOCK):
        numbers = range(start, min(size, start + BLOCK))
        streams = ((number, stream(SEED, number, is_careful=front_end == "grpcio")) for number in numbers)
        sent = send_streams(honest.server.port, streams)
        assert sent.num_closed == len(numbers), f"seed {SEED}, numbers {sent.slow}: not closed"
        num_answered += sent.num_answered
        slow += sent.slow
        honest.check()
    for number in slow:  # others may have been in its way
        alone = [(number, stream(SEED, number, is_careful=front_end == "grpcio"))]
        assert not send_streams(honest.server.port, alone).slow, f"seed {SEED}, number {number}: not closed in time"
    figure(f"{size:,} closed, {num_answered:,} of them with an answer")
    honest.check_counts()


@needs_native
@pytest.mark.fault("S2", "S4", "S7")
@pytest.mark.goal("G8", of="mutated requests in JSON", ci=1_000, release=100_000)
def test_mutated_json_is_answered_or_refused(servers: dict[str, Honest], size: int, figure: Figure) -> None:
    honest, statuses = servers["native"], Counter[int]()
    connection = http.client.HTTPConnection("127.0.0.1", honest.server.port, timeout=60)
    for number in range(size):
        request, named = request_in_json(SEED, number), f"seed {SEED}, number {number}"
        began_s = time.monotonic()
        status, body = posted(connection, request)
        if time.monotonic() - began_s > HANG_S:  # others may have been in its way
            before_s = honest.cpu_s()
            posted(connection, request)
            assert honest.cpu_s() - before_s <= HANG_S, f"{named}: took more of the server's CPU"
        statuses[status] += 1
        assert status in JSON_STATUSES, f"{named}: {status} {body!r}"
        if status != http.HTTPStatus.OK:
            refusal = json.loads(body)["error"]
            assert REFUSAL.match(refusal) and not LEAK.search(refusal), f"{named}: {refusal}"
    connection.close()
    honest.check()
    honest.check_counts()
    figure(", ".join(f"{number:,} {http.HTTPStatus(status).name}" for status, number in statuses.most_common()))
    assert {http.HTTPStatus.OK, http.HTTPStatus.BAD_REQUEST} <= statuses.keys()


@pytest.mark.slow
@needs_native
@pytest.mark.fault("S1", "S2")
@pytest.mark.goal("G8", of="mutated messages, sent to both front ends", ci=1_000, release=200_000)
def test_both_front_ends_say_the_same_of_a_mutant(servers: dict[str, Honest], size: int, figure: Figure) -> None:
    different, num_lax = [], 0
    for method in METHODS:
        numbers = range(max(1, round(size * method.share)))
        native, grpcio = (_refusals(servers[name], method, numbers) for name in ("native", "grpcio"))
        for number in native.keys() | grpcio.keys():
            pair = native.get(number, "OK"), grpcio.get(number, "OK")
            if pair[0] == pair[1] or set(pair) <= TIMED or method.name == "Check":  # grpcio's own service has no words
                continue
            if pair[0] == MALFORMED and is_lax(method.mutant(SEED + 1, number), method.corpus[0]):
                num_lax += 1
            else:
                different.append(f"{method.name}, seed {SEED + 1}, number {number}: native {pair[0]}, grpcio {pair[1]}")
    figure(f"{len(different)} different, {num_lax} that only the native one takes for malformed")
    assert not different, "\n".join(different[:20])


def posted(connection: http.client.HTTPConnection, request: tuple[str, bytes, dict[str, str]]) -> tuple[int, bytes]:
    """Sends the request, and returns the status and the body of the reply."""
    connection.request("POST", *request)
    reply = connection.getresponse()
    return reply.status, reply.read()


def _refusals(honest: Honest, method: Method, numbers: Sequence[int]) -> dict[int, str]:
    found, offer = Found(by_number={}), Offer(method, honest.target, SEED + 1, honest.cpu_s)
    offer.send(numbers, found)
    offer.close()
    return found.by_number or {}


@pytest.mark.parametrize(
    ("program", "event"),
    [
        ("import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict))", "pickle.find_class"),
        ("import os; os.system('true')", "os.system"),
        ("eval('1 + 1')", "compile"),
        ("import wave  # which makes a class of text, before it serves", None),
    ],
)
def test_hook_hears_what_could_execute_what_is_given(program: str, event: str | None) -> None:
    code = f"from {AUDITED} import listen\nlisten({'/' if event else '/nowhere'!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.findall(r"EXECUTES: ([\w.]+)", done.stderr)[:1] == ([event] if event else [])
