"""A client's calls: the server's methods on a channel, and what is retried for how long.

Classify changes nothing, so a call may be repeated. A server that is shutting down answers UNAVAILABLE, and CANCELLED
to what reaches it too late; neither has run. Such calls are repeated until their deadline, after the pause that the
server asks for. A server that was never reached is given up within a second: nobody has started one there.
"""

import os
import random
import re
import time
from typing import Any, ClassVar

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from atelier.answers import Answer, ClassifyError, answer_from_response
from atelier.channel import access_from, channel_options, grpc_target, proxy_hint
from atelier.coalescing import Coalescer
from atelier.requests import checked_timeout_s
from atelier.steps import Steps
from atelier.wire import HEALTH, SERVICE
from atelier.wire import classifier_pb2 as pb

DEFAULT_TARGET = "localhost:50051"
RETRYABLE = ("UNAVAILABLE", "CANCELLED")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
PATIENCE_S = 0.6  # with a server that was never reached
# Retries stop while failures outnumber successes by 2,000: a server that keeps refusing is spared (gRFC A6). At 500
# calls/s, a second without a server is as many failures, for each has some attempts.
MAX_TOKENS, MIN_TOKENS = 4000, 2000


class Connection:
    """The common part of both clients: the server's methods on a channel, and the one loop of attempts."""

    _steps: ClassVar[Steps]

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: "bool | str | os.PathLike[str]" = False,
        certificate: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None" = None,
        token: str = "",
        coalesce_ms: float = 0.0,
    ) -> None:
        """Reads the files that are named; raises ValueError and OSError.

        `target`: gRPC's, such as "localhost:50051" or "unix:/run/atelier"; "a:50051,b:50051" and "dns:///name:50051"
        are asked in turn, without those that are dead or do not serve. `tls`: True trusts the system's authorities, a
        path those in that PEM file. `certificate`: the client's own and its key, for mutual TLS. `token`: sent with
        every call, over TLS or to this machine only. `coalesce_ms`: while a call is under way, single images are
        collected for so long and sent together; 0 sends each by itself.
        """
        if not coalesce_ms >= 0:
            raise ValueError(f"coalesce_ms is {coalesce_ms}: pass milliseconds, or 0 to send each image by itself")
        options, access = channel_options(target), access_from(target, tls, certificate, token)
        self.target = target
        self.metadata = access.metadata
        self.tokens = MAX_TOKENS
        self.was_reached = False  # by any call
        self.is_closed = False
        self._channel = channel = self._steps.channel(grpc_target(target), access.credentials, options)
        self._classify = channel.unary_unary(
            f"/{SERVICE}/Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyResponse.FromString,
        )
        self._get_model = channel.unary_unary(
            f"/{SERVICE}/GetModel",
            request_serializer=pb.GetModelRequest.SerializeToString,
            response_deserializer=pb.GetModelResponse.FromString,
        )
        health = {
            "request_serializer": HealthCheckRequest.SerializeToString,
            "response_deserializer": HealthCheckResponse.FromString,
        }
        self._check = channel.unary_unary(f"/{HEALTH}/Check", **health)
        self._watch = channel.unary_stream(f"/{HEALTH}/Watch", **health)
        self._coalescer = Coalescer(self._steps, coalesce_ms / 1e3, self._answer) if coalesce_ms else None

    async def _answer(self, request: pb.ClassifyRequest, timeout_s: float | None) -> Answer:
        return answer_from_response(await self._call(self._classify, request, timeout_s))

    async def _call(self, method: Any, request: Any, timeout_s: float | None, *, may_retry: bool = True) -> Any:
        attempts = Attempts(self, timeout_s, may_retry=may_retry)
        while True:
            try:
                response = await self._steps.ask(method, request, attempts.left_s, self.metadata)
            except grpc.RpcError as error:
                await self._steps.sleep(attempts.pause_s(error))
            else:
                attempts.succeeded()
                return response


class Attempts:
    """Counts the attempts of one call: how much time they have left, and how long to wait before the next."""

    def __init__(self, client: Connection, timeout_s: float | None, *, may_retry: bool = True) -> None:
        """Raises ValueError if the client is closed or the time-out is no number of seconds."""
        if client.is_closed:
            raise ValueError("this client is closed: make a new one")
        self._client = client
        self._may_retry = may_retry
        self._timeout_s = checked_timeout_s(timeout_s)
        self._began_s = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._refusal: grpc.RpcError | None = None  # the last one, which says more than that time is up

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._timeout_s is None else max(0.001, self._timeout_s - self._elapsed_s)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    def succeeded(self) -> None:
        """Notes that the server has answered."""
        self._client.was_reached = True
        self._client.tokens = min(MAX_TOKENS, self._client.tokens + 1)

    def pause_s(self, error: grpc.RpcError) -> float:
        """Returns how long to wait before the next attempt. Raises ClassifyError if there is to be none."""
        client = self._client
        client.tokens = max(0, client.tokens - 1)
        is_unreachable = _is_unreachable(error)
        client.was_reached |= not is_unreachable and error.code().name != "DEADLINE_EXCEEDED"
        asked_s = asked_pause_s(error)
        wait_s = self._pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s  # noqa: S311
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        patience_s = PATIENCE_S if is_unreachable and not client.was_reached else float("inf")
        left_s = min(patience_s - self._elapsed_s, float("inf") if self.left_s is None else self.left_s)
        is_retryable = self._may_retry and not client.is_closed and error.code().name in RETRYABLE
        if error.code().name == "DEADLINE_EXCEEDED" and self._refusal is not None:
            error = self._refusal
        self._refusal = error
        if not is_retryable or client.tokens <= MIN_TOKENS or wait_s < 0 or wait_s >= left_s:
            raise self.failure(error) from None
        return wait_s

    def failure(self, error: grpc.RpcError) -> ClassifyError:
        """Returns the caller's error for gRPC's; what gRPC says of itself gets a word and a cure."""
        status, details, target = error.code().name, error.details() or "", self._client.target
        failure = ClassifyError(status, details)
        if failure.word:
            return failure
        if self._client.is_closed:
            return ClassifyError(status, "CLOSED: the client was closed during this call (make a new one)")
        if "backend unhealthy" in details:  # gRPC's words for what its health checks found
            return ClassifyError(status, f"NOT_SERVING: no server at {target} serves now (wait, or see their logs)")
        if _is_unreachable(error):
            cure = f"make serve starts one; --target names another{proxy_hint(target)}"
            return ClassifyError(status, f"NO_SERVER: {_why_unreachable(details, target)} ({cure})")
        if status == "UNAVAILABLE":
            return ClassifyError(status, f"CONNECTION_LOST: the connection to {target} broke: {details} (try again)")
        if status == "DEADLINE_EXCEEDED":
            cure = "raise --timeout-s, or see the server's log" + proxy_hint(target)
            cure = cure if self._client.was_reached else f"if none runs there, make serve starts one; {cure}"
            return ClassifyError(
                status, f"NO_ANSWER: no answer within {self._timeout_s or 0:g} s from {target} ({cure})"
            )
        if status == "RESOURCE_EXHAUSTED":  # gRPC's own limit, met before the server's code
            cure = "scale the picture down, or raise the server's --max-message-bytes"
            return ClassifyError(status, f"MESSAGE_TOO_LARGE: {details} ({cure})")
        return failure


def _is_unreachable(error: grpc.RpcError) -> bool:
    """Returns whether no connection came about, which gRPC reports in its message alone."""
    details = (error.details() or "").lower()
    signs = ("failed to connect", "resolution failed", "errors resolving", "http1")
    return error.code() is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in signs)


def _why_unreachable(details: str, target: str) -> str:
    if "resolution failed" in details or "errors resolving" in details:
        return f"the name in {target} cannot be resolved"
    if "andshake" in details or "SSL" in details:
        return f"the TLS handshake with {target} failed: only one side has TLS, or they do not trust each other"
    if "http1" in details:
        return f"what answers at {target} does not speak gRPC"
    return f"no server answers at {target}"


def asked_pause_s(error: Any) -> float | None:
    """Returns the pause that the server asks for (gRFC A6); negative if it wants no other attempt."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-retry-pushback-ms":
            return int(value) / 1e3 if re.fullmatch(r"\d{1,9}", value) else -1.0
    return None
