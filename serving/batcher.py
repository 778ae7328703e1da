"""Dynamic batching: requests of many clients, run on one device, in batches.

The event loop submits requests and one thread, which owns the device, works them off:

    event loop:    submit -> queue                                    -> deliver -> futures
    device thread:             take a batch -> infer -> rank -> post

A free device never waits, so batches grow exactly while the device is busy. Which requests form a batch is decided by
BatchQueue; this file has the lock, the thread and the watchdog. Per batch, whatever its size, there is one wake-up of
the thread at most and one of the event loop.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from serving.backends.base import Backend, Images
from serving.batch_queue import BatchQueue, Part, Request
from serving.errors import BackendError, ExpiredError, NotServingError, RequestError
from serving.ranking import Ranking, check_logits, join, rank

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a request's future resolves to."""

    ranking: Ranking
    queue_us: int
    inference_us: int


class Batcher:
    """All methods are called on the event loop it was made in; only `_work` and what it calls run on the thread."""

    def __init__(
        self,
        backend: Backend,
        queue: BatchQueue,
        *,
        hang_timeout_s: float = 30.0,
        on_hang: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_answered = 0  # images
        self.num_unanswered = 0  # accepted requests
        self._backend = backend
        self._queue = queue
        self._hang_timeout_s = hang_timeout_s
        self._on_hang = on_hang
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()  # guards the queue and the three below
        self._running: list[Part] = []
        self._running_since_s = 0.0
        self._refusal: NotServingError | None = NotServingError("NOT_WARM", "the model is still warming up")
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_warm: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._is_stopping = False
        self._watchdog: asyncio.TimerHandle | None = None

    # --- On the event loop ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the device thread, which warms up every batch size; returns when it is ready for requests."""
        self._thread.start()
        await self._is_warm
        self._refusal = None

    def submit(self, images: Images, deadline_s: float) -> Request:
        """Queues (N, 1, 28, 28) uint8 images; the request's future resolves to an Answer or a RequestError.

        `deadline_s` is on the batcher's clock. Raises OverloadedError and NotServingError at once.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)  # raised many times: it must not collect tracebacks
        now_s = self._clock()
        if now_s >= deadline_s:
            raise ExpiredError("EXPIRED", "the deadline had passed on arrival")
        future = self._loop.create_future()
        request = Request(images=images, future=future, arrived_s=now_s, deadline_s=deadline_s)
        with self._wake:
            self._queue.add(request, now_s)
            if not self._running:
                self._wake.notify()
        self.num_unanswered += 1
        self._is_idle.clear()
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._hang_timeout_s, self._check_for_hang)
        return request

    async def answer_to(self, request: Request) -> Answer:
        """Waits for a submitted request; if the waiter is cancelled, the request gives up its place in the queue."""
        try:
            answer: Answer = await request.future
            return answer
        except asyncio.CancelledError:
            with self._wake:
                self._queue.forget(request)
            raise
        finally:
            self.num_unanswered -= 1
            if not self.num_unanswered:
                self._is_idle.set()

    def refuse(self, reason: NotServingError) -> None:
        """From now on `submit` raises `reason`; what was accepted is still answered."""
        self._refusal = reason

    async def drain(self) -> None:
        """Returns when every accepted request is answered; call `refuse` first."""
        await self._is_idle.wait()

    async def close(self) -> None:
        """Stops the device thread once the queue is empty, and frees the device. A hung thread is left behind."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._thread.is_alive() and not self._is_hung():
            await asyncio.to_thread(self._thread.join, self._hang_timeout_s)

    def _deliver(self, batch: list[Part], outcome: Ranking | RequestError, started_s: float, seconds: float) -> None:
        """Answer i belongs to image i of the batch; replies go only to futures that are not done."""
        row = 0
        for part in batch:
            start, row = row, row + part.stop - part.start
            request = part.request
            if request.future.done():
                continue
            if isinstance(outcome, RequestError):
                request.future.set_exception(outcome)
                continue
            queue_us, inference_us = int((started_s - request.arrived_s) * 1e6), int(seconds * 1e6)
            answer = Answer(outcome.rows(start, row), queue_us, inference_us)
            if not part.is_whole:
                request.parts.append(answer)
                if part.stop < len(request.images):
                    continue
                answer = _rejoined(request.parts)
            self.num_answered += len(request.images)
            request.future.set_result(answer)

    def _expire(self, requests: list[Request]) -> None:
        for request in requests:
            if not request.future.done():
                request.future.set_exception(
                    ExpiredError("EXPIRED", "the deadline passed while the request was queued")
                )

    def _is_hung(self) -> bool:
        return bool(self._running) and self._clock() - self._running_since_s >= self._hang_timeout_s

    def _check_for_hang(self) -> None:
        """Fires once per `hang_timeout_s` while there is work: cheaper than a timer for every batch."""
        self._watchdog = None
        with self._wake:
            is_hung, since_s = self._is_hung(), self._running_since_s
            stuck = [part.request for part in self._running] + list(self._queue.clear()) if is_hung else []
        if is_hung:
            reason = NotServingError("BACKEND_HUNG", f"the device has not answered for {self._hang_timeout_s:g} s")
            logger.error("%s", reason)
            self.refuse(reason)
            for request in stuck:
                if not request.future.done():
                    request.future.set_exception(reason)
            self._on_hang()
        elif self.num_unanswered:
            busy_s = self._clock() - since_s if self._running else 0.0
            self._watchdog = self._loop.call_later(self._hang_timeout_s - busy_s, self._check_for_hang)

    # --- On the device thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._backend.warm_up()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._is_warm.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._is_warm.set_result, None)
        while (batch := self._next_batch()) is not None:
            outcome = self._infer(batch)
            seconds = self._clock() - self._running_since_s
            self._queue.observe(sum(part.stop - part.start for part in batch), seconds)
            self._loop.call_soon_threadsafe(self._deliver, batch, outcome, self._running_since_s, seconds)
        self._backend.close()

    def _next_batch(self) -> list[Part] | None:
        """Sleeps until there is a batch to run; None when stopping and nothing is left."""
        with self._wake:
            self._running = []
            while True:
                ready_in_s = self._queue.ready_in_s(self._clock())
                if ready_in_s is None and self._is_stopping:
                    return None
                if ready_in_s is None or (ready_in_s > 0 and not self._is_stopping):
                    self._wake.wait(ready_in_s)
                    continue
                now_s = self._clock()
                batch, expired = self._queue.take(now_s)
                if expired:
                    self._loop.call_soon_threadsafe(self._expire, expired)
                if batch:
                    self._running, self._running_since_s = batch, now_s
                    return batch

    def _infer(self, batch: list[Part]) -> Ranking | RequestError:
        """Never raises: a failure is the batch's outcome. What failed stands in the log, not on the wire."""
        try:
            images = batch[0].images if len(batch) == 1 else np.concatenate([part.images for part in batch])
            logits = self._backend.infer(images)
            check_logits(logits, len(images))
            return rank(logits)
        except Exception as error:
            logger.exception("a batch of %d requests failed", len(batch))
            if isinstance(error, RequestError):
                return error
            return BackendError("BACKEND_FAILED", "the model could not be run on this batch", "see the server's log")


def _rejoined(parts: list[Answer]) -> Answer:
    """The answer to a split request: its longest wait, and the sum of its batches' run times."""
    ranking = join([part.ranking for part in parts])
    return Answer(ranking, max(part.queue_us for part in parts), sum(part.inference_us for part in parts))
