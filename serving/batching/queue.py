"""Decides which requests form the next batch, and when: the batcher's policy, apart from its threads.

Nothing here waits, locks or reads a clock: every method that depends on time is given `now_s` (monotonic seconds), so
tests drive it by hand. The vocabulary is Triton's: `max_batch_size`, `max_queue_size`, `max_queue_delay_us`.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator

from serving.batching.request import Part, Request
from serving.errors import OverloadedError

LEFT_FREE = 2  # at least so many times what it holds of the queue a connection leaves free, if others ask too
REMEMBERED_S = 10.0  # after a request, others leave room for the next of its connection
# Kept free before a deadline, for the answer's way back, for what the pace does not see, and for a client's clock that
# began before ours. A busy device loses nothing by it: the queue is only a little shorter.
MARGIN_S, MARGIN_SHARE = 0.001, 0.125


class BatchQueue:
    """Queues requests, first in, first out, bounded in images.

    A connection leaves twice as much of the queue free as it holds, in room and in time: so one that asks for far more
    than the others does not cost them their rates. One that is alone may hold it all.

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
        self.num_images_of = Counter[str]()  # the same, by peer
        self._requests: deque[Request] = deque()
        self._seconds_per_image = 0.0
        self._taken: deque[int] = deque()  # images of each batch that the device is not through with
        self._device_free_s = -math.inf  # when it should be
        self._last_batch_requests = 1
        self._last_batch_s = -math.inf
        self._last_peer = ""
        self._last_asked_s = self._others_asked_s = -math.inf

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
        num_images, kept = len(request.images), self._kept_for_others(request.peer, now_s)
        why = f", with {kept} kept for other connections" if kept else ""
        if self.num_images + kept + num_images > self.max_queue_size:
            what = f"{self.num_images} images wait and {num_images} more would exceed {self.max_queue_size}{why}"
            raise OverloadedError("QUEUE_FULL", what, "try again later, or raise --max-queue-size")
        left_s = request.deadline_s - now_s
        longest_s = self._answered_in_s(num_images + kept, now_s) + MARGIN_S + MARGIN_SHARE * left_s
        is_alone = not self.num_images and not self._taken  # whatever was measured: only running it tells anew
        if longest_s > left_s and not is_alone:
            what = f"{left_s * 1e3:.0f} ms are left, and its answer may take {longest_s * 1e3:.0f} ms{why}"
            raise OverloadedError("DEADLINE_TOO_SHORT", what, "try again later, or allow more time")
        self.num_images += num_images
        self.num_images_of[request.peer] += num_images
        self._requests.append(request)

    def _answered_in_s(self, num_more: int, now_s: float) -> float:
        """Estimates when the device is through with what it has, what waits, and so many images more."""
        busy_s = max(0.0, self._device_free_s - now_s)
        return busy_s + (self.num_images + num_more) * self._seconds_per_image

    def _kept_for_others(self, peer: str, now_s: float) -> int:
        """Notes who asks. Returns for how many images of others it must leave room: 0 if none have asked of late."""
        if peer != self._last_peer:
            self._last_peer, self._others_asked_s = peer, self._last_asked_s
        self._last_asked_s = now_s
        return LEFT_FREE * self.num_images_of[peer] if now_s <= self._others_asked_s + REMEMBERED_S else 0

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
            self._give_back(request, num_images)
            room -= num_images
            if not request.num_waiting:
                self._requests.popleft()
        if batch:
            self._last_batch_requests, self._last_batch_s = len(batch), now_s
            num_images = self.max_batch_size - room
            self._device_free_s = max(now_s, self._device_free_s) + num_images * self._seconds_per_image
            self._taken.append(num_images)
        return batch, expired

    def finish(self, num_images: int, now_s: float) -> None:
        """Notes that the device is through with a batch of so many images, or will not get it."""
        self._taken.remove(num_images)
        self._device_free_s = now_s + sum(self._taken) * self._seconds_per_image

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
        self._give_back(request, request.num_waiting)

    def _give_back(self, request: Request, num_images: int) -> None:
        request.num_taken += num_images
        self.num_images -= num_images
        self.num_images_of[request.peer] -= num_images
        if not self.num_images_of[request.peer]:
            del self.num_images_of[request.peer]
