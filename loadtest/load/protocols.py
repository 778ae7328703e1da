"""Protocols: what is sent to a server, and what its answer must be. Atelier's own, and an echo.

A generator knows a server only through this: bytes for some images of the data set, and a verdict on the reply. Every
answer is held against the reference's logits, so one that is another image's is seen, and whose it is. If the native
front end's package is installed, most answers are read and compared in bulk; what is not found right so, is looked at
by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from atelier.contract import Images, Logits
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb


class Checked(NamedTuple):
    """A reply that was looked at; `fault` is empty if it is right.

    A server may not say where the time went, which is -1, or how many images ran together, which is 0.
    """

    fault: str
    queue_us: int = -1
    inference_us: int = -1
    batch_size: int = 0


class Found(NamedTuple):
    """Replies that are right beyond doubt, and what they say of the time; the rest is for `check`."""

    is_right: NDArray[np.bool_]
    times: NDArray[np.int64]  # (N, 3): queue_us, inference_us, batch_size, as in Checked


def none_found(num_replies: int) -> Found:
    """Returns that all are to be looked at one by one."""
    return Found(np.zeros(num_replies, np.bool_), np.tile(np.array(Checked("")[1:]), (num_replies, 1)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerProtocol(ABC):
    """The way in which one server is asked and judged."""

    target: str  # HOST:PORT
    method: str  # /package.Service/Method

    @abstractmethod
    def request(self, indices: Sequence[int]) -> bytes:
        """Makes the message that asks about these images of the data set."""

    @abstractmethod
    def check(self, reply: bytes, indices: Sequence[int]) -> Checked:
        """Says whether the reply is the right one for them."""

    def found_right(self, replies: bytes, ends: NDArray[np.int64], images: NDArray[np.intp]) -> Found:  # noqa: ARG002
        """Finds which of N replies, one after the other, are right for these images, (N, images of each).

        It is called only if the native package is installed, which reads them in bulk.
        """
        return none_found(len(images))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The images that are sent and what the reference says to each."""

    images: Images  # (N, 1, 28, 28)
    logits: Logits  # (N, 10)
    atol: float  # a probability may differ by this, a logit by ten times this

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, 10): softmax of the logits."""
        logits = self.logits.astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)

    @cached_property
    def best(self) -> NDArray[np.float64]:
        """(N,): the greatest probability of each."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """(N,): the class that has it."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def rows(self) -> list[list[float]]:
        """The probabilities as plain lists, which a check of ten numbers reads faster."""
        rows: list[list[float]] = self.probabilities.tolist()
        return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Classify(ServerProtocol):
    """atelier.v1.Classifier/Classify with raw images."""

    reference: Reference
    method: str = f"/{SERVICE}/Classify"

    def reference_of(self, version: str) -> Reference:  # noqa: ARG002 - here it is the same for all
        """Returns what this version of the model says."""
        return self.reference

    def request(self, indices: Sequence[int]) -> bytes:
        """Makes a ClassifyRequest."""
        images = self.reference.images[list(indices)]
        return pb.ClassifyRequest(images=images.tobytes()).SerializeToString()

    def check(self, reply: bytes, indices: Sequence[int]) -> Checked:
        """Wants as many answers as images, and each label with the probability that the reference gives it."""
        try:
            response = pb.ClassifyResponse.FromString(reply)
        except DecodeError:
            return Checked(f"{len(reply)} bytes that are no ClassifyResponse")
        time = response.time
        fault = self._fault(response, indices)
        return Checked(fault, time.queue_us, time.inference_us, time.batch_size)

    def found_right(self, replies: bytes, ends: NDArray[np.int64], images: NDArray[np.intp]) -> Found:
        """Does what ServerProtocol's does."""
        import atelier_native

        columns = atelier_native.classifications(replies, ends.tobytes(), images.shape[1], 1)
        labels = np.frombuffer(columns[1], np.int64).reshape(images.shape)
        probabilities = np.frombuffer(columns[2], np.float32).reshape(images.shape)
        expected, atol = self.reference.probabilities, self.reference.atol
        of_labels = expected[images, np.minimum(labels, expected.shape[1] - 1)]
        is_right = (np.abs(of_labels - probabilities) <= atol) & (labels < expected.shape[1])
        is_right &= self.reference.best[images] - of_labels <= 2 * atol
        times = np.frombuffer(columns[3], np.int64).reshape(-1, 3)
        return Found(np.frombuffer(columns[0], np.bool_) & is_right.all(axis=1), times)

    def _fault(self, response: pb.ClassifyResponse, indices: Sequence[int]) -> str:
        if len(response.classifications) != len(indices):
            return f"{len(response.classifications)} answers to {len(indices)} images"
        rows, atol = self.reference.rows, self.reference.atol
        for index, classification in zip(indices, response.classifications, strict=True):
            if len(classification.predictions) != 1:
                return f"image {index}: {len(classification.predictions)} predictions instead of 1"
            (found,), row = classification.predictions, rows[index]
            if found.label >= len(row):
                return f"image {index}: label {found.label} is no class"
            is_best = max(row) - row[found.label] <= 2 * atol
            if not (is_best and abs(row[found.label] - found.probability) <= atol):  # nor NaN
                return self._wrong(index, found)
        return ""

    def _wrong(self, index: int, found: pb.Prediction) -> str:
        expected = self.reference.rows[index]
        label = int(np.argmax(expected))
        what = f"image {index}: label {found.label} at {found.probability:.6f}, "
        what += f"the reference says {label} at {expected[label]:.6f}"
        same = (self.reference.labels == found.label) & (abs(self.reference.best - found.probability) < 2e-6)
        return what + named_owner(np.flatnonzero(same))


@dataclass(frozen=True, kw_only=True, eq=False)
class Echo(ServerProtocol):
    """loadtest.echo_server: the same messages, and nothing done about them; any method would do."""

    asked: ServerProtocol  # whose requests are sent
    reply_bytes: int

    def request(self, indices: Sequence[int]) -> bytes:
        """Makes the very message that the served model gets."""
        return self.asked.request(indices)

    def check(self, reply: bytes, indices: Sequence[int]) -> Checked:  # noqa: ARG002 - ServerProtocol's signature
        """Checks the size, which is all there is."""
        is_right = len(reply) == self.reply_bytes
        return Checked("" if is_right else f"{len(reply)} bytes instead of {self.reply_bytes}")

    def found_right(self, replies: bytes, ends: NDArray[np.int64], images: NDArray[np.intp]) -> Found:  # noqa: ARG002
        """Does what ServerProtocol's does."""
        return none_found(len(images))._replace(is_right=np.diff(ends, prepend=0) == self.reply_bytes)


def named_owner(indices: NDArray[np.intp]) -> str:
    """Names the image whose answer it is, if there is one: the mark of answers that were swapped."""
    return f"; it is the answer to image {', '.join(map(str, indices[:3]))}" if len(indices) else ""
