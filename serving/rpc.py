"""A call on the grpcio side: its messages, its deadline, its status. What a call means stands elsewhere.

Three habits of grpcio shape this file. It sends the text of an exception to the client, so none may escape a handler.
It waits for a message without limit, so every method is registered as client-streaming (the same bytes on the wire) and
reads its messages under a timeout. Each method that is registered by name makes every call of all methods dearer, so
one generic handler routes them all.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from serving.config import ServerConfig
from serving.errors import ExpiredError, InvalidRequestError, NotServingError, OverloadedError, RequestError
from serving.metrics import Metrics, place_of_calls

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
# An AbortError belongs to a call that has its status already.
Failure: TypeAlias = RequestError | grpc.aio.AbortError
# One message and its deadline on the monotonic clock -> the answer. Refused while draining.
Method = Callable[[bytes, float], Awaitable[bytes]]
# Messages as they come -> answers, written to the context. Goes on while draining.
Conversation = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]


class RpcHandler(grpc.GenericRpcHandler):
    """Routes calls by their path, hands over raw messages, and turns RequestError into a status."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        conversations: Mapping[str, Conversation],
        config: ServerConfig,
        metrics: Metrics,
    ) -> None:
        self.refusal: NotServingError | None = None  # set while draining
        self._config = config
        self._metrics = metrics
        self._reader = MessageReader(config.message_timeout_s, max_waiting=max(1, config.max_concurrent_requests // 2))
        self._handlers: dict[str, Handler] = {
            path: grpc.stream_unary_rpc_method_handler(self._method_handler(method, _calls_of(path)))
            for path, method in methods.items()
        }
        for path, conversation in conversations.items():
            handler = self._conversation_handler(conversation, _calls_of(path))
            self._handlers[path] = grpc.stream_stream_rpc_method_handler(handler)

    def service(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """None makes grpcio answer UNIMPLEMENTED."""
        handler = self._handlers.get(call.method)
        if handler is None:
            self._metrics.count_call(_calls_of(""), "UNIMPLEMENTED")
        return handler

    def _method_handler(self, method: Method, calls: int) -> Callable[..., Coroutine[Any, Any, bytes]]:
        """`calls`: where the metrics count them."""

        async def handle(_messages: Any, context: Context) -> bytes:
            outcome = await self._outcome_of(method, calls, context)
            if isinstance(outcome, bytes):
                self._metrics.count_call(calls, "OK")
                return outcome
            self._metrics.count_call(calls, _status_of(outcome, context))
            return await _abort(context, outcome)

        return handle

    async def _outcome_of(self, method: Method, calls: int, context: Context) -> "bytes | Failure":
        try:
            self._check_is_serving()
            message = await self._reader.read(context)
            if message is None:
                raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one")
            self._check_is_serving()  # it may have come late
            left_s = cast("float | None", context.time_remaining())
            if left_s is None:
                left_s = self._config.default_deadline_s
            return await method(message, time.monotonic() + min(left_s, self._config.max_deadline_s))
        except asyncio.CancelledError:
            self._metrics.count_call(calls, _end_by_client(context))
            raise
        except Exception as error:
            return _failure_from(error)

    def _conversation_handler(self, conversation: Conversation, calls: int) -> Callable[..., Coroutine[Any, Any, None]]:
        async def handle(_messages: Any, context: Context) -> None:
            failure = await self._failure_of(conversation, calls, context)
            self._metrics.count_call(calls, "OK" if failure is None else _status_of(failure, context))
            if failure is not None:
                await _abort(context, failure)

        return handle

    async def _failure_of(self, conversation: Conversation, calls: int, context: Context) -> "Failure | None":
        try:
            await conversation(self._messages(context), context)
            return None
        except asyncio.CancelledError:
            self._metrics.count_call(calls, _end_by_client(context))
            raise
        except Exception as error:
            return _failure_from(error)

    def _check_is_serving(self) -> None:
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)

    async def _messages(self, context: Context) -> AsyncIterator[bytes]:
        while (message := await self._reader.read(context)) is not None:
            yield message


class MessageReader:
    """Reads a call's next message, and ends calls that do not send theirs in time.

    One timer for all calls that are being read: an asyncio.timeout for each took a tenth of the server's throughput.
    A call whose headers have come waits for its message, and waiting costs a stranger nothing: so of more than
    `max_waiting` the oldest ends, and those whose message is on its way have room.
    """

    def __init__(self, timeout_s: float, *, max_waiting: int) -> None:
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._began_s: dict[asyncio.Task[Any], float] = {}  # oldest first
        self._ended: dict[asyncio.Task[Any], RequestError] = {}
        self._next_check: asyncio.TimerHandle | None = None
        self._check_due_s = 0.0

    async def read(self, context: Context) -> bytes | None:
        """None where the client sends no more. Raises ExpiredError or OverloadedError where the message is late."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._began_s[task] = time.monotonic()
        if self._next_check is None:
            self._check_in(self._timeout_s)
        elif len(self._began_s) > self._max_waiting:
            what = f"{self._max_waiting} calls wait for their messages, and this one has waited longest"
            self._end_oldest(OverloadedError("TOO_MANY_WAITING", what, "send headers and message together"))
        try:
            message: Any = await context.read()
        except asyncio.CancelledError:
            if task not in self._ended:
                raise  # by the client
            task.uncancel()
            raise self._ended[task] from None
        finally:
            self._began_s.pop(task, None)
            self._ended.pop(task, None)
        return message if isinstance(message, bytes) else None  # grpc.aio.EOF

    def _check_in(self, delay_s: float) -> None:
        self._check_due_s = time.monotonic() + delay_s
        self._next_check = asyncio.get_running_loop().call_later(delay_s, self._end_late_reads)

    def _end_late_reads(self) -> None:
        self._next_check = None
        if time.monotonic() - self._check_due_s > 0.5:  # the process stood still, and messages may lie here unread
            self._check_in(0.2)
            return
        while self._began_s:
            left_s = next(iter(self._began_s.values())) + self._timeout_s - time.monotonic()
            if left_s > 0:
                self._check_in(left_s)
                return
            what = f"no whole message came within {self._timeout_s:g} s of the headers"
            self._end_oldest(ExpiredError("SLOW_MESSAGE", what))

    def _end_oldest(self, reason: RequestError) -> None:
        task = next(iter(self._began_s))
        del self._began_s[task]
        self._ended[task] = reason
        task.cancel()


def _calls_of(path: str) -> int:
    """Where the metrics count calls of /package.Service/Method."""
    return place_of_calls(path.rpartition("/")[2])


def _status_of(failure: Failure, context: Context) -> str:
    if isinstance(failure, RequestError):
        return failure.status
    return getattr(context.code(), "name", "UNKNOWN")  # it was set when the call was aborted


def _end_by_client(context: Context) -> str:
    """gRPC cancels a call whose client has gone, and one whose deadline has passed."""
    return "DEADLINE_EXCEEDED" if cast("float | None", context.time_remaining()) == 0 else "CANCELLED"


def _failure_from(error: Exception) -> Failure:
    """What the call ends with, without its traceback and what it happened in; of an unforeseen error, nothing.

    grpcio ties a call and the error that ended it into a cycle of references: a traceback would keep the call's whole
    message in it, until the garbage collector comes by.
    """
    if isinstance(error, RequestError | grpc.aio.AbortError):
        failure: Failure = error
    else:
        logger.error("a call failed", exc_info=error)
        failure = RequestError("INTERNAL", "the server failed on this request", "see the server's log")
    failure.__context__ = failure.__cause__ = None
    return failure.with_traceback(None)


async def _abort(context: Context, failure: Failure) -> NoReturn:
    """Ends the call with the error's status."""
    if isinstance(failure, grpc.aio.AbortError):  # the call has its status already
        raise failure
    if failure.retry_pushback_ms is not None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(failure.retry_pushback_ms)),))
    await context.abort(grpc.StatusCode[failure.status], str(failure))
