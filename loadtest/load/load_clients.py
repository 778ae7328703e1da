"""Clients that offer load: many calls are handed over at once, and what became of them is taken in bulk.

The native one is a thread of Rust with one call of Python for many requests. grpcio's takes a hundred microseconds of
Python for each; it stays for machines where the native package cannot be built. Nothing is repeated: a retry would hide
a failure.
"""

import asyncio
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray

from atelier.channel import proxy_options

NATIVE, GRPCIO = "native", "grpcio"
IS_NATIVE_HERE = importlib.util.find_spec("atelier_native") is not None
BEST = NATIVE if IS_NATIVE_HERE else GRPCIO
OK = grpc.StatusCode.OK.value[0]
EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
STATUSES = {status.value[0]: status for status in grpc.StatusCode}

CHANNEL_OPTIONS = [
    # No retry policy. What a server refused without having seen it (REFUSED_STREAM), grpc sends again by itself; the
    # latency has it.
    ("grpc.use_local_subchannel_pool", 1),  # or the channels share one connection
    ("grpc.max_receive_message_length", -1),
]
LARGEST_TAKE = 4096

Integers = NDArray[np.int64]


class Answers(NamedTuple):
    """Outcomes of calls, one an entry; times are those of the monotonic clock."""

    numbers: Integers
    sent_ns: Integers
    done_ns: Integers
    codes: NDArray[np.uint8]  # gRPC's
    replies: bytes  # one after the other; of a call that failed, the status's message
    ends: Integers  # of each, in `replies`

    def reply(self, position: int) -> bytes:
        """Returns one of the replies."""
        return self.replies[int(self.ends[position - 1]) if position else 0 : int(self.ends[position])]

    def failure(self, position: int) -> str:
        """Returns the status of a call that failed, with its message."""
        status = STATUSES.get(int(self.codes[position]), grpc.StatusCode.UNKNOWN)
        return f"{status.name}: {unquote(self.reply(position).decode(errors='replace'))}"


def joined(parts: Sequence[Answers]) -> Answers:
    """Returns several as one; there must be one."""
    numbers, sent_ns, done_ns, codes, replies, ends = zip(*parts, strict=True)
    before = np.cumsum([0, *map(len, replies[:-1])])
    return Answers(
        np.concatenate(numbers),
        np.concatenate(sent_ns),
        np.concatenate(done_ns),
        np.concatenate(codes),
        b"".join(replies),
        np.concatenate([each + start for each, start in zip(ends, before, strict=True)]),
    )


class NativeClient:
    """Makes unary calls of one method with raw messages, on several connections in turn: see native/src/load_client."""

    def __init__(self, target: str, method: str, num_connections: int) -> None:
        import atelier_native

        self._client = atelier_native.LoadClient(target, method, num_connections)
        self.close: Callable[[], None] = self._client.close  # gives up what is under way

    def submit(
        self,
        numbers: Integers,
        messages: Sequence[bytes],
        timeout_s: float,
        due_ns: Integers | None = None,
        late_s: float | None = None,
    ) -> None:
        """Makes the calls at once; or each when it is due, and returns when the last was.

        A call is given up `timeout_s` after it was due, sent or not; what cannot be sent within `late_s` of that is not
        sent at all.
        """
        self._client.submit(numbers, messages, timeout_s, due_ns, late_s)

    def take(self, timeout_s: float) -> Answers:
        """Returns what became of calls since the last time; waits for some."""
        numbers, sent_ns, done_ns, codes, replies, ends = self._client.take(timeout_s)
        return Answers(
            np.frombuffer(numbers, np.int64),
            np.frombuffer(sent_ns, np.int64),
            np.frombuffer(done_ns, np.int64),
            np.frombuffer(codes, np.uint8),
            replies,
            np.frombuffer(ends, np.int64),
        )


class GrpcioClient:
    """Does the same by grpcio, on an event loop in a thread of its own: for machines without the native package."""

    def __init__(self, target: str, method: str, num_connections: int) -> None:
        self._answered: queue.SimpleQueue[tuple[int, int, int, int, bytes]] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        options = CHANNEL_OPTIONS + proxy_options(target)
        self._channels: list[grpc.aio.Channel] = []
        self._methods: list[Any] = []
        asyncio.run_coroutine_threadsafe(self._open(target, method, options, num_connections), self._loop).result()

    def submit(
        self,
        numbers: Integers,
        messages: Sequence[bytes],
        timeout_s: float,
        due_ns: Integers | None = None,
        late_s: float | None = None,
    ) -> None:
        """Does what NativeClient's does."""
        due = [time.monotonic_ns()] * len(messages) if due_ns is None else due_ns.tolist()
        limits = [
            (at_ns + round((timeout_s if late_s is None else late_s) * 1e9), at_ns + round(timeout_s * 1e9))
            for at_ns in due
        ]
        calls = list(zip(numbers.tolist(), messages, limits, strict=True))
        begin = 0
        while begin < len(calls):
            time.sleep(max(0, due[begin] - time.monotonic_ns()) / 1e9)
            end = max(begin + 1, int(np.searchsorted(due, time.monotonic_ns(), "right")))
            self._loop.call_soon_threadsafe(self._start, calls[begin:end])
            begin = end

    def take(self, timeout_s: float) -> Answers:
        """Does what NativeClient's does."""
        taken = []
        try:
            taken.append(self._answered.get(timeout=timeout_s))
            while len(taken) < LARGEST_TAKE:
                taken.append(self._answered.get_nowait())
        except queue.Empty:
            pass
        columns = np.array([answer[:4] for answer in taken], np.int64).reshape(-1, 4).T
        replies = [answer[4] for answer in taken]
        ends = np.cumsum([len(reply) for reply in replies], dtype=np.int64)
        return Answers(columns[0], columns[1], columns[2], columns[3].astype(np.uint8), b"".join(replies), ends)

    def close(self) -> None:
        """Does what NativeClient's does."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, target: str, method: str, options: list[tuple[str, Any]], num_connections: int) -> None:
        self._channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(num_connections)]
        self._methods = [channel.unary_unary(method) for channel in self._channels]

    async def _end(self) -> None:
        for channel in self._channels:
            await channel.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, calls: Sequence[tuple[int, bytes, tuple[int, int]]]) -> None:
        for call in calls:
            task = self._loop.create_task(self._ask(*call))
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, number: int, message: bytes, limits: tuple[int, int]) -> None:
        latest_ns, deadline_ns = limits
        sent_ns = time.monotonic_ns()
        if sent_ns >= latest_ns:
            self._answered.put((number, sent_ns, sent_ns, EXPIRED, b"too late to be sent"))
            return
        method = self._methods[number % len(self._methods)]
        try:
            code, reply = OK, await method(message, timeout=(deadline_ns - sent_ns) / 1e9)
        except grpc.RpcError as error:
            status: Any = error
            code, reply = status.code().value[0], (status.details() or "").encode()
        self._answered.put((number, sent_ns, time.monotonic_ns(), code, reply))


LoadClient = NativeClient | GrpcioClient


def open_client(name: str, target: str, method: str, num_connections: int) -> LoadClient:
    """Returns the client of that name; it connects when it is first asked."""
    return (NativeClient if name == NATIVE else GrpcioClient)(target, method, num_connections)
