"""Ask a server: `Client`, and `AsyncClient` for asyncio; or `python -m serving.client FILE...` from a shell.

    with Client("localhost:50051") as client:
        print(client.classify(images).labels)

Every call has a deadline. What a restarting server refuses, gRPC itself retries; see channel.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from numpy.typing import NDArray

from protos import classifier_pb2 as pb
from serving.answers import (
    Answer,
    ClassifyError,
    ModelDescription,
    Prediction,
    answer_from_response,
    classify_errors,
    model_from_response,
    program_errors,
    request_from_images,
    request_from_pictures,
)
from serving.channel import CHANNEL_OPTIONS, Methods
from serving.errors import MissingInputError, ResourceUnavailableError, UsageError, run_program

__all__ = ["Answer", "AsyncClient", "ClassifyError", "Client", "ModelDescription", "Prediction", "program_errors"]

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 5.0


class Client(Methods):
    """A connection that threads may share. Calls raise ClassifyError where they fail, after the retries.

    Nothing is connected before the first call; `target` is gRPC's, such as "localhost:50051" or "unix:/run/atelier".
    """

    def __init__(self, target: str = DEFAULT_TARGET) -> None:
        super().__init__(grpc.insecure_channel(target, options=CHANNEL_OPTIONS))

    def classify(self, images: NDArray[np.uint8], *, top_k: int = 1, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """(N, 1, 28, 28), (N, 28, 28) or (28, 28) uint8, 0 = background. Raises ValueError for any other array."""
        request = request_from_images(images, top_k)
        with classify_errors():
            return answer_from_response(self._classify(request, timeout=timeout_s))

    def classify_pictures(
        self,
        pictures: Sequence[bytes | Path],
        *,
        invert: bool = False,
        top_k: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """PNG, JPEG or WebP, up to 16 megapixels; `invert` if they are dark on a light background."""
        request = request_from_pictures(pictures, top_k, invert)
        with classify_errors():
            return answer_from_response(self._classify(request, timeout=timeout_s))

    def model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> ModelDescription:
        """The model that is served, and the limits of its server."""
        with classify_errors():
            return model_from_response(self._get_model(pb.GetModelRequest(), timeout=timeout_s))

    def is_serving(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """The server's health, now: false while it warms up or drains."""
        with classify_errors():
            health: HealthCheckResponse = self._check(HealthCheckRequest(), timeout=timeout_s)
        return health.status == HealthCheckResponse.SERVING

    def wait_until_ready(self, *, timeout_s: float) -> None:
        """Returns once the server serves, which may not even have been started yet."""
        with classify_errors():
            healths = self._watch(HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
            for health in healths:
                if health.status == HealthCheckResponse.SERVING:
                    healths.cancel()
                    return

    def close(self) -> None:
        """Ends the connection, and calls on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Methods):
    """`Client` for asyncio: made and used in one event loop."""

    def __init__(self, target: str = DEFAULT_TARGET) -> None:
        super().__init__(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))

    async def classify(
        self, images: NDArray[np.uint8], *, top_k: int = 1, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Answer:
        """See Client.classify."""
        request = request_from_images(images, top_k)
        with classify_errors():
            return answer_from_response(await self._classify(request, timeout=timeout_s))

    async def classify_pictures(
        self,
        pictures: Sequence[bytes | Path],
        *,
        invert: bool = False,
        top_k: int = 1,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """See Client.classify_pictures."""
        request = request_from_pictures(pictures, top_k, invert)
        with classify_errors():
            return answer_from_response(await self._classify(request, timeout=timeout_s))

    async def model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> ModelDescription:
        """See Client.model."""
        with classify_errors():
            return model_from_response(await self._get_model(pb.GetModelRequest(), timeout=timeout_s))

    async def is_serving(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """See Client.is_serving."""
        with classify_errors():
            health: HealthCheckResponse = await self._check(HealthCheckRequest(), timeout=timeout_s)
        return health.status == HealthCheckResponse.SERVING

    async def wait_until_ready(self, *, timeout_s: float) -> None:
        """See Client.wait_until_ready."""
        with classify_errors():
            healths = self._watch(HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
            async for health in healths:
                if health.status == HealthCheckResponse.SERVING:
                    healths.cancel()
                    return

    async def close(self) -> None:
        """Ends the connection, and calls on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


# --- The command -----------------------------------------------------------------------------------------------------

BAR_WIDTH = 32
EIGHTHS = " ▏▎▍▌▋▊▉"


def main(arguments: list[str]) -> int:
    """`python -m serving.client`."""
    options = _parser().parse_args(arguments)
    if not options.files and not options.health:
        raise UsageError("NO_FILES", "there is no picture to classify", "name PNG, JPEG or WebP files")
    with Client(options.target) as client:
        if options.health:
            _check_health(client, options)
        for path in options.files:
            _classify_file(client, path, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.client", description="Classify pictures of garments.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="PNG, JPEG or WebP, up to 16 megapixels")
    parser.add_argument("--target", default=DEFAULT_TARGET, help="the server's address (default: %(default)s)")
    parser.add_argument("--invert", action="store_true", help="the pictures are dark on a light background")
    parser.add_argument(
        "--top-k",
        type=int,
        choices=range(1, 11),
        default=3,
        metavar="K",
        help="classes per picture (default: %(default)s)",
    )
    parser.add_argument("--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="per picture (default: %(default)s)")
    parser.add_argument("--health", action="store_true", help="only ask whether the server serves: exit 0 or 69")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _check_health(client: Client, options: argparse.Namespace) -> None:
    with program_errors(options.target):
        if not client.is_serving(timeout_s=options.timeout_s):
            what = f"the server at {options.target} does not serve yet, or no more"
            raise ResourceUnavailableError("NOT_SERVING", what, "wait, or see its log")


def _classify_file(client: Client, path: Path, options: argparse.Namespace) -> None:
    """One request per file: a large picture or a bad one is no other's trouble."""
    try:
        picture = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingInputError("NO_PICTURE", f"{path}: {error.strerror}", "name PNG, JPEG or WebP files") from None
    with program_errors(options.target, about=f"{path}: "):
        answer = client.classify_pictures(
            [picture], invert=options.invert, top_k=options.top_k, timeout_s=options.timeout_s
        )
    print(path)
    for prediction in answer.classifications[0]:
        print(f"  {prediction.name:<12} {prediction.probability:6.1%}  {_bar(prediction.probability)}".rstrip())


def _bar(share: float) -> str:
    """Blocks to an eighth of a column on a terminal, number signs elsewhere."""
    if not sys.stdout.isatty():
        return "#" * round(share * BAR_WIDTH)
    whole, eighths = divmod(round(share * BAR_WIDTH * 8), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


if __name__ == "__main__":
    sys.exit(run_program(main))
