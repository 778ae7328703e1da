"""Asks a server: `Client`, and `AsyncClient` for asyncio.

    with Client("localhost:50051") as client:
        print(client.classify(images).labels)

Every call has a deadline. What a restarting server refuses is repeated until then; see channel.py.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from numpy.typing import ArrayLike

from atelier.answers import (
    Answer,
    ClassifyError,
    ModelDescription,
    Prediction,
    answer_from_response,
    model_from_response,
    program_errors,
)
from atelier.channel import Attempts, Methods, access_from, channel_options
from atelier.requests import Picture, request_from_images, request_from_pictures
from atelier.wire import classifier_pb2 as pb

__all__ = ["Answer", "AsyncClient", "ClassifyError", "Client", "ModelDescription", "Prediction", "program_errors"]

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 5.0


class Client(Methods):
    """A connection that threads may share. Calls raise ClassifyError if they fail, after the retries.

    Nothing is connected before the first call; `target` is gRPC's, such as "localhost:50051" or "unix:/run/atelier".
    `timeout_s` may be None or infinite: then a call ends only with its answer or an error.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: "bool | str | os.PathLike[str]" = False,
        certificate: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None" = None,
        token: str = "",
    ) -> None:
        """Reads the files that are named; raises ValueError and OSError.

        `tls`: True trusts the system's authorities, a path those in that PEM file. `certificate`: the client's own and
        its key, for mutual TLS. `token`: sent with every call, over TLS or to this machine only.
        """
        options, access = channel_options(target), access_from(target, tls, certificate, token)
        if access.credentials is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            channel = grpc.secure_channel(target, access.credentials, options=options)
        super().__init__(target, channel, access)

    def classify(self, images: ArrayLike, *, top_k: int = 1, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> Answer:
        """Classifies (N, 1, 28, 28), (N, 28, 28) or (28, 28) uint8, 0 = background.

        Takes arrays, tensors on the CPU, 28x28 PIL images of mode L, and lists of them or of integers. Raises
        ValueError for anything else, saying what to pass.
        """
        request = request_from_images(images, top_k)
        return answer_from_response(self._call(self._classify, request, timeout_s))

    def classify_pictures(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        invert: bool = False,
        top_k: int = 1,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """Classifies PNG, JPEG or WebP pictures of up to 16 megapixels: paths, contents, open files or PIL images.

        `invert` if they are dark on a light background. Raises ValueError for what is no picture, OSError for files
        that cannot be read.
        """
        request = request_from_pictures(pictures, top_k, invert)
        return answer_from_response(self._call(self._classify, request, timeout_s))

    def model(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> ModelDescription:
        """Returns the model that is served, and the limits of its server."""
        return model_from_response(self._call(self._get_model, pb.GetModelRequest(), timeout_s))

    def is_serving(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> bool:
        """Returns the server's health, now: false while it warms up or drains."""
        health = self._call(self._check, HealthCheckRequest(), timeout_s, may_retry=False)
        return bool(health.status == HealthCheckResponse.SERVING)

    def wait_until_ready(self, *, timeout_s: float | None) -> None:
        """Returns once the server serves, which may not even have been started yet."""
        attempts = Attempts(self, timeout_s)
        try:
            healths = self._watch(HealthCheckRequest(), timeout=attempts.left_s, wait_for_ready=True)
            for health in healths:
                if health.status == HealthCheckResponse.SERVING:
                    healths.cancel()
                    return
        except grpc.RpcError as error:
            raise attempts.failure(error) from None

    def close(self) -> None:
        """Ends the connection, and calls on it."""
        self.is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_s: float | None, *, may_retry: bool = True) -> Any:
        attempts = Attempts(self, timeout_s, may_retry=may_retry)
        while True:
            try:
                response = method(request, timeout=attempts.left_s, metadata=self.metadata)
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(error))
            else:
                attempts.succeeded()
                return response


class AsyncClient(Methods):
    """`Client` for asyncio: made and used in one event loop."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: "bool | str | os.PathLike[str]" = False,
        certificate: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None" = None,
        token: str = "",
    ) -> None:
        """See Client."""
        options, access = channel_options(target), access_from(target, tls, certificate, token)
        if access.credentials is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            channel = grpc.aio.secure_channel(target, access.credentials, options=options)
        super().__init__(target, channel, access)

    async def classify(
        self, images: ArrayLike, *, top_k: int = 1, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> Answer:
        """Does what Client.classify does."""
        request = request_from_images(images, top_k)
        return answer_from_response(await self._call(self._classify, request, timeout_s))

    async def classify_pictures(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        invert: bool = False,
        top_k: int = 1,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """Does what Client.classify_pictures does."""
        request = request_from_pictures(pictures, top_k, invert)
        return answer_from_response(await self._call(self._classify, request, timeout_s))

    async def model(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> ModelDescription:
        """Does what Client.model does."""
        return model_from_response(await self._call(self._get_model, pb.GetModelRequest(), timeout_s))

    async def is_serving(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> bool:
        """Does what Client.is_serving does."""
        health = await self._call(self._check, HealthCheckRequest(), timeout_s, may_retry=False)
        return bool(health.status == HealthCheckResponse.SERVING)

    async def wait_until_ready(self, *, timeout_s: float | None) -> None:
        """Does what Client.wait_until_ready does."""
        attempts = Attempts(self, timeout_s)
        try:
            healths = self._watch(HealthCheckRequest(), timeout=attempts.left_s, wait_for_ready=True)
            async for health in healths:
                if health.status == HealthCheckResponse.SERVING:
                    healths.cancel()
                    return
        except grpc.RpcError as error:
            raise attempts.failure(error) from None

    async def close(self) -> None:
        """Ends the connection, and calls on it."""
        self.is_closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout_s: float | None, *, may_retry: bool = True) -> Any:
        attempts = Attempts(self, timeout_s, may_retry=may_retry)
        while True:
            try:
                response = await method(request, timeout=attempts.left_s, metadata=self.metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause_s(error))
            else:
                attempts.succeeded()
                return response
