"""Answers what the page asks: the served answer by `Classify`, the values between the layers by a probe."""

import contextlib
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.answers import Answer, ClassifyError, ModelDescription
from atelier.client import AsyncClient
from atelier.contract import Images
from serving.errors import NotServingError, OverloadedError
from serving.manifest import ONNX_NAME
from serving.pictures.photographs import prepared
from serving.playground.errors import PageError
from serving.playground.probe import Floats, Probe
from serving.playground.versions import Versions

SIDE = 28  # of an image
MAX_IMAGES = 1024  # in one request, as a server takes by default
CLASSIFY_TIMEOUT_S = 0.5  # who draws has drawn on by then
PUSHBACK_MS = {error.status: error.retry_pushback_ms for error in (OverloadedError, NotServingError)}


@dataclass(frozen=True, kw_only=True)
class Question:
    """Says what to look at an image with: the served network, or an experiment, which nobody serves."""

    version: int | None = None
    epoch: int | None = None  # whose weights are taken
    off: dict[str, set[int]] = field(default_factory=dict)  # layer -> maps switched off
    wants_answer: bool = True

    @property
    def is_served(self) -> bool:
        """True for the served network as it is."""
        return self.version is None and self.epoch is None and not self.off


class Looks:
    """Looks into the network for all who have the page open."""

    def __init__(self, client: AsyncClient, versions: Versions) -> None:
        self._client, self._versions = client, versions
        self._served: ModelDescription | None = None

    async def network(self, version: int | None) -> dict[str, Any]:
        """Describes the version that is served, or another one."""
        await self._ask_what_is_served()
        probe = self._probe(version)
        manifest, served = probe.manifest, self._served
        is_served = served is not None and served.model_version == str(manifest.version)
        model = {
            name: getattr(manifest, name) for name in ("version", "architecture", "precision", "checkpoint_sha256")
        }
        model |= {"name": manifest.model_name, "model_sha256": manifest.files[ONNX_NAME]}
        model |= {"backend": served.backend, "device": served.device} if served and is_served else {}
        same = is_served and (model["backend"], model["device"]) == ("onnxruntime", "cpu")
        return {
            **probe.table,
            "model": {"backend": None, "device": None, **model},
            "served_version": int(served.model_version) if served else None,
            "classes": manifest.classes,
            "probe": {"runtime": "onnxruntime", "device": "cpu", "is_served_runtime": same},
            "epochs": probe.epochs.numbers,
            "history": probe.epochs.history,
            "versions": self._versions.listed(),
        }

    def weights(self, version: int | None, epoch: int | None) -> bytes:
        """Returns (num_weights,) float32, what the graph multiplies with; or did after an epoch."""
        probe = self._probe(version)
        changed = probe.changed(epoch, {})
        pieces = [changed.get(name, probe.weight(name)).ravel() for name in probe.table["weights"]]
        return np.concatenate(pieces).astype("<f4", copy=False).tobytes()

    async def look(self, image: Images, question: Question) -> bytes:
        """Returns a frame with all values, (num_values,) float32, for (1, 1, 28, 28) uint8, and the served answer."""
        header: dict[str, Any] = {"answer": None, "refusal": None, "max_abs_diff_probability": None}
        answer = None
        if question.wants_answer and question.is_served:
            began_s = time.perf_counter()
            try:
                answer = await self._client.classify(image, top_k=10, timeout_s=CLASSIFY_TIMEOUT_S)
            except ClassifyError as error:
                header["refusal"] = _refusal(error)
            else:
                header["answer"] = _answer(answer, _us_since(began_s))
        probe = await self._probe_of(answer, question.version)
        began_s = time.perf_counter()
        values = probe.look(image, probe.changed(question.epoch, question.off))
        header |= {"version": probe.manifest.version, "probe_us": _us_since(began_s)}
        if header["answer"]:
            diff = np.abs(_softmax(values[-10:]) - header["answer"]["probabilities"]).max()
            header["max_abs_diff_probability"] = float(diff)
        return _floats(header, values)

    async def occlusion(self, image: Images, size: int, stride: int) -> bytes:
        """Returns a frame with (N, N) float32: what the best class loses with a square of the image covered."""
        images, num_places = occluded(image, size, stride)
        if self._served is None:
            await self._ask_what_is_served()
        began_s = time.perf_counter()
        try:
            answer = await self._client.classify(images, top_k=10)
        except ClassifyError as error:
            raise _page_error(error) from None
        took_us = _us_since(began_s)
        probabilities = np.array([_by_label(answer, index) for index in range(len(images))])  # (1 + N * N, 10)
        best = probabilities[0].argmax()
        batch_size = self._served.max_batch_size if self._served else answer.batch_size or 1
        header = {"images": len(images), "batches": math.ceil(len(images) / batch_size), "round_trip_us": took_us}
        header |= {"rows": num_places, "label": int(best)}
        return _floats(header, (probabilities[0, best] - probabilities[1:, best]).astype(np.float32))

    def _probe(self, version: int | None) -> Probe:
        if version is None:
            version = int(self._served.model_version) if self._served else self._versions.first
        return self._versions.probe(version, self._served)

    async def _probe_of(self, answer: Answer | None, version: int | None) -> Probe:
        """Returns the probe of the version that has answered: it may be a newer one than a moment ago."""
        if answer and (self._served is None or answer.model_version != self._served.model_version):
            await self._ask_what_is_served()
        return self._probe(int(answer.model_version) if answer else version)

    async def _ask_what_is_served(self) -> None:
        with contextlib.suppress(ClassifyError):  # what it served before is what there is to look into
            self._served = await self._client.model(timeout_s=CLASSIFY_TIMEOUT_S)


def occluded(image: Images, size: int, stride: int) -> tuple[Images, int]:
    """Returns the image and its copies with one square of background each, and how many squares a row has.

    (1, 1, 28, 28) -> (1 + N * N, 1, 28, 28). The squares of `size` pixels lie `stride` pixels apart and reach both
    edges: the first and last may hang over them. So Zeiler and Fergus (2014, section 4.2) ask which pixels matter.
    Raises PageError BAD_SQUARE.
    """
    num_places = math.ceil((SIDE - size) / stride) + 1 if 1 <= size <= SIDE and stride >= 1 else 0
    if not num_places >= 2 or 1 + num_places**2 > MAX_IMAGES:
        cure = "send ?size=5&stride=2, or others"
        raise PageError(400, "BAD_SQUARE", f"size {size} and stride {stride} make {num_places}**2 squares", cure)
    overhang = (num_places - 1) * stride + size - SIDE
    starts = [place * stride - math.ceil(overhang / 2) for place in range(num_places)]
    images = np.repeat(image, 1 + num_places**2, axis=0)
    squares = [(top, left) for top in starts for left in starts]
    for copy, (top, left) in zip(images[1:, 0], squares, strict=True):
        copy[max(0, top) : top + size, max(0, left) : left + size] = 0
    return images, num_places


def photograph(picture: bytes) -> bytes:
    """Returns a frame with the photograph as the network wants it, 784 bytes, and what was done to it.

    Raises InvalidRequestError for what is no picture, or too large a one.
    """
    image, facts = prepared(picture)
    return framed(facts._asdict(), image.tobytes())


def framed(header: dict[str, Any], content: bytes | memoryview) -> bytes:
    """Packs a header and content: u32 bytes of JSON, little-endian, and the JSON with spaces to a multiple of 4."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    return b"".join((len(text).to_bytes(4, "little"), text, content))


def _floats(header: dict[str, Any], values: Floats) -> bytes:
    return framed(header, values.astype("<f4", copy=False).data)


def _answer(answer: Answer, round_trip_us: int) -> dict[str, Any]:
    times = {"queue_us": answer.queue_us, "inference_us": answer.inference_us, "batch_size": answer.batch_size}
    return {"probabilities": _by_label(answer, 0), "round_trip_us": round_trip_us, **times}


def _by_label(answer: Answer, index: int) -> list[float]:
    return [each.probability for each in sorted(answer.classifications[index], key=lambda each: each.label)]


def _refusal(error: ClassifyError) -> dict[str, Any]:
    cure = error.message.rpartition(" (")[2].removesuffix(")") if error.message.endswith(")") else ""
    wait_ms = PUSHBACK_MS.get(error.status)
    return {"reason": error.word or error.status, "message": error.message, "cure": cure, "retry_after_ms": wait_ms}


def _page_error(error: ClassifyError) -> PageError:
    reason, message, cure, _ = _refusal(error).values()
    what = message.removeprefix(f"{reason}: ").removesuffix(f" ({cure})")
    return PageError(503, reason, what, cure or "wait until the server serves")


def _softmax(logits: Floats) -> NDArray[np.float64]:
    exponentials: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum()
    return probabilities


def _us_since(began_s: float) -> int:
    return round((time.perf_counter() - began_s) * 1e6)
