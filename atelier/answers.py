"""The types of a client's answers, made from the messages on the wire, and its errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atelier.contract import TensorSpec
from atelier.errors import BadDataError, PermissionRefusedError, ProgramError, ResourceUnavailableError
from atelier.wire import classifier_pb2 as pb


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how probable it is."""

    label: int  # 0 to 9
    name: str  # "Ankle boot"
    probability: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """Facts of how the server prepared a picture."""

    inverted: bool  # it was dark on light
    box: tuple[int, int, int, int]  # what was kept: y0, x0, y1, x1 in pixels of the upright picture


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    classifications: tuple[tuple[Prediction, ...], ...]  # per image, in request order: `top_k`, most probable first
    model_name: str
    model_version: str
    queue_us: int  # from arrival at the server to the start of the batch
    inference_us: int  # on the device
    batch_size: int  # images that ran together, those of other requests too; 0 if the server does not report it
    prepared: tuple[Prepared, ...] = ()  # per picture, if that was asked for and the server knows how
    light_pictures: tuple[int, ...] = ()  # those with a light border, though neither prepare nor invert was asked for

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
    backend: str  # "onnxruntime", "torch", "tensorrt", "tensorrt-rtx"
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
    num_probes: int  # images of known logits that the server ran before it served; 0 where it does not tell
    max_abs_diff_here: float  # the largest difference of their logits from the model in float64


class ClassifyError(Exception):
    """The call failed; `status` is the gRPC status code's name, `word` the stable first word of the server's message.

    What gRPC itself fails has a word too: NO_SERVER, NO_ANSWER, CONNECTION_LOST, MESSAGE_TOO_LARGE, CLOSED.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        # gRPC's own messages may begin with the side that they are about.
        match = re.match(r"(?!CLIENT|SERVER)([A-Z][A-Z_]+): ", message)
        self.word = match[1] if match else ""


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


@contextmanager
def program_errors(about: str = "") -> Iterator[None]:
    """Turns ClassifyError into the error that ends a program, with its exit code. `about` begins the message."""
    try:
        yield
    except ClassifyError as error:
        is_too_large = error.word == "MESSAGE_TOO_LARGE"
        kind = BadDataError if is_too_large else PROGRAM_ERRORS.get(error.status, ProgramError)
        raise kind(error.word or error.status, about + error.message.removeprefix(f"{error.word}: ")) from None


def answer_from_response(response: pb.ClassifyResponse) -> Answer:
    """Converts the answer, in the order of the request."""
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
        prepared=tuple(
            Prepared(picture.inverted, (picture.box.y0, picture.box.x0, picture.box.y1, picture.box.x1))
            for picture in response.prepared
        ),
        light_pictures=tuple(response.light_pictures),
    )


def model_from_response(response: pb.GetModelResponse) -> ModelDescription:
    """Converts the description, field by field: the names are the same."""
    fields = {field.name: getattr(response, field.name) for field in response.DESCRIPTOR.fields}
    fields["input"], fields["output"] = _tensor_spec(response.input), _tensor_spec(response.output)
    fields["classes"] = tuple(response.classes)
    return ModelDescription(**fields)


def _tensor_spec(spec: pb.TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=tuple(spec.shape))
