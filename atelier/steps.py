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
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio

P = ParamSpec("P")
R = TypeVar("R")


class InThread:
    """Steps that return when they are done."""

    def channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Any) -> Any:
        """Opens a channel; nothing is connected yet."""
        if credentials is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, credentials, options=options)

    event = threading.Event  # makes what `wait` takes

    async def ask(self, method: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        """Returns the answer to one attempt. Raises grpc.RpcError."""
        return method(request, timeout=timeout_s, metadata=metadata)

    async def next_of(self, stream: Any) -> Any:
        """Returns the next message, None at the end of the stream. Raises grpc.RpcError."""
        return next(stream, None)

    async def sleep(self, pause_s: float) -> None:
        """Waits."""
        time.sleep(pause_s)

    async def wait(self, event: Any, limit_s: float | None) -> None:
        """Waits until the event is set, for `limit_s` at most."""
        event.wait(limit_s)

    async def close(self, channel: Any) -> None:
        """Ends the channel and the calls on it."""
        channel.close()


class InLoop:
    """The same steps, which let the event loop do other things meanwhile."""

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

    async def wait(self, event: Any, limit_s: float | None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), limit_s)

    async def close(self, channel: Any) -> None:
        await channel.close()


Steps = InThread | InLoop
Event = threading.Event | asyncio.Event


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Makes an ordinary method of a coroutine whose steps are those of InThread."""

    def call(self: Any, /, *arguments: P.args, **options: P.kwargs) -> R:
        coroutine = method(self, *arguments, **options)
        try:
            coroutine.send(None)
        except StopIteration as done:
            result: R = done.value
            return result
        coroutine.close()
        raise RuntimeError("a step of a blocking client suspended")

    functools.update_wrapper(call, method)
    return call
