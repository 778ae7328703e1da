"""What a client asks and is answered, in types: from arrays to requests, from responses to answers, from statuses to
errors. No connection here: the clients in client.py, with and without asyncio, share all of it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import classifier_pb2 as pb
from serving.backends.base import IMAGE_SHAPE
from serving.errors import BadDataError, PermissionRefusedError, ProgramError, ResourceUnavailableError
from serving.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how probable it is."""

    label: int  # 0 to 9
    name: str  # "Ankle boot"
    probability: float  # 0 to 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    classifications: tuple[tuple[Prediction, ...], ...]  # per image, in request order: `top_k`, most probable first
    model_name: str
    model_version: str
    queue_us: int  # from arrival at the server to the start of the batch
    inference_us: int  # on the device
    batch_size: int  # images that ran together, those of other requests too; 0 where the server does not tell

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) the most probable label of each image."""
        return np.array([predictions[0].label for predictions in self.classifications], np.int64)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The model that a server serves."""

    model_name: str
    model_version: str
    architecture: str
    backend: str  # "onnxruntime", "torch", "tensorrt"
    device: str  # "cpu", "cuda:0"
    precision: str  # "fp32"
    input: TensorSpec
    output: TensorSpec
    classes: tuple[str, ...]  # the index is the label
    max_batch_size: int
    max_images_per_request: int
    max_message_bytes: int
    model_sha256: str  # of the file that is served
    checkpoint_sha256: str  # of what it was exported from


class ClassifyError(Exception):
    """The call failed; `status` is the gRPC status code's name, `word` the stable first word of the server's message.

    `word` is empty where gRPC itself failed the call: no connection, no answer in time, message too large.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        # gRPC's own messages may begin with the side that they are about.
        match = re.match(r"(?!CLIENT|SERVER)([A-Z][A-Z_]+): ", message)
        self.word = match[1] if match else ""


@contextmanager
def classify_errors() -> Iterator[None]:
    """Turns gRPC's errors, those of grpc.aio too, into ClassifyError."""
    try:
        yield
    except grpc.RpcError as error:
        raise ClassifyError(error.code().name, error.details() or "") from None


# What a program ends with after a call failed with this status; with ProgramError's 70 after any other.
PROGRAM_ERRORS: dict[str, type[ProgramError]] = {
    "INVALID_ARGUMENT": BadDataError,
    "UNAVAILABLE": ResourceUnavailableError,
    "DEADLINE_EXCEEDED": ResourceUnavailableError,
    "RESOURCE_EXHAUSTED": ResourceUnavailableError,
    "CANCELLED": ResourceUnavailableError,
    "UNAUTHENTICATED": PermissionRefusedError,
    "PERMISSION_DENIED": PermissionRefusedError,
}
NO_CONNECTION = {
    "UNAVAILABLE": ("NO_SERVER", "no server answers at", "make serve starts one; --target names another"),
    "DEADLINE_EXCEEDED": ("NO_ANSWER", "no answer in time from", "raise --timeout-s, or see the server's log"),
}


@contextmanager
def program_errors(target: str, about: str = "") -> Iterator[None]:
    """For programs: turns ClassifyError into what ends them, with its exit code. `about` begins the message."""
    try:
        yield
    except ClassifyError as error:
        kind = PROGRAM_ERRORS.get(error.status, ProgramError)
        if not error.word and error.status in NO_CONNECTION:
            word, what, cure = NO_CONNECTION[error.status]
            raise kind(word, f"{what} {target}", cure) from None
        if not error.word and error.status == "RESOURCE_EXHAUSTED":  # gRPC's own limit, met before the server's code
            cure = "scale the picture down, or raise the server's --max-message-bytes"
            raise BadDataError("MESSAGE_TOO_LARGE", about + error.message, cure) from None
        raise kind(error.word or error.status, about + error.message.removeprefix(f"{error.word}: ")) from None


def request_from_images(images: NDArray[np.uint8], top_k: int) -> pb.ClassifyRequest:
    """(N, 1, 28, 28), (N, 28, 28) or (28, 28) uint8 -> a request. Raises ValueError for any other array."""
    if images.dtype != np.uint8:
        contents = "NaN" if images.dtype.kind == "f" and np.isnan(images).any() else str(images.dtype)
        raise ValueError(f"images must be uint8, 0 (background) to 255; these are {contents}")
    if images.shape[-2:] != IMAGE_SHAPE[-2:] or images.ndim > 4 or (images.ndim == 4 and images.shape[1] != 1):
        raise ValueError(f"images must be (N, 1, 28, 28), (N, 28, 28) or (28, 28); these are {images.shape}")
    if not images.size:
        raise ValueError("there is no image to classify")
    return pb.ClassifyRequest(images=images.tobytes(), top_k=top_k)


def request_from_pictures(pictures: Sequence[bytes | Path], top_k: int, invert: bool) -> pb.ClassifyRequest:
    """PNG, JPEG or WebP files, or their contents -> a request. Raises ValueError for none, OSError for unreadable."""
    if not pictures:
        raise ValueError("there is no picture to classify")
    contents = [picture.read_bytes() if isinstance(picture, Path) else picture for picture in pictures]
    return pb.ClassifyRequest(pictures=contents, top_k=top_k, invert=invert)


def answer_from_response(response: pb.ClassifyResponse) -> Answer:
    """The answer, in the order of the request."""
    return Answer(
        classifications=tuple(
            tuple(
                Prediction(prediction.label, prediction.name, prediction.probability)
                for prediction in classification.predictions
            )
            for classification in response.classifications
        ),
        model_name=response.model_name,
        model_version=response.model_version,
        queue_us=response.time.queue_us,
        inference_us=response.time.inference_us,
        batch_size=response.time.batch_size,
    )


def model_from_response(response: pb.GetModelResponse) -> ModelDescription:
    """The description, field by field: the names are the same."""
    fields = {field.name: getattr(response, field.name) for field in response.DESCRIPTOR.fields}
    fields["input"], fields["output"] = _tensor_spec(response.input), _tensor_spec(response.output)
    fields["classes"] = tuple(response.classes)
    return ModelDescription(**fields)


def _tensor_spec(spec: pb.TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=tuple(spec.shape))
