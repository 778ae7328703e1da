"""Adapts grpcio calls: reads messages and deadlines, and maps errors to statuses. What a call means is elsewhere.

Three habits of grpcio shape this file. It sends the text of an exception to the client, so none may escape a handler.
It keeps a unary call's message until the garbage collector comes by, so every method is registered as client-streaming
(the same bytes on the wire) and reads its message itself.
Each method that is registered by name makes every call of all methods dearer, so one generic handler routes them all.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from serving.access import Tokens
from serving.config import ServerConfig
from serving.container_memory import LITTLE_BYTES, Pressure
from serving.errors import ExpiredError, InvalidRequestError, NotServingError, OverloadedError, RequestError
from serving.metrics import Metrics
from serving.request_log import RequestLog

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
# An AbortError belongs to a call that has its status already.
Failure: TypeAlias = RequestError | grpc.aio.AbortError
# One message, its deadline on the monotonic clock, and the connection that it came by -> the answer. Refused while
# draining.
Method = Callable[[bytes, float, str], Awaitable[bytes]]
# Messages as they come -> answers, written to the context. Goes on while draining.
Conversation = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]
Ended = TypeVar("Ended")

UNIMPLEMENTED: int = grpc.StatusCode.UNIMPLEMENTED.value[0]


class Call(NamedTuple):
    """A call that has begun."""

    path: str
    began_s: float  # on the monotonic clock


class RpcHandler(grpc.GenericRpcHandler):
    """Routes calls by their path, hands over raw messages, and turns RequestError into a status."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        conversations: Mapping[str, Conversation],
        config: ServerConfig,
        metrics: Metrics,
        probes: Collection[str],
        log: RequestLog | None = None,
        page_token_sha256: str = "",
    ) -> None:
        """`probes` are the paths of conversations that need no token; `log` hears of each call.

        `page_token_sha256` is the digest of a token that may call besides those of the settings.
        """
        self.refusal: NotServingError | None = None  # set while draining
        self.pressure = Pressure.NOTHING
        self._config = config
        self._metrics = metrics
        self._log = log
        self._tokens = Tokens(config.tokens, page_token_sha256) if config.tokens else None
        self._handlers: dict[str, Handler] = {
            path: grpc.stream_unary_rpc_method_handler(self._method_handler(method, path))
            for path, method in methods.items()
        }
        for path, conversation in conversations.items():
            handler = self._conversation_handler(conversation, path, is_open=path in probes)
            self._handlers[path] = grpc.stream_stream_rpc_method_handler(handler)

    def service(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """Finds the handler of a call; None makes grpcio answer UNIMPLEMENTED."""
        handler = self._handlers.get(call.method)
        if handler is None:
            self._metrics.count_call("other", "UNIMPLEMENTED")
            if self._log is not None:
                self._log.write_call(str(call.method), UNIMPLEMENTED, time.monotonic(), "")
        return handler

    def _method_handler(self, method: Method, path: str) -> Callable[..., Coroutine[Any, Any, bytes]]:
        async def handle(_messages: Any, context: Context) -> bytes:
            return await self._ended(self._answer(method, context), path, context)

        return handle

    def _conversation_handler(
        self, conversation: Conversation, path: str, *, is_open: bool
    ) -> Callable[..., Coroutine[Any, Any, None]]:
        async def converse(messages: AsyncIterator[bytes], context: Context) -> None:
            if not is_open:
                self._check_token(context)
            await conversation(messages, context)

        async def handle(messages: AsyncIterator[bytes], context: Context) -> None:
            await self._ended(converse(messages, context), path, context)

        return handle

    async def _answer(self, method: Method, context: Context) -> bytes:
        """Reads the call's message, and has it answered."""
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        self._check_token(context)
        message: Any = await context.read()
        if not isinstance(message, bytes):  # grpc.aio.EOF
            if _has_expired(context):
                raise ExpiredError("EXPIRED", "the deadline had passed before the message came")
            raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one")
        self._check_memory(len(message))
        left_s = cast("float | None", context.time_remaining())
        if left_s is None:
            left_s = self._config.limits.default_deadline_s
        deadline_s = time.monotonic() + min(left_s, self._config.limits.max_deadline_s)
        return await method(message, deadline_s, context.peer())

    async def _ended(self, work: Awaitable[Ended], path: str, context: Context) -> Ended:
        """Returns what the work of a call comes to, or ends the call with the status of its error; counts either."""
        call = Call(path, time.monotonic())
        try:
            outcome = await work
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter: its client has gone, and we wrote to it
            self._count(call, _end_by_client(context), context)
            raise asyncio.CancelledError from None
        except Exception as error:
            failure = _failure_from(error)
        else:
            self._count(call, "OK", context)
            return outcome
        self._count(call, _status_of(failure, context), context)
        return await _abort(context, failure)  # here, where it has no other error as its context

    def _count(self, call: Call, status: str, context: Context) -> None:
        self._metrics.count_call(_name_of(call.path), status)
        if self._log is not None:
            traceparent = str(dict(context.invocation_metadata() or ()).get("traceparent", ""))
            self._log.write_call(call.path, grpc.StatusCode[status].value[0], call.began_s, traceparent)

    def _check_memory(self, num_bytes: int) -> None:
        """Raises OverloadedError if there is no memory for a message as large as this."""
        if self.pressure is Pressure.ALL or (self.pressure and num_bytes > LITTLE_BYTES):
            most = 0 if self.pressure is Pressure.ALL else LITTLE_BYTES
            what = f"little memory is left, and {num_bytes} bytes exceed the {most} that are still taken at once"
            raise OverloadedError("MEMORY_SHORT", what, "try again later, or give the container more memory")

    def _check_token(self, context: Context) -> None:
        """Raises UnauthenticatedError if tokens are asked for and the call carries none that is known."""
        if self._tokens is not None:
            metadata = context.invocation_metadata() or ()
            self._tokens.check([str(value) for name, value in metadata if name == "authorization"])


def _name_of(path: str) -> str:
    """Returns the method in /package.Service/Method, as the metrics name it."""
    return path.rpartition("/")[2]


def _status_of(failure: Failure, context: Context) -> str:
    if isinstance(failure, RequestError):
        return failure.status
    return getattr(context.code(), "name", "UNKNOWN")  # it was set when the call was aborted


def _end_by_client(context: Context) -> str:
    """Names the status of a call that gRPC cancelled: its client has gone, or its deadline has passed."""
    return "DEADLINE_EXCEEDED" if _has_expired(context) else "CANCELLED"


def _has_expired(context: Context) -> bool:
    return cast("float | None", context.time_remaining()) == 0


def _failure_from(error: Exception) -> Failure:
    """Returns what the call ends with, without traceback and context, and without an unforeseen error's text.

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
    try:
        await context.abort(grpc.StatusCode[failure.status], str(failure))
    except grpc.aio.InternalError:  # the client has gone
        raise asyncio.CancelledError from None
