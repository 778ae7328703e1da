"""Answers atelier.v1.Classifier on a Ray cluster: Ray's gRPC proxy carries the calls, our engine runs in its replicas.

Ray hands over what gRPC's handlers make of a message, and sends what `SerializeToString` returns: so bytes go in and
out, and the service is the one behind grpcio's front end. Ray does not hand over the call's deadline.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from ray import serve

from atelier.errors import DeviceError
from atelier.wire import SERVICE
from serving.config import ServerConfig
from serving.errors import RequestError
from serving.frontends.grpcio.classifier import ClassifierService
from serving.frontends.grpcio.versions import Versions
from serving.models import load_model

METHODS = ("Classify", "GetModel")

logger = logging.getLogger("ray.serve")


def add_classifier_to_server(servicer: Any, server: Any) -> None:
    """Registers the methods with Ray's proxy, which calls this with a servicer and a server of its own."""
    handlers: dict[str, Any] = {
        f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS
    }
    server.add_generic_rpc_handlers((ProxyHandler(handlers),))


class ProxyHandler(grpc.ServiceRpcHandler):
    """Routes calls to what Ray has put in the place of each method, and sends no text of Ray's to the client."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._method_handlers = handlers  # Ray looks for them here

    def service_name(self) -> str:
        """Names the service for Ray's reflection."""
        return SERVICE

    def service(self, call: Any) -> Any:
        """Finds the handler of a call; None makes grpcio answer UNIMPLEMENTED."""
        handler = self._method_handlers.get(call.method)
        return handler and handler._replace(unary_unary=_with_our_words(handler.unary_unary))


def _with_our_words(answer: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Calls that Ray lost, such as those of a replica that died, end as UNAVAILABLE: they may be repeated."""

    async def handle(message: bytes, context: Any) -> bytes:
        reply = await answer(message, context)
        details = context.details() or b""
        text = details.decode(errors="replace") if isinstance(details, bytes) else details
        if context.code() not in (None, 0, grpc.StatusCode.OK) and not re.match(r"[A-Z_]+: ", text):
            logger.error("a call was lost: %s", text)
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("REPLICA_LOST: Ray could not have this call answered (retry: another may serve)")
        return reply

    return handle


class Written:
    """Holds an answer that is serialised already."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    def SerializeToString(self) -> bytes:  # noqa: N802 - Ray calls it so
        """Returns the message."""
        return self._message


@serve.deployment
class Classifier:
    """Runs one engine; Ray starts as many as serve.yaml says, and replaces those that die or are unhealthy."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it
        config = ServerConfig(**settings | {"repository": Path(settings["repository"])})
        self._failure: DeviceError | None = None
        versions = Versions(await asyncio.to_thread(load_model, config), config, on_failure=self._note)
        await versions.current.engine.start()
        self._service = ClassifierService(versions, config)
        self._deadline_s = config.limits.default_deadline_s

    async def Classify(self, message: bytes, grpc_context: Any) -> Written:  # noqa: N802 - the name of the method
        """Answers one call."""
        return await self._answer(self._service.classify, message, grpc_context)

    async def GetModel(self, message: bytes, grpc_context: Any) -> Written:  # noqa: N802
        """Says what is served."""
        return await self._answer(self._service.get_model, message, grpc_context)

    def check_health(self) -> None:
        """Tells Ray to replace the replica whose device is given up."""
        if self._failure is not None:
            raise self._failure

    def _note(self, failure: DeviceError) -> None:
        self._failure = failure

    async def _answer(
        self, method: Callable[[bytes, float], Awaitable[bytes]], message: bytes, context: Any
    ) -> Written:
        """Maps errors to statuses here: Ray would send an exception's text, with its traceback."""
        try:
            return Written(await method(message, time.monotonic() + self._deadline_s))
        except RequestError as error:
            failure = error
        except Exception:
            logger.exception("a call failed")
            failure = RequestError("INTERNAL", "the server failed on this request", "see the replica's log")
        context.set_code(grpc.StatusCode[failure.status])
        context.set_details(str(failure))
        if failure.retry_pushback_ms is not None:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", str(failure.retry_pushback_ms))])
        return Written(b"")


def application(settings: dict[str, Any]) -> Any:
    """Builds the application from `args` of serve.yaml, which are settings of the server."""
    return Classifier.bind(settings)  # type: ignore[attr-defined] # by the decorator
