"""Honest client in a process of its own: what its calls see, quiet and beside an attack.

It retries nothing. It asks in three ways at once: one call after the other on one connection; calls on a schedule,
whatever became of those before, on a second; and now and then a call on a new connection, as a newcomer does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from atelier.channel import proxy_options
from atelier.errors import ResourceUnavailableError
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.processes import Child

DEADLINE_S = 2.0
PAUSE_S = 0.01  # between calls one after the other
INTERVAL_S = 1 / 80  # of those on a schedule
NEWCOMER_S = 0.2
START_S = 20.0
NUM_IMAGES = 100
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Call(NamedTuple):
    """One call, and how it ended."""

    due_s: float  # on the monotonic clock
    taken_s: float  # since it was due
    fault: str  # empty if the answer was right
    is_newcomer: bool  # on a connection of its own, whose making is in the time


class HonestClient:
    """Asks from when it is made until its block ends. Raises ResourceUnavailableError NO_ANSWER if nobody answers."""

    def __init__(self, target: str) -> None:
        self._child = Child("the honest client", _ask_until_told, target)
        try:
            fault = self._child.receive(START_S)
            if fault:
                cure = "is the server running, and does it serve atelier.v1.Classifier?"
                raise ResourceUnavailableError("NO_ANSWER", f"{target} cannot be asked: {fault}", cure)
        except BaseException:
            self._child.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()

    def calls(self, since_s: float, until_s: float) -> list[Call]:
        """Returns the calls that were due in this time, once all of them have ended."""
        self._child.pipe.send((since_s, until_s))
        return [Call(*fields) for fields in self._child.receive(until_s - time.monotonic() + 5 * DEADLINE_S)]


def _ask_until_told(target: str, pipe: Connection) -> None:
    asyncio.run(_Asking(target).run(pipe))


class _Asking:
    """The client's calls, and the answers that it knows: those of the server before any attack."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._calls: list[Call] = []
        self._due: set[float] = set()  # of the calls that have not ended
        self._labels: list[int] = []
        images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 784), np.uint8)
        images[:, 0] = np.arange(NUM_IMAGES)  # each is another, whatever the seed
        self._messages = [pb.ClassifyRequest(images=image.tobytes()).SerializeToString() for image in images]

    async def run(self, pipe: Connection) -> None:
        """Learns the answers, and asks."""
        try:
            async with self._channel() as classify:
                self._labels = [_label(await classify(message, timeout=DEADLINE_S)) for message in self._messages]
        except (grpc.aio.AioRpcError, DecodeError, IndexError) as error:
            pipe.send(error.code().name if isinstance(error, grpc.aio.AioRpcError) else "it does not classify")
            return
        pipe.send("")
        asking = [asyncio.create_task(work()) for work in (self._one_by_one, self._on_schedule, self._as_newcomer)]
        await self._report(pipe)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _report(self, pipe: Connection) -> None:
        """Answers each question about a time, until nobody is there to ask."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                since_s, until_s = await loop.run_in_executor(None, pipe.recv)
                while time.monotonic() < until_s or any(due_s < until_s for due_s in self._due):
                    await asyncio.sleep(0.01)
                pipe.send([tuple(call) for call in self._calls if since_s <= call.due_s < until_s])
                self._calls = [call for call in self._calls if call.due_s >= until_s]
            except (EOFError, OSError):
                return

    async def _one_by_one(self) -> None:
        async with self._channel() as classify:
            while True:
                await self._call(classify, time.monotonic())
                await asyncio.sleep(PAUSE_S)

    async def _on_schedule(self) -> None:
        """Calls on a schedule. Latency counts from when a call was due: what holds up the client holds up its calls."""
        async with self._channel() as classify, asyncio.TaskGroup() as calls:
            due_s = time.monotonic()
            while True:
                due_s += INTERVAL_S
                await asyncio.sleep(due_s - time.monotonic())
                calls.create_task(self._call(classify, due_s))

    async def _as_newcomer(self) -> None:
        while True:
            due_s = time.monotonic()
            async with self._channel() as classify:
                await self._call(classify, due_s, is_newcomer=True)
            await asyncio.sleep(NEWCOMER_S)

    async def _call(self, classify: Any, due_s: float, *, is_newcomer: bool = False) -> None:
        self._due.add(due_s)
        number = int(due_s * 1e6) % NUM_IMAGES
        try:
            found = _label(await classify(self._messages[number], timeout=DEADLINE_S))
            fault = "" if found == self._labels[number] else f"WRONG: {found} instead of {self._labels[number]}"
        except grpc.aio.AioRpcError as error:
            fault = error.code().name
        except (DecodeError, IndexError):
            fault = "WRONG: no answer to one image"
        self._calls.append(Call(due_s, time.monotonic() - due_s, fault, is_newcomer))
        self._due.discard(due_s)

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        options = [*OPTIONS, *proxy_options(self._target)]
        async with grpc.aio.insecure_channel(self._target, options=options) as channel:
            yield channel.unary_unary(f"/{SERVICE}/Classify")


def _label(reply: bytes) -> int:
    """Reads the label of the one image. Raises DecodeError or IndexError for what is no answer to one image."""
    (classification,) = [*pb.ClassifyResponse.FromString(reply).classifications] or [pb.Classification()]
    return classification.predictions[0].label


def p99_ms(calls: Sequence[Call]) -> float:
    """Returns the 99th percentile of what right answers on lasting connections took; without one, the deadline."""
    taken_s = [call.taken_s for call in calls if not (call.fault or call.is_newcomer)]
    return 1e3 * float(np.quantile(taken_s or [DEADLINE_S], 0.99))
