"""Systems under test, as LoadGen calls them: our gRPC client, one request at a time or many at once.

LoadGen issues samples from a thread of its own and is told of each answer. What it does not ask for is noted here per
request: when it was handed over, sent and answered, what came back, where the server says its time went, and in how
large a batch.
"""

import asyncio
import threading
import time
from array import array
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
import mlperf_loadgen
import numpy as np
import uvloop
from numpy.typing import NDArray

from atelier.channel import proxy_options
from loadtest.protocols import Checked, ServerProtocol
from loadtest.scenarios import Load

# What became of a request. A refusal is an answer that sheds load; all else that fails is a lost answer.
PENDING, CORRECT, WRONG, LOST, REFUSED = range(5)
MAX_FAULTS = 5  # named by a process, so that a broken server does not fill the memory

# As many connections as a process has: a server may bound the calls on each (ours takes 128).
NUM_CHANNELS = 4
CHANNEL_OPTIONS = [
    # No retry policy, for a retry would hide the failure. What a server refused without having seen it
    # (REFUSED_STREAM), grpc sends again by itself, as for any client; the latency has it.
    ("grpc.use_local_subchannel_pool", 1),  # or the channels share one connection
    ("grpc.max_receive_message_length", -1),
]
WARM_UP_TIMEOUT_S = 10.0  # the first call also connects


class Records:
    """One process's requests, numbered in the order in which LoadGen issued them. Times are monotonic."""

    def __init__(self) -> None:
        self.issued_ns, self.sent_ns, self.done_ns = array("q"), array("q"), array("q")
        self.queue_us, self.inference_us = array("q"), array("q")
        self.outcomes, self.num_images, self.batch_sizes = array("b"), array("l"), array("l")
        self.faults: list[str] = []

    def add(self, num_images: int) -> int:
        """A request that was handed over just now; its number."""
        self.issued_ns.append(time.monotonic_ns())
        for column, value in ((self.outcomes, PENDING), (self.num_images, num_images), (self.batch_sizes, 0)):
            column.append(value)
        for column in (self.sent_ns, self.done_ns, self.queue_us, self.inference_us):
            column.append(-1)
        return len(self.issued_ns) - 1

    def note(self, number: int, outcome: int, checked: Checked) -> None:
        """What came of a request."""
        self.outcomes[number] = outcome
        self.queue_us[number], self.inference_us[number] = checked.queue_us, checked.inference_us
        self.batch_sizes[number] = checked.batch_size
        if checked.fault and len(self.faults) < MAX_FAULTS:
            self.faults.append(f"request {number}: {checked.fault}")

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Each as (num_requests,) int64, copied: requests may still be under way."""
        names = ("issued_ns", "sent_ns", "done_ns", "queue_us", "inference_us", "outcomes", "num_images", "batch_sizes")
        copies = [np.array(getattr(self, name)[:], np.int64) for name in names]
        shortest = min(map(len, copies))  # a request may have been added meanwhile
        return {name: copy[:shortest] for name, copy in zip(names, copies, strict=True)}


class System(Protocol):
    """What LoadGen drives."""

    records: Records

    def warm_up(self) -> None:
        """Connects, and raises grpc.RpcError where the server cannot be asked."""
        ...

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """LoadGen's samples, by their ids and by their images; returns at once or when they are answered."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...


def system_for(load: Load, server: ServerProtocol, num_images: int) -> System:
    """The way a scenario's requests are sent; `num_images` is the data set's size."""
    if load.scenario in ("single_stream", "multi_stream"):
        return OneAtATime(load, server)
    return Concurrent(load, server, num_images)


class OneAtATime:
    """A blocking call from LoadGen's own thread, as a plain client makes it; nothing is handed between threads."""

    def __init__(self, load: Load, server: ServerProtocol) -> None:
        self.records = Records()
        self._load, self._server = load, server
        self._channel = grpc.insecure_channel(server.target, options=CHANNEL_OPTIONS + proxy_options(server.target))
        self._method: Any = self._channel.unary_unary(server.method)

    def warm_up(self) -> None:
        """See System."""
        message = self._server.request(range(self._load.images_per_request))
        self._method(message, timeout=WARM_UP_TIMEOUT_S)
        for _ in range(20):
            self._method(message, timeout=self._load.timeout_s)

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """See System."""
        records = self.records
        number = records.add(len(indices))
        message = self._server.request(indices)
        records.sent_ns[number] = time.monotonic_ns()
        try:
            reply: bytes | grpc.RpcError = self._method(message, timeout=self._load.timeout_s)
        except grpc.RpcError as error:
            reply = error
        records.done_ns[number] = time.monotonic_ns()
        _complete(ids)
        records.note(number, *_judged(reply, self._server, indices))

    def close(self) -> None:
        """See System."""
        self._channel.close()


class Concurrent:
    """Calls on an event loop in a thread of its own: as they arrive, or offline so many in flight."""

    def __init__(self, load: Load, server: ServerProtocol, num_images: int) -> None:
        self.records = Records()
        self._load, self._server, self._num_images = load, server, num_images
        self._arrived: deque[tuple[int, list[int], Sequence[int]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channels: list[grpc.aio.Channel] = []
        self._methods: list[Any] = []
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """See System."""
        self._run(self._connect())

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """See System."""
        if self._load.scenario == "offline":
            self._loop.call_soon_threadsafe(self._start_offline, ids, indices)
            return
        size = self._load.images_per_request
        for sample, index in zip(ids, indices, strict=True):
            images = (index,) if size == 1 else [(index + offset) % self._num_images for offset in range(size)]
            self._arrived.append((self.records.add(size), [sample], images))
        self._loop.call_soon_threadsafe(self._start_arrived)

    def close(self) -> None:
        """See System."""
        self._run(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, steps: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(steps, self._loop).result()

    async def _connect(self) -> None:
        message = self._server.request(range(self._load.images_per_request))
        for _ in range(NUM_CHANNELS):
            options = CHANNEL_OPTIONS + proxy_options(self._server.target)
            channel = grpc.aio.insecure_channel(self._server.target, options=options)
            self._channels.append(channel)
            method: Any = channel.unary_unary(self._server.method)
            self._methods.append(method)
            await method(message, timeout=WARM_UP_TIMEOUT_S)
            for _ in range(5):
                await method(message, timeout=self._load.timeout_s)

    async def _disconnect(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _start_arrived(self) -> None:
        while self._arrived:
            self._start(self._ask(*self._arrived.popleft()))

    def _start_offline(self, ids: list[int], indices: list[int]) -> None:
        size = self._load.images_per_request
        chunks = ((ids[start : start + size], indices[start : start + size]) for start in range(0, len(ids), size))
        for _ in range(self._load.in_flight):
            self._start(self._ask_each(chunks))

    def _start(self, steps: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(steps)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _ask_each(self, chunks: Iterator[tuple[list[int], list[int]]]) -> None:
        for ids, indices in chunks:
            await self._ask(self.records.add(len(indices)), ids, indices)

    async def _ask(self, number: int, ids: list[int], indices: Sequence[int]) -> None:
        records = self.records
        message = self._server.request(indices)
        records.sent_ns[number] = time.monotonic_ns()
        try:
            reply: bytes | grpc.RpcError = await self._methods[number % NUM_CHANNELS](
                message, timeout=self._load.timeout_s
            )
        except grpc.RpcError as error:
            reply = error
        records.done_ns[number] = time.monotonic_ns()
        _complete(ids)
        records.note(number, *_judged(reply, self._server, indices))


def _complete(ids: list[int]) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample, 0, 0) for sample in ids])


def _judged(reply: bytes | grpc.RpcError, server: ServerProtocol, indices: Sequence[int]) -> tuple[int, Checked]:
    if isinstance(reply, bytes):
        checked = server.check(reply, indices)
        return WRONG if checked.fault else CORRECT, checked
    status: grpc.StatusCode = reply.code()
    images = f"image {indices[0]}" if len(indices) == 1 else f"{len(indices)} images from {indices[0]}"
    fault = f"{images}: {status.name}: {reply.details()}"
    return REFUSED if status is grpc.StatusCode.RESOURCE_EXHAUSTED else LOST, Checked(fault)
