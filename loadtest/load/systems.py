"""Systems under test, as LoadGen calls them: one request at a time, or many at once.

LoadGen issues samples from a thread of its own and is told of each answer. What it does not ask for is noted here per
request: when it was handed over, sent and answered, what came back, where the server says its time went, and in how
large a batch.
"""

import os
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol

import grpc
import mlperf_loadgen
import numpy as np

from atelier.channel import proxy_options
from loadtest.load.load_clients import CHANNEL_OPTIONS, Answers, Integers, joined, open_client
from loadtest.load.protocols import Checked, ServerProtocol
from loadtest.load.records import CORRECT, LOST, REFUSED, WRONG, Records, judge, named
from loadtest.load.scenarios import Load, schedule_ns

# As many connections as a process has at the least: a server may bound the calls on each (ours takes 128). At the most,
# for requests that nobody answers until their deadline.
LEAST_CONNECTIONS, MOST_CONNECTIONS = 4, 32
STREAMS_PER_CONNECTION = 100
WARM_UP_CALLS = 6  # on each connection
WARM_UP_TIMEOUT_S = 10.0  # the first call also connects
TAKE_S = 0.05
COMPARED_TOGETHER = 512


class CannotAskError(Exception):
    """The server does not answer."""


class System(Protocol):
    """What LoadGen drives."""

    records: Records

    def warm_up(self) -> None:
        """Connects, and raises CannotAskError if the server cannot be asked."""
        ...

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """Takes LoadGen's samples, by their ids and by their images; returns at once or when they are answered."""
        ...

    def close(self) -> None:
        """Ends the connections, when all that was answered is noted."""
        ...


def system_for(load: Load, server: ServerProtocol, num_images: int) -> System:
    """Returns the way a scenario's requests are sent; `num_images` is the data set's size."""
    if load.scenario in ("single_stream", "multi_stream"):
        return OneAtATime(load, server)
    return Concurrent(load, server, num_images)


class OneAtATime:
    """Makes blocking calls from LoadGen's own thread, as a plain client does; nothing is handed between threads."""

    def __init__(self, load: Load, server: ServerProtocol) -> None:
        self.records = Records()
        self._load, self._server = load, server
        self._channel = grpc.insecure_channel(server.target, options=CHANNEL_OPTIONS + proxy_options(server.target))
        self._method: Any = self._channel.unary_unary(server.method)

    def warm_up(self) -> None:
        """See System."""
        message = self._server.request([0] * self._load.images_per_request)
        try:
            self._method(message, timeout=WARM_UP_TIMEOUT_S)
            for _ in range(20):
                self._method(message, timeout=self._load.timeout_s)
        except grpc.RpcError as error:
            raise CannotAskError(_failure(error)) from None

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """See System."""
        number = self.records.add(len(indices))
        message = self._server.request(indices)
        sent_ns = time.monotonic_ns()
        try:
            reply: bytes | grpc.RpcError = self._method(message, timeout=self._load.timeout_s)
        except grpc.RpcError as error:
            reply = error
        done_ns = time.monotonic_ns()
        _complete(ids)
        if isinstance(reply, bytes):
            checked = self._server.check(reply, indices)
            outcome = WRONG if checked.fault else CORRECT
        else:
            checked = Checked(f"{named(indices)}: {_failure(reply)}")
            outcome = REFUSED if reply.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else LOST
        self.records.note(number, sent_ns, done_ns, outcome, checked)

    def close(self) -> None:
        """See System."""
        self._channel.close()


class Concurrent:
    """Hands requests to a load client: as they arrive, or offline so many in flight. A thread takes the answers."""

    def __init__(self, load: Load, server: ServerProtocol, num_images: int) -> None:
        self.records = Records()
        self._load, self._server, self._num_images = load, server, num_images
        in_flight = load.target_qps * load.timeout_s if load.scenario == "server" else load.in_flight
        self._num_connections = round(np.clip(in_flight / STREAMS_PER_CONNECTION, LEAST_CONNECTIONS, MOST_CONNECTIONS))
        # A few more than it will be: how many is chance.
        num_planned = load.target_qps * load.duration_s
        num_scheduled = round(num_planned + 10 * num_planned**0.5 + 100) if load.scenario == "server" else 0
        self._schedule_ns = schedule_ns(load.seed, load.target_qps, num_scheduled)
        self._start_ns = 2**62
        self._client = open_client(load.client, server.target, server.method, self._num_connections)
        self._messages: list[bytes] = []  # of each image, if that is what is asked for
        self._chunks: Iterator[tuple[list[int], list[int]]] = iter(())  # offline, what is still to be sent
        self._asked: dict[int, tuple[Sequence[int], Sequence[int]]] = {}  # samples and images of what is under way
        self._answers: list[Answers] = []
        self._uncompared: list[Sequence[int]] = []  # the images of those answers
        self._is_closed = False
        self._thread = threading.Thread(target=self._take_all, daemon=True)

    def warm_up(self) -> None:
        """See System."""
        if self._load.images_per_request == 1:
            self._messages = [self._server.request((index,)) for index in range(self._num_images)]
        messages = [self._server.request([0] * self._load.images_per_request)] * self._num_connections
        for number in range(WARM_UP_CALLS):
            timeout_s = self._load.timeout_s if number else WARM_UP_TIMEOUT_S
            self._client.submit(np.arange(len(messages)), messages, timeout_s)
            num_taken = 0
            while num_taken < len(messages):
                answers = self._client.take(timeout_s)
                num_taken += len(answers.numbers)
                for position in np.flatnonzero(answers.codes)[:1]:
                    raise CannotAskError(answers.failure(position))
        self._thread.start()

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """See System."""
        size = self._load.images_per_request
        if self._load.scenario == "offline":
            starts = range(0, len(ids), size)
            self._chunks = ((ids[start : start + size], indices[start : start + size]) for start in starts)
            self._submit(list(islice(self._chunks, self._load.in_flight)))
        elif size == 1:
            self._submit(list(zip(zip(ids), zip(indices))))  # noqa: B905 - of one each
        else:
            images = [[(index + offset) % self._num_images for offset in range(size)] for index in indices]
            self._submit([((sample,), of_sample) for sample, of_sample in zip(ids, images, strict=True)])

    def close(self) -> None:
        """See System."""
        self._is_closed = True
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def _submit(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Sends requests, each with its samples and images."""
        first = self.records.add(self._load.images_per_request, len(requests))
        numbers = range(first, first + len(requests))
        self._asked.update(zip(numbers, requests, strict=True))
        messages = [
            self._messages[images[0]] if self._messages else self._server.request(images) for _, images in requests
        ]
        load, due_ns = self._load, self._due_ns(numbers)
        self._client.submit(np.array(numbers, np.int64), messages, load.timeout_s, due_ns, load.late_s)

    def _due_ns(self, numbers: range) -> Integers | None:
        """When LoadGen's schedule had them, as far as is known yet: it hands over none before its time."""
        after_first_ns = self._schedule_ns[numbers.start : numbers.stop]
        if len(after_first_ns) < len(numbers):
            return None
        now_ns = time.monotonic_ns()
        self._start_ns = min(self._start_ns, now_ns - int(after_first_ns[-1]))
        return self._start_ns + after_first_ns

    def _take_all(self) -> None:
        try:
            compared_s = time.monotonic()
            while not self._is_closed:
                self._conclude(self._client.take(TAKE_S))
                if len(self._uncompared) >= COMPARED_TOGETHER or time.monotonic() - compared_s > TAKE_S:
                    self._compare()
                    compared_s = time.monotonic()
            self._compare()
        except BaseException:
            traceback.print_exc()
            os._exit(70)  # or LoadGen would wait for ever

    def _conclude(self, answers: Answers) -> None:
        """Tells LoadGen, and sends what was waiting for this."""
        asked = [self._asked.pop(number) for number in answers.numbers.tolist()]
        _complete(chain.from_iterable(ids for ids, _ in asked))
        if more := list(islice(self._chunks, len(asked))):
            self._submit(more)
        self._uncompared += [images for _, images in asked]
        self._answers.append(answers)

    def _compare(self) -> None:
        if self._uncompared:
            judge(self.records, self._server, joined(self._answers), self._uncompared)
        self._answers, self._uncompared = [], []


def _complete(ids: Iterable[int]) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample, 0, 0) for sample in ids])


def _failure(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"
