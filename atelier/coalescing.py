"""Sends the single images of many threads or tasks together: a request of 64 images costs little more than one of one.

Who asks first leads: while another request is under way it collects what comes, for the window at most, then it sends
all of it and hands out the answers. If none is under way it sends at once, so a lone caller never waits.
"""

import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from atelier.answers import Answer, ClassifyError
from atelier.steps import Event, Steps
from atelier.wire import classifier_pb2 as pb

MAX_IMAGES = 64
Key = tuple[int, float | None]  # `top_k` and `timeout_s`: only what agrees in both goes together
Ask = Callable[[pb.ClassifyRequest, float | None], Awaitable[Answer]]


@dataclass(eq=False)
class _Batch:
    may_go: Event
    is_over: Event
    images: list[bytes] = field(default_factory=list)
    answer: Answer | None = None
    failure: ClassifyError | None = None

    @property
    def may_have_one_that_is_refused(self) -> bool:
        """Whether the server has refused the images for what one of them is, or for how many they are."""
        is_refused = self.failure is not None and self.failure.status == "INVALID_ARGUMENT"
        return is_refused and len(self.images) > 1


class Coalescer:
    """Gathers requests of one image each; for threads and for tasks of an event loop, as its steps are."""

    def __init__(self, steps: Steps, window_s: float, ask: Ask) -> None:
        self._steps, self._window_s, self._ask = steps, window_s, ask
        self._lock = threading.Lock()  # held for microseconds, never over a wait: an event loop may take it too
        self._gathering: dict[Key, _Batch] = {}
        self._num_under_way = 0

    async def classify(self, request: pb.ClassifyRequest, timeout_s: float | None) -> Answer:
        """Returns the answer about this request's image. Raises as a call of its own would."""
        key, began_s = (request.top_k, timeout_s), time.monotonic()
        batch, index = self._joined(request.images, key)
        if index == 0:
            await self._lead(batch, key)
        else:
            await self._steps.wait(batch.is_over, None)  # its leader has the same deadline, and began earlier
        if batch.answer is not None:
            classification = batch.answer.classifications[index]
            return dataclasses.replace(batch.answer, classifications=(classification,))
        if batch.failure is not None and not batch.may_have_one_that_is_refused:
            raise ClassifyError(batch.failure.status, batch.failure.message)
        # Or the leader was cancelled or interrupted, which is its own affair.
        return await self._ask(request, _left_s(timeout_s, began_s))

    def _joined(self, image: bytes, key: Key) -> tuple[_Batch, int]:
        """Adds the image to the batch that is gathering, or to a new one; returns it, and the image's place in it."""
        with self._lock:
            batch = self._gathering.get(key)
            if batch is None:
                batch = self._gathering[key] = _Batch(self._steps.event(), self._steps.event())
            batch.images.append(image)
            if len(batch.images) == MAX_IMAGES:
                del self._gathering[key]
                batch.may_go.set()
            return batch, len(batch.images) - 1

    async def _lead(self, batch: _Batch, key: Key) -> None:
        """Collects, asks, and wakes the others, whatever happens. Raises what is no answer of the server's."""
        began_s, (top_k, timeout_s) = time.monotonic(), key
        try:
            try:
                if self._num_under_way:
                    await self._steps.wait(batch.may_go, self._window_s)
            finally:
                self._depart(batch, key)
            request = pb.ClassifyRequest(images=b"".join(batch.images), top_k=top_k)
            batch.answer = await self._ask(request, _left_s(timeout_s, began_s))
        except ClassifyError as error:
            batch.failure = error
        finally:
            self._arrive()
            batch.is_over.set()

    def _depart(self, batch: _Batch, key: Key) -> None:
        """Lets no other image join."""
        with self._lock:
            self._num_under_way += 1
            if self._gathering.get(key) is batch:
                del self._gathering[key]

    def _arrive(self) -> None:
        """Sends off who waited for this, if nothing else is under way."""
        with self._lock:
            self._num_under_way -= 1
            if not self._num_under_way:
                for batch in self._gathering.values():
                    batch.may_go.set()


def _left_s(timeout_s: float | None, began_s: float) -> float | None:
    return None if timeout_s is None else max(0.001, timeout_s - (time.monotonic() - began_s))
