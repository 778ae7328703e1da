"""A call on the grpcio side: its one message, its deadline, its status. What it means stands in service.py.

Two habits of grpcio shape this file. It sends the text of an exception to the client, so none may escape a handler.
It waits for a message without limit, so methods are registered as client-streaming (the same bytes on the wire) and
read their one message under a timeout.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from serving.channel import SERVICE
from serving.config import ServerConfig
from serving.errors import ExpiredError, InvalidRequestError, NotServingError, RequestError

logger = logging.getLogger(__name__)

Method = Callable[[bytes, float], Awaitable[bytes]]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class ClassifierHandler(grpc.GenericRpcHandler):
    """Routes the service's methods, reads one raw message each, and turns RequestError into a status."""

    def __init__(self, methods: dict[str, Method], config: ServerConfig) -> None:
        self.refusal: NotServingError | None = None  # set while draining
        self._config = config
        self._reader = MessageReader(config.message_timeout_s)
        self._handlers: dict[str, Handler] = {
            f"/{SERVICE}/{name}": grpc.stream_unary_rpc_method_handler(self._handler(method))
            for name, method in methods.items()
        }

    def service(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """None makes grpcio answer UNIMPLEMENTED."""
        return self._handlers.get(call.method)

    def _handler(self, method: Method) -> Callable[..., Awaitable[bytes]]:
        async def handle(_messages: Any, context: Context) -> bytes:
            try:
                if self.refusal is not None:
                    raise self.refusal.with_traceback(None)
                message = await self._reader.read(context)
                left_s = cast("float | None", context.time_remaining())
                if left_s is None:
                    left_s = self._config.default_deadline_s
                return await method(message, time.monotonic() + left_s)
            except RequestError as error:
                failure = error
            except Exception:
                logger.exception("a call failed")
                failure = RequestError("INTERNAL", "the server failed on this request", "see the server's log")
            return await _abort(context, failure)

        return handle


class MessageReader:
    """Reads a call's one message, and ends calls that do not send theirs in time.

    One timer for all calls that are being read: an asyncio.timeout for each took a tenth of the server's throughput.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._began_s: dict[asyncio.Task[Any], float] = {}  # oldest first
        self._late: set[asyncio.Task[Any]] = set()
        self._next_check: asyncio.TimerHandle | None = None

    async def read(self, context: Context) -> bytes:
        """Raises ExpiredError where the message is late, InvalidRequestError where there is none."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._began_s[task] = time.monotonic()
        if self._next_check is None:
            self._next_check = asyncio.get_running_loop().call_later(self._timeout_s, self._end_late_reads)
        try:
            message: Any = await context.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise  # by the client
            task.uncancel()
            what = f"no whole message came within {self._timeout_s:g} s of the headers"
            raise ExpiredError("SLOW_MESSAGE", what) from None
        finally:
            del self._began_s[task]
            self._late.discard(task)
        if not isinstance(message, bytes):  # grpc.aio.EOF: the stream ended without one
            raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one ClassifyRequest")
        return message

    def _end_late_reads(self) -> None:
        self._next_check = None
        now_s = time.monotonic()
        for task, began_s in self._began_s.items():
            left_s = began_s + self._timeout_s - now_s
            if left_s > 0:
                self._next_check = asyncio.get_running_loop().call_later(left_s, self._end_late_reads)
                return
            self._late.add(task)
            task.cancel()


async def _abort(context: Context, error: RequestError) -> bytes:
    if error.retry_pushback_ms is not None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(error.retry_pushback_ms)),))
    return await context.abort(grpc.StatusCode[error.status], str(error))
