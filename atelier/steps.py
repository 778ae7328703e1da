"""The steps of a call in which a client waits, twice: in the caller's thread, and in an event loop.

All that lies between them is written once, as coroutines. In a thread no step suspends, so `blocking` runs such a
coroutine to its end at once: it costs about three microseconds a call.
"""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import grpc
import grpc.aio

P = ParamSpec("P")
R = TypeVar("R")


class Event(Protocol):
    """The common part of threading.Event and asyncio.Event."""

    def set(self) -> None:
        """Wakes who waits for it."""


class Steps(Protocol):
    """The things that a client does with a channel, and the ways it waits."""

    def channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Any) -> Any:
        """Opens a channel; nothing is connected yet."""

    def event(self) -> Event:
        """Makes an event that `wait` takes."""

    async def ask(self, method: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        """Returns the answer to one attempt. Raises grpc.RpcError."""

    async def next_of(self, stream: Any) -> Any:
        """Returns the next message, None at the end of the stream. Raises grpc.RpcError."""

    async def sleep(self, pause_s: float) -> None:
        """Waits."""

    async def wait(self, event: Any, limit_s: float | None) -> None:
        """Waits until the event is set, for `limit_s` at most."""

    async def close(self, channel: Any) -> None:
        """Ends the channel and the calls on it."""


class InThread:
    """Steps that return when they are done."""

    def channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Any) -> Any:
        if credentials is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, credentials, options=options)

    event = threading.Event

    async def ask(self, method: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        return method(request, timeout=timeout_s, metadata=metadata)

    async def next_of(self, stream: Any) -> Any:
        return next(stream, None)

    async def sleep(self, pause_s: float) -> None:
        time.sleep(pause_s)

    async def wait(self, event: threading.Event, limit_s: float | None) -> None:
        event.wait(limit_s)

    async def close(self, channel: Any) -> None:
        channel.close()


class InLoop:
    """Steps that let the event loop do other things meanwhile."""

    def channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Any) -> Any:
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, credentials, options=options)

    event = asyncio.Event

    async def ask(self, method: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        return await method(request, timeout=timeout_s, metadata=metadata)

    async def next_of(self, stream: Any) -> Any:
        message = await stream.read()
        return None if message is grpc.aio.EOF else message

    async def sleep(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)

    async def wait(self, event: asyncio.Event, limit_s: float | None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), limit_s)

    async def close(self, channel: Any) -> None:
        await channel.close()


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Makes an ordinary method of a coroutine whose steps are those of InThread."""

    def call(self: Any, /, *arguments: P.args, **options: P.kwargs) -> R:
        return result_of(method(self, *arguments, **options))

    functools.update_wrapper(call, method)
    return call


def result_of(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    coroutine.close()
    raise RuntimeError("a step of a blocking client suspended")
