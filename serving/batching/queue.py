"""Decides which requests form the next batch, and when: the batcher's policy, apart from its threads.

Nothing here waits, locks or reads a clock: every method that depends on time is given `now_s` (monotonic seconds), so
tests drive it by hand. The vocabulary is Triton's: `max_batch_size`, `max_queue_size`, `max_queue_delay_us`.
"""

import math
from collections import deque
from collections.abc import Iterator

from serving.batching.request import Part, Request
from serving.errors import OverloadedError


class BatchQueue:
    """Queues requests, first in, first out, bounded in images.

    A batch costs the same few hand-overs between threads whatever its size, and under load those are most of what a
    small request costs. So a free device waits for up to `max_queue_delay_us` until as many requests wait as its last
    batch had: the clients that were answered together come back together. After a lone request that is one, which
    does not wait; when clients stay away, the wait ends once none has come for a third of it, and the next batch
    expects fewer.
    """

    def __init__(self, *, max_batch_size: int, max_queue_size: int, max_queue_delay_us: int = 0) -> None:
        self.max_batch_size = max_batch_size
        self.max_queue_size = max_queue_size
        self.max_queue_delay_s = max_queue_delay_us / 1e6
        self.num_images = 0  # waiting, not counting requests whose client is gone
        self._requests: deque[Request] = deque()
        self._seconds_per_image = 0.0
        self._last_batch_requests = 1
        self._last_batch_s = -math.inf

    @property
    def num_requests(self) -> int:
        """Requests that wait."""
        return len(self._requests)

    @property
    def is_full_batch(self) -> bool:
        """True if as many images wait as one batch can hold: waiting longer would not make it larger."""
        return self.num_images >= self.max_batch_size

    def add(self, request: Request, now_s: float) -> None:
        """Queues a request. Raises OverloadedError if there is no room, or no time before its deadline."""
        num_images = self.num_images + len(request.images)
        if num_images > self.max_queue_size:
            what = f"{self.num_images} images wait and {len(request.images)} more would exceed {self.max_queue_size}"
            raise OverloadedError("QUEUE_FULL", what, "try again later, or raise --max-queue-size")
        expected_s = self.num_images * self._seconds_per_image
        if now_s + expected_s > request.deadline_s:
            left_ms, expected_ms = (request.deadline_s - now_s) * 1e3, expected_s * 1e3
            what = f"{left_ms:.0f} ms are left, the queue alone takes about {expected_ms:.0f} ms"
            raise OverloadedError("DEADLINE_TOO_SHORT", what, "try again later, or allow more time")
        self.num_images = num_images
        self._requests.append(request)

    def forget(self, request: Request) -> None:
        """Frees the room, and the memory, of a request whose client is gone."""
        if request.num_waiting:  # otherwise a batch has it already
            self._requests.remove(request)
        self._release(request)

    def ready_in_s(self, now_s: float) -> float | None:
        """Returns when a free device should take the next batch: 0 now, None if there is nothing to wait for."""
        self._drop_finished()
        if not self._requests:
            return None
        if self.is_full_batch or len(self._requests) >= self._preferred_requests(now_s):
            return 0.0
        longest_s = self._requests[0].arrived_s + self.max_queue_delay_s
        quiet_s = self._requests[-1].arrived_s + self.max_queue_delay_s / 3
        return max(0.0, min(longest_s, quiet_s) - now_s)

    def _preferred_requests(self, now_s: float) -> int:
        """Returns as many requests as the last batch had, unless that was long ago."""
        is_recent = now_s - self._last_batch_s < 10 * self.max_queue_delay_s
        return self._last_batch_requests if is_recent else 1

    def take(self, now_s: float) -> tuple[list[Part], list[Request]]:
        """Takes the next batch, of at most `max_batch_size` images, and the requests that expired before it formed.

        A request goes into one batch whole, unless it is larger than any batch.
        """
        batch: list[Part] = []
        expired: list[Request] = []
        room = self.max_batch_size
        while self._requests and room:
            request = self._requests[0]
            if request.future.done() or now_s >= request.deadline_s:
                if not request.future.done():
                    expired.append(request)
                self._release(self._requests.popleft())
                continue
            if batch and request.num_waiting > room and len(request.images) <= self.max_batch_size:
                break
            stop = request.num_taken + min(room, request.num_waiting)
            batch.append(Part(request, request.num_taken, stop))
            num_images = stop - request.num_taken
            request.num_taken = stop
            self.num_images -= num_images
            room -= num_images
            if not request.num_waiting:
                self._requests.popleft()
        if batch:
            self._last_batch_requests, self._last_batch_s = len(batch), now_s
        return batch, expired

    def clear(self) -> Iterator[Request]:
        """Empties the queue, yielding what waited."""
        while self._requests:
            request = self._requests.popleft()
            self._release(request)
            yield request

    def observe(self, num_images: int, seconds: float) -> None:
        """Learns the device's pace from a finished batch.

        A small batch says little about how fast a full queue is worked off, but it is never faster than a large one:
        so it counts if it was faster than thought. Otherwise one slow batch could have everything refused that
        would set it right.
        """
        pace = seconds / num_images
        if 2 * num_images >= self.max_batch_size or pace < self._seconds_per_image:
            self._seconds_per_image += (pace - self._seconds_per_image) * (0.1 if self._seconds_per_image else 1.0)

    def _drop_finished(self) -> None:
        while self._requests and self._requests[0].future.done():
            self._release(self._requests.popleft())

    def _release(self, request: Request) -> None:
        """Gives back a request's room, once: it may both expire and be cancelled."""
        self.num_images -= request.num_waiting
        request.num_taken = len(request.images)
