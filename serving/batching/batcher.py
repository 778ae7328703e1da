"""Batches dynamically: requests of many clients, run on one device, in batches.

The event loop owns the queue; one thread owns the device; a batch travels there and its outcome back:

    event loop:    submit -> queue -> dispatch ------.            .--> deliver -> futures, next dispatch
    device thread:                                    '-> infer -'

A device that was idle takes a lone request at once, and batches grow while it is busy. It counts as busy until its
outcome has been delivered. Where a full batch waits, growing is over, and it is handed to the thread ahead, so that the
device goes on without a pause. Which requests form a batch, and when, is BatchQueue's to say, and when the device is
given up is DeviceWatch's; what is done in the thread is Device's. This file has the hand-over.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from atelier.contract import Images
from atelier.errors import DeviceError
from serving.backends.base import Backend
from serving.batching.device import Batch, Device, DeviceThread, Executor
from serving.batching.queue import BatchQueue
from serving.batching.request import Answer, Part, Request
from serving.batching.runs import BATCH_FAILED, Ran, checked, error_in
from serving.batching.watchdog import DeviceWatch, Probe
from serving.errors import ExpiredError, NotServingError, OverloadedError, RequestError
from serving.metrics import NO_METRICS, Metrics

logger = logging.getLogger(__name__)


class Batcher:
    """Lives on the event loop."""

    def __init__(
        self,
        backend: Backend,
        queue: BatchQueue,
        *,
        hang_timeout_s: float = 30.0,
        on_failure: Callable[[DeviceError], None] = lambda _failure: None,
        metrics: Metrics = NO_METRICS,
        probe: Probe | None = None,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        """`on_failure` is told when the device is given up; by then all that was accepted has been answered.

        `executor` is to run the device, apart from the event loop; None takes a thread.
        """
        self.num_answered = 0  # images
        self.num_unanswered = 0  # accepted requests
        self._queue = queue
        self._watch = DeviceWatch(self._busy_s, hang_timeout_s=hang_timeout_s, on_failure=self._give_up)
        self._on_failure = on_failure
        self._metrics, self._probe, self._clock = metrics, probe, clock
        self._loop = asyncio.get_running_loop()
        self.refusal: NotServingError | None = NotServingError("NOT_WARM", "the model is still warming up")
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._next_dispatch: asyncio.Handle | None = None
        self._end_of_window: asyncio.Handle | None = None
        self._on_device: deque[Batch] = deque()  # the one that runs, and at most one behind it
        self._device = Device(backend, self._deliver, clock, executor or DeviceThread(), hang_timeout_s)

    @property
    def num_waiting(self) -> int:
        """Images that no batch has taken yet."""
        return self._queue.num_images

    @property
    def num_waiting_requests(self) -> int:
        """Requests of which that is true."""
        return self._queue.num_requests

    # --- The way in ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Warms up every batch size on the device; before that, requests are refused with NOT_WARM."""
        await self._device.start()
        self.refusal = None
        if self._probe is not None:
            self._probe.start(self._run_probe)

    def submit(self, images: Images, deadline_s: float, peer: str = "") -> Request:
        """Queues (N, 1, 28, 28) uint8 images; `answer_to` the request waits for the answer.

        `deadline_s` is on the batcher's clock, and `peer` the connection that asks. Raises OverloadedError,
        ExpiredError and NotServingError at once.
        """
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)  # raised many times: it must not collect tracebacks
        now_s = self._clock()
        if now_s >= deadline_s:
            raise ExpiredError("EXPIRED", "the deadline had passed on arrival")
        future = self._loop.create_future()
        request = Request(images=images, future=future, arrived_s=now_s, deadline_s=deadline_s, peer=peer)
        self._queue.add(request, now_s)
        if self._next_dispatch is None:
            # Not at once but behind what the loop has already read: requests that arrived together go together.
            self._next_dispatch = self._loop.call_soon(self._dispatch)
        self.num_unanswered += 1
        self._is_idle.clear()
        return request

    async def answer_to(self, request: Request) -> Answer:
        """Waits for a submitted request; if the waiter is cancelled, the request gives up its place in the queue."""
        try:
            return await request.future
        except asyncio.CancelledError:
            self._queue.forget(request)
            raise
        finally:
            self.num_unanswered -= 1
            if not self.num_unanswered:
                self._is_idle.set()

    async def drain(self, reason: NotServingError) -> None:
        """Makes `submit` raise `reason` from now on, and returns when every accepted request is answered."""
        self.refusal = reason
        await self._is_idle.wait()

    async def close(self, timeout_s: float = 1.0) -> None:
        """Frees the device after what it has, and ends its thread; one that takes longer is left behind."""
        for handle in filter(None, (self._next_dispatch, self._end_of_window)):
            handle.cancel()
        self._watch.close()
        if self._probe is not None:
            self._probe.close()
        await self._device.close(timeout_s)

    def _dispatch(self) -> None:
        """Hands batches to the device: one if it is free, and a full one behind the one that runs.

        A device in doubt gets none ahead: when it is given up, all that has not run is still here to be sent elsewhere.
        """
        self._next_dispatch = None
        while len(self._on_device) < (1 if self._watch.is_in_doubt else 2):
            now_s = self._clock()
            ready_in_s = self._queue.ready_in_s(now_s)
            if ready_in_s is None or (self._on_device and not self._queue.is_full_batch):
                return
            if ready_in_s > 0:
                if self._end_of_window is None:
                    # uvloop counts in milliseconds, and would spin for less than half of one.
                    self._end_of_window = self._loop.call_later(max(ready_in_s, 0.001), self._close_window)
                return
            parts, expired = self._queue.take(now_s)
            for request in expired:
                self._settle(request, ExpiredError("EXPIRED", "the deadline passed while the request was queued"))
            if parts:
                self._hand_over(parts)

    def _hand_over(self, parts: list[Part]) -> None:
        try:
            batch = Batch.of(parts)
        except Exception:
            logger.exception("a batch of %d requests could not be assembled", len(parts))
            self._metrics.count_failed_batch()
            self._queue.finish(sum(part.stop - part.start for part in parts), self._clock())
            for part in parts:
                self._settle(part.request, BATCH_FAILED)
            return
        self._put(batch)

    def _put(self, batch: Batch) -> None:
        self._on_device.append(batch)
        self._device.put(batch)
        self._watch.begin()

    def _close_window(self) -> None:
        self._end_of_window = None
        self._dispatch()

    def _run_probe(self, image: Images) -> bool:
        if self._on_device or self.refusal is not None:
            return False
        self._put(Batch([], image))  # of nobody's
        return True

    # --- The way out ---------------------------------------------------------------------------------------------

    def _deliver(self, batch: Batch, ran: Ran, seconds: float) -> None:
        """Gives answer i to image i of the batch, and each request the error of its first image that failed."""
        self._on_device.popleft()
        outcome = checked(ran, len(batch.images))
        if self._probe is not None:
            outcome = self._probe.outcome_of(outcome, is_probe=not batch.parts)
        num_answered, stop = self.num_answered, 0
        for part in batch.parts:
            start, stop = stop, stop + part.stop - part.start
            if error := error_in(outcome, start, stop):
                self._settle(part.request, error)
                if part.request.num_waiting:
                    self._queue.forget(part.request)  # its rest is not run, and takes no room
                continue
            queue_s = batch.started_s - part.request.arrived_s
            self._metrics.observe_queue(queue_s)
            answer = Answer(ran.logits[start:stop], int(queue_s * 1e6), int(seconds * 1e6), len(batch.images))
            self._settle_part(part, answer)
        if isinstance(outcome, RequestError):
            self._metrics.count_failed_batch()
        elif batch.parts:
            self._metrics.observe_batch(stop, seconds, self.num_answered - num_answered, len(batch.parts))
            self._queue.observe(stop, seconds)
        if batch.parts:
            self._queue.finish(len(batch.images), self._clock())
        # A device that lacks memory works.
        self._watch.end(is_ok=isinstance(outcome, Ran | OverloadedError))
        self._dispatch()

    def _settle_part(self, part: Part, answer: Answer) -> None:
        request = part.request
        if not part.is_whole:
            request.parts.append(answer)
            if part.stop < len(request.images):
                return
            answer = Answer.joined(request.parts)
        self._settle(request, answer)

    def _settle(self, request: Request, outcome: Answer | RequestError) -> None:
        """Replies go only to futures that are not done: the client may be gone."""
        if request.future.done():
            if request.future.cancelled() and isinstance(outcome, Answer):
                self._metrics.count_undelivered()
            return
        if isinstance(outcome, RequestError):
            request.future.set_exception(outcome.with_traceback(None))  # one error for many: see `submit`
        else:
            self.num_answered += len(request.images)
            request.future.set_result(outcome)

    def _busy_s(self) -> float | None:
        """Returns how long the batch on the device has been running: 0 if it has not begun, None if there is none."""
        return max(0.0, self._clock() - self._on_device[0].started_s) if self._on_device else None

    def _give_up(self, failure: DeviceError) -> None:
        logger.error("%s", failure)
        self.abandon(NotServingError(failure.word, failure.what, "retry: another may serve"))
        self._on_failure(failure)

    def abandon(self, reason: NotServingError) -> None:
        """Fails everything that was accepted and not answered, and refuses what comes for the same reason."""
        self.refusal = reason
        running = [part.request for batch in self._on_device for part in batch.parts]
        for request in [*running, *self._queue.clear()]:
            self._settle(request, reason)
