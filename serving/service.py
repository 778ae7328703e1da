"""What Classify and GetModel do, from message bytes to message bytes; no gRPC library in sight.

A front end (rpc.py for grpcio) hands over the raw message and its deadline, and maps RequestError to a status.
Working on bytes lets a malformed message be answered as what it is, a bad request.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from atelier.contract import Images, TensorSpec
from atelier.wire import classifier_pb2 as pb
from serving.batcher import Batcher
from serving.config import ServerConfig
from serving.errors import ExpiredError, InvalidRequestError, OverloadedError, UnknownModelError
from serving.metrics import NO_METRICS, Metrics
from serving.pictures.decode import image_from_picture
from serving.pictures.raw_images import images_from_bytes
from serving.response import ResponseWriter
from serving.served_model import ServedModel

MANY_PICTURES = 16  # of more, decoding takes long; requests of so many may take up half of the queue

RequestMessage = TypeVar("RequestMessage", bound=Message)


class ClassifierService:
    """atelier.v1.Classifier. Raises RequestError, whose text is meant for the client."""

    def __init__(
        self, model: ServedModel, batcher: Batcher, config: ServerConfig, metrics: Metrics = NO_METRICS
    ) -> None:
        self.num_requests = 0  # answered
        self.num_requests_decoding = 0  # whose pictures wait for their turn
        self._model = model
        self._batcher = batcher
        self._config = config
        self._metrics = metrics
        self._classes = model.manifest.classes
        self._name, self._version = model.manifest.model_name, str(model.manifest.version)
        self._writer = ResponseWriter(self._name, self._version, self._classes)
        # Two threads: enough to overlap, and a bound on the memory that decoding takes at any moment.
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._num_decoding = 0  # pictures
        self._encoded_bytes = 0  # of these pictures
        self._is_done_decoding = asyncio.Event()
        self._is_done_decoding.set()

    async def classify(self, message: bytes, deadline_s: float) -> bytes:
        """ClassifyRequest to ClassifyResponse; `deadline_s` is on the monotonic clock."""
        began_s = time.monotonic()
        request = parse(pb.ClassifyRequest(), message)
        self._check_model(request.model_name, request.model_version)
        top_k = self._checked_top_k(request.top_k)
        if request.pictures:
            images = await self._decoded_pictures(request, deadline_s)
        else:
            images = self._raw_images(request)
        answer = await self._batcher.answer_to(self._batcher.submit(images, deadline_s))
        self.num_requests += 1
        response = self._writer.write(answer, top_k)
        self._metrics.observe_request(time.monotonic() - began_s)
        return response

    async def get_model(self, message: bytes, _deadline_s: float) -> bytes:
        """GetModelRequest to GetModelResponse."""
        request = parse(pb.GetModelRequest(), message)
        self._check_model(request.model_name, request.model_version)
        manifest, backend, config = self._model.manifest, self._model.backend, self._config
        return pb.GetModelResponse(
            model_name=self._name,
            model_version=self._version,
            architecture=manifest.architecture,
            backend=backend.name,
            device=backend.device,
            precision=manifest.precision,
            input=_tensor_spec(manifest.input),
            output=_tensor_spec(manifest.output),
            classes=self._classes,
            max_batch_size=backend.max_batch_size,
            max_images_per_request=config.max_images_per_request,
            max_message_bytes=config.max_message_bytes,
            model_sha256=self._model.sha256,
            checkpoint_sha256=manifest.checkpoint_sha256,
        ).SerializeToString()

    async def finish_decoding(self) -> None:
        """Returns when no accepted picture waits to be decoded: then all that was accepted is the batcher's."""
        await self._is_done_decoding.wait()

    def close(self) -> None:
        """Ends the decoding threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _check_model(self, name: str, version: str) -> None:
        if name and name != self._name:
            raise UnknownModelError(
                "UNKNOWN_MODEL", f"model {name[:64]!r} is not served here", f"ask for {self._name!r}"
            )
        if version and version != self._version:
            what = f"version {version[:64]!r} of {self._name} is not served here"
            raise UnknownModelError("UNKNOWN_VERSION", what, f"ask for {self._version!r}, or leave it empty")

    def _checked_top_k(self, top_k: int) -> int:
        if top_k > len(self._classes):
            limit = f"there are {len(self._classes)} classes: ask for 1 to {len(self._classes)}"
            raise InvalidRequestError("BAD_TOP_K", f"top_k is {top_k}", limit)
        return top_k or 1

    def _raw_images(self, request: pb.ClassifyRequest) -> Images:
        """(N, 1, 28, 28) uint8, a view of the message."""
        if request.invert:
            what = "invert is set, but it is for pictures only"
            raise InvalidRequestError("BAD_INVERT", what, "send 255 - images, which are light on dark")
        images = images_from_bytes(request.images)
        self._check_count(len(images))
        return images

    async def _decoded_pictures(self, request: pb.ClassifyRequest, deadline_s: float) -> Images:
        """(N, 1, 28, 28) uint8, decoded in a thread, off the event loop."""
        if request.images:
            what = "both images and pictures are set, so their order is not defined"
            raise InvalidRequestError("AMBIGUOUS_IMAGES", what, "send two requests")
        self._check_count(len(request.pictures))
        with self._place_for_pictures(request.pictures):
            # One by one: other requests' pictures get their turn between them, and the wait ends when nobody waits.
            images = [
                await self._decoded(picture, index, request.invert, deadline_s)
                for index, picture in enumerate(request.pictures)
            ]
        return np.stack(images)

    async def _decoded(self, picture: bytes, index: int, invert: bool, deadline_s: float) -> NDArray[np.uint8]:
        """(1, 28, 28) uint8."""
        if time.monotonic() >= deadline_s:
            raise ExpiredError("EXPIRED", f"the deadline passed after {index} pictures were decoded")
        decode = partial(image_from_picture, picture, index=index, invert=invert)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)

    @contextmanager
    def _place_for_pictures(self, pictures: Sequence[bytes]) -> Iterator[None]:
        """Raises OverloadedError where too many pictures, or too many bytes of them, wait to be decoded."""
        num_bytes, limit = sum(map(len, pictures)), self._config.max_queue_size
        cure = "try again later, or raise"
        if len(pictures) > MANY_PICTURES:
            limit = max(limit // 2, self._config.max_images_per_request)  # the rest is for small requests
        if self._num_decoding + len(pictures) > limit:
            what = f"{self._num_decoding} pictures wait to be decoded, and {len(pictures)} more would exceed {limit}"
            raise OverloadedError("QUEUE_FULL", what, f"{cure} --max-queue-size")
        limit = self._config.max_encoded_bytes
        if self._encoded_bytes + num_bytes > limit:
            what = f"{self._encoded_bytes} bytes of pictures wait, and {num_bytes} more would exceed {limit}"
            raise OverloadedError("QUEUE_FULL", what, f"{cure} --max-encoded-bytes")
        self.num_requests_decoding += 1
        self._num_decoding += len(pictures)
        self._encoded_bytes += num_bytes
        self._is_done_decoding.clear()
        try:
            yield
        finally:
            self.num_requests_decoding -= 1
            self._num_decoding -= len(pictures)
            self._encoded_bytes -= num_bytes
            if not self._num_decoding:
                self._is_done_decoding.set()

    def _check_count(self, num_images: int) -> None:
        limit = self._config.max_images_per_request
        if num_images > limit:
            raise InvalidRequestError("TOO_MANY_IMAGES", f"{num_images} images in one request", f"send at most {limit}")


def parse(request: RequestMessage, message: bytes) -> RequestMessage:
    """The message, filled from bytes. Raises InvalidRequestError where they are none."""
    try:
        request.ParseFromString(message)
    except DecodeError:
        what = f"the {len(message)} bytes are not a {request.DESCRIPTOR.full_name}"
        raise InvalidRequestError("MALFORMED", what, "build the message from its .proto file") from None
    return request


def _tensor_spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape)
