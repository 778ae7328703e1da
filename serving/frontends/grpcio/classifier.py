"""Implements Classify and GetModel, from message bytes to message bytes; no gRPC library in sight.

calls.py hands over the raw message and its deadline, and maps RequestError to a status. Working on bytes lets a
malformed message be answered as what it is, a bad request.
"""

import time
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from atelier.contract import Images
from atelier.wire import classifier_pb2 as pb
from serving.config import ServerConfig
from serving.errors import InvalidRequestError
from serving.frontends.grpcio.versions import Versions
from serving.metrics import NO_METRICS, Metrics
from serving.pictures.decoder_pool import DecoderPool
from serving.pictures.kinds import images_from_bytes
from serving.pictures.reading import Reading, ReadPicture, images_of

RequestMessage = TypeVar("RequestMessage", bound=Message)


class ClassifierService:
    """Implements atelier.v1.Classifier. Raises RequestError, whose text is meant for the client."""

    def __init__(self, versions: Versions, config: ServerConfig, metrics: Metrics = NO_METRICS) -> None:
        self.num_requests = 0  # answered
        self.pictures = DecoderPool(config)
        self._versions = versions
        self._config = config
        self._metrics = metrics

    async def classify(self, message: bytes, deadline_s: float, peer: str = "") -> bytes:
        """Answers a ClassifyRequest with a ClassifyResponse; `deadline_s` is on the monotonic clock."""
        began_s = time.monotonic()
        request = parse(pb.ClassifyRequest(), message)
        with self._versions.find(request.model_name, request.model_version) as served:
            top_k = _checked_top_k(request.top_k, served.classes)
            notes = b""
            if request.pictures:
                images, notes = await self._decoded_pictures(request, deadline_s)
            else:
                images = self._raw_images(request)
            answer = await served.classify(images, deadline_s, peer)
        self.num_requests += 1
        response = served.writer.write(answer, top_k) + notes
        self._metrics.observe_request(time.monotonic() - began_s)
        return response

    async def get_model(self, message: bytes, _deadline_s: float, _peer: str = "") -> bytes:
        """Answers a GetModelRequest with a GetModelResponse."""
        request = parse(pb.GetModelRequest(), message)
        return self._versions.find(request.model_name, request.model_version).description

    def _raw_images(self, request: pb.ClassifyRequest) -> Images:
        """Returns (N, 1, 28, 28) uint8, a view of the message."""
        if request.invert:
            what = "invert is set, but it is for pictures only"
            raise InvalidRequestError("BAD_INVERT", what, "send 255 - images, which are light on dark")
        if request.prepare:
            what = "prepare is set, but it is for pictures only"
            raise InvalidRequestError("BAD_PREPARE", what, "send the photographs as pictures")
        images = images_from_bytes(request.images)
        self.check_count(len(images))
        return images

    async def _decoded_pictures(self, request: pb.ClassifyRequest, deadline_s: float) -> tuple[Images, bytes]:
        """Decodes the pictures in a thread, off the event loop: (N, 1, 28, 28) uint8, and what to say of them."""
        if request.images:
            what = "both images and pictures are set, so their order is not defined"
            raise InvalidRequestError("AMBIGUOUS_IMAGES", what, "send two requests")
        self.check_count(len(request.pictures))
        reading = Reading(invert=request.invert, prepare=request.prepare)
        pictures = await self.pictures.decode(request.pictures, reading, deadline_s=deadline_s)
        return images_of(pictures), _notes_of(pictures)

    def check_count(self, num_images: int) -> None:
        """Raises InvalidRequestError for more images than a request may have."""
        limit = self._config.max_images_per_request
        if num_images > limit:
            raise InvalidRequestError("TOO_MANY_IMAGES", f"{num_images} images in one request", f"send at most {limit}")


def _notes_of(pictures: list[ReadPicture]) -> bytes:
    """Serialises what a ClassifyResponse says of its pictures, to stand behind the rest of it."""
    response = pb.ClassifyResponse(light_pictures=[i for i, picture in enumerate(pictures) if picture.is_light])
    for picture in pictures:
        if picture.prepared is not None:
            y0, x0, y1, x1 = picture.prepared.box
            response.prepared.add(inverted=picture.prepared.inverted, box=pb.Box(y0=y0, x0=x0, y1=y1, x1=x1))
    return response.SerializeToString()


def _checked_top_k(top_k: int, classes: Sequence[str]) -> int:
    if top_k > len(classes):
        limit = f"there are {len(classes)} classes: ask for 1 to {len(classes)}"
        raise InvalidRequestError("BAD_TOP_K", f"top_k is {top_k}", limit)
    return top_k or 1


def parse(request: RequestMessage, message: bytes) -> RequestMessage:
    """Parses the message from bytes. Raises InvalidRequestError if it is malformed."""
    try:
        request.ParseFromString(message)
    except DecodeError:
        what = f"the {len(message)} bytes are not a {request.DESCRIPTOR.full_name}"
        raise InvalidRequestError("MALFORMED", what, "build the message from its .proto file") from None
    return request
