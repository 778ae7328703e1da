"""Asks a server: `Client`, and `AsyncClient` for asyncio.

    with Client("localhost:50051") as client:
        print(client.classify(images).labels)

Every call has a deadline. How a server is reached, and what is repeated until then, is in calls.py. The methods are
written once, as coroutines, and `Client` runs them in the caller's thread; see steps.py.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from numpy.typing import ArrayLike

from atelier.answers import (
    Answer,
    ClassifyError,
    ModelDescription,
    Prediction,
    Prepared,
    model_from_response,
    program_errors,
)
from atelier.calls import FIRST_PAUSE_S, Attempts, Connection
from atelier.requests import Picture, checked_timeout_s, is_single, request_from_images, request_from_pictures
from atelier.steps import InLoop, InThread, blocking
from atelier.wire import classifier_pb2 as pb

__all__ = [
    "Answer",
    "AsyncClient",
    "ClassifyError",
    "Client",
    "ModelDescription",
    "Prediction",
    "Prepared",
    "program_errors",
]

DEFAULT_TIMEOUT_S = 5.0


class AsyncClient(Connection):
    """`Client` for asyncio: made and used in one event loop."""

    _steps = InLoop()

    async def classify(
        self, images: ArrayLike, *, top_k: int = 1, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> Answer:
        """Classifies (N, 1, 28, 28), (N, 28, 28) or (28, 28) uint8, 0 = background.

        Takes arrays, tensors on the CPU, 28x28 PIL images of mode L, and lists of them or of integers. Raises
        ValueError for anything else, saying what to pass.
        """
        request = request_from_images(images, top_k)
        if self._coalescer is not None and is_single(request):
            return await self._coalescer.classify(request, checked_timeout_s(timeout_s))
        return await self._answer(request, timeout_s)

    async def classify_pictures(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        prepare: bool = False,
        invert: bool = False,
        top_k: int = 1,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """Classifies PNG, JPEG or WebP pictures, of 8 megapixels and more: paths, contents, open files or PIL images.

        `prepare` if they are photographs: the server takes the background off, cuts to the garment, and inverts what
        is dark on light. `invert`, instead, if they only are dark on light. Raises ValueError for what is no picture,
        OSError for files that cannot be read.
        """
        return await self._answer(request_from_pictures(pictures, top_k, invert, prepare), timeout_s)

    async def model(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> ModelDescription:
        """Returns the model that is served, and the limits of its server."""
        return model_from_response(await self._call(self._get_model, pb.GetModelRequest(), timeout_s))

    async def is_serving(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> bool:
        """Returns the server's health, now: false while it warms up or drains. Of several, whether one serves."""
        try:
            health = await self._call(self._check, HealthCheckRequest(), timeout_s, may_retry=False)
        except ClassifyError as error:
            if error.word == "NOT_SERVING":
                return False
            raise
        return bool(health.status == HealthCheckResponse.SERVING)

    async def wait_until_ready(self, *, timeout_s: float | None) -> None:
        """Returns once the server serves, which may not even have been started yet; of several, once one does."""
        attempts = Attempts(self, timeout_s)
        while True:
            healths = self._watch(HealthCheckRequest(), timeout=attempts.left_s, wait_for_ready=True)
            try:
                while (health := await self._steps.next_of(healths)) is not None:
                    if health.status == HealthCheckResponse.SERVING:
                        healths.cancel()
                        return
                pause_s = FIRST_PAUSE_S  # it ended, in good order: ask the next
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
            await self._steps.sleep(pause_s)

    async def close(self) -> None:
        """Ends the connection, and calls on it."""
        self.is_closed = True
        await self._steps.close(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client(Connection):
    """A connection that threads may share. Calls raise ClassifyError if they fail, after the retries.

    Nothing is connected before the first call. `timeout_s` may be None or infinite: then a call ends only with its
    answer or an error.
    """

    _steps = InThread()

    classify = blocking(AsyncClient.classify)
    classify_pictures = blocking(AsyncClient.classify_pictures)
    model = blocking(AsyncClient.model)
    is_serving = blocking(AsyncClient.is_serving)
    wait_until_ready = blocking(AsyncClient.wait_until_ready)
    close = blocking(AsyncClient.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
