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
from typing import Any

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
CANCELLED = grpc.StatusCode.CANCELLED.value[0]
WARM_UP_TIMEOUT_S = 10.0  # the first call also connects
TAKE_S = 0.05
COMPARED_TOGETHER = 512

Request = tuple[Sequence[int], int]  # LoadGen's samples, and the number of the message


class CannotAskError(Exception):
    """The server does not answer."""


class OneAtATime:
    """Makes blocking calls from LoadGen's own thread, as a plain client does; nothing is handed between threads."""

    def __init__(self, load: Load, server: ServerProtocol) -> None:
        self.records = Records()
        self._load, self._server = load, server
        self._channel = grpc.insecure_channel(server.target, options=CHANNEL_OPTIONS + proxy_options(server.target))
        self._method: Any = self._channel.unary_unary(server.method)

    def warm_up(self) -> None:
        """Connects. Raises CannotAskError if the server does not answer."""
        message = self._server.request([0] * self._load.images_per_request)
        try:
            for _ in range(21):
                self._method(message, timeout=WARM_UP_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CannotAskError(_failure(error)) from None

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """Takes one of LoadGen's queries, by its samples' ids and by their images; returns when it is answered."""
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
        """Ends the connection."""
        self._channel.close()


class Concurrent:
    """Hands requests to a load client: as they arrive, or offline so many in flight. A thread takes the answers.

    Requests are made beforehand, and together have every image: LoadGen's sample chooses one of them.
    """

    def __init__(self, load: Load, server: ServerProtocol, num_images: int) -> None:
        self.records = Records()
        self._load, self._server, size = load, server, load.images_per_request
        self._images = np.resize(np.arange(num_images), (-(-num_images // size), size))  # of each message
        self._messages = [server.request(images) for images in self._images.tolist()]
        in_flight = load.target_qps * load.timeout_s if load.scenario == "server" else load.in_flight
        self._num_connections = round(np.clip(in_flight / STREAMS_PER_CONNECTION, LEAST_CONNECTIONS, MOST_CONNECTIONS))
        # A few more than it will be: how many is chance.
        num_planned = load.target_qps * load.duration_s
        num_scheduled = round(num_planned + 10 * num_planned**0.5 + 100) if load.scenario == "server" else 0
        self._schedule_ns = schedule_ns(load.seed, load.target_qps, num_scheduled)
        self._start_ns = 2**62
        self._client = open_client(load.client, server.target, server.method, self._num_connections)
        self._waiting: Iterator[Request] = iter(())  # offline, what is still to be sent
        self._under_way: dict[int, Request] = {}
        self._answers: list[Answers] = []
        self._uncompared: list[int] = []  # the messages of those answers
        self._is_closed = False
        self._thread = threading.Thread(target=self._take_all, daemon=True)

    def warm_up(self) -> None:
        """Connects. Raises CannotAskError if the server does not answer."""
        messages = self._messages[:1] * self._num_connections
        for turn in range(WARM_UP_CALLS):
            self._client.submit(np.arange(len(messages)), messages, WARM_UP_TIMEOUT_S)
            num_taken = 0
            while num_taken < len(messages):
                answers = self._client.take(WARM_UP_TIMEOUT_S)
                num_taken += len(answers.numbers)
                for position in np.flatnonzero(answers.codes):
                    # grpcio cancels calls for a while after a load of which many were given up.
                    if answers.codes[position] != CANCELLED or turn == WARM_UP_CALLS - 1:
                        raise CannotAskError(answers.failure(int(position)))
        self._thread.start()

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """Takes LoadGen's samples, by their ids and by their images; returns at once."""
        size = self._load.images_per_request
        if self._load.scenario == "offline":
            starts = range(0, len(ids), size)
            self._waiting = ((ids[start : start + size], indices[start] // size) for start in starts)
            self._submit(list(islice(self._waiting, self._load.in_flight)))
        else:
            self._submit([((sample,), index // size) for sample, index in zip(ids, indices, strict=True)])

    def close(self) -> None:
        """Ends the connections, when all that was answered is noted."""
        self._is_closed = True
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def _submit(self, requests: Sequence[Request]) -> None:
        first = self.records.add(self._load.images_per_request, len(requests))
        numbers = range(first, first + len(requests))
        self._under_way.update(zip(numbers, requests, strict=True))
        messages = [self._messages[message] for _, message in requests]
        load, due_ns = self._load, self._due_ns(numbers)
        self._client.submit(np.array(numbers, np.int64), messages, load.timeout_s, due_ns, load.late_s)

    def _due_ns(self, numbers: range) -> Integers | None:
        """Returns when LoadGen's schedule had them, as far as is known yet: it hands over none before its time."""
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
        done = [self._under_way.pop(number) for number in answers.numbers.tolist()]
        _complete(chain.from_iterable(ids for ids, _ in done))
        if more := list(islice(self._waiting, len(done))):
            self._submit(more)
        self._uncompared += [message for _, message in done]
        self._answers.append(answers)

    def _compare(self) -> None:
        if self._uncompared:
            judge(self.records, self._server, joined(self._answers), self._images[self._uncompared])
        self._answers, self._uncompared = [], []


def _complete(ids: Iterable[int]) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample, 0, 0) for sample in ids])


def _failure(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


System = OneAtATime | Concurrent


def system_for(load: Load, server: ServerProtocol, num_images: int) -> System:
    """Returns the way a scenario's requests are sent; `num_images` is the data set's size."""
    if load.scenario in ("single_stream", "multi_stream"):
        return OneAtATime(load, server)
    return Concurrent(load, server, num_images)
