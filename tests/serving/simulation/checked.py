"""The queue of one engine beside a model of it, too simple to be wrong: they must agree at each call."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from serving.batching.queue import LEFT_FREE, REMEMBERED_S, BatchQueue
from serving.batching.request import Part, Request
from serving.errors import OverloadedError
from tests.serving.simulation.rules import ensure

if TYPE_CHECKING:
    from tests.serving.simulation.device import SimulatedDevice
    from tests.serving.simulation.life import Life


class CheckedQueue(BatchQueue):
    """Knows what waits, and so what each call must bring."""

    def __init__(self, life: "Life", device: "SimulatedDevice", **limits: Any) -> None:
        super().__init__(**limits)
        self.life, self.device = life, device
        self.waiting: dict[Request, int] = {}  # images taken so far, in the order of arrival
        self.asked_s: dict[str, float] = {}  # when each peer asked last
        life.queues[device] = self

    @property
    def live(self) -> dict[Request, int]:
        """What waits, without those whose clients have just gone."""
        return {request: taken for request, taken in self.waiting.items() if not request.future.done()}

    def add(self, request: Request, now_s: float) -> None:
        """Admits what has room and time, and nothing else."""
        waiting, peer = _num_by_peer(self.live), request.peer
        least, most = self._num_in_front(waiting, peer, now_s), self._num_in_front(self.num_waiting(), peer, now_s)
        self.asked_s[peer] = now_s
        num_images = len(request.images)
        try:
            super().add(request, now_s)
        except OverloadedError as error:
            is_full = error.word == "QUEUE_FULL"
            is_right = most + num_images > self.max_queue_size if is_full else least + num_images <= self.max_queue_size
            ensure(is_right, "another refusal was due:", error)
            is_alone = not self.num_waiting() and not self.device.num_on_device
            ensure(is_full or not is_alone, "nothing waits or runs, and yet there is no time")
            is_hasty = now_s + self._plenty_s(most + num_images) > request.deadline_s
            ensure(is_full or is_hasty or not self.life.scenario.is_calm, "there is plenty of time:", error)
            raise
        ensure(least + num_images <= self.max_queue_size, "admitted to a full queue")
        self.waiting[request] = 0
        self.life.on_admitted(request, now_s + self._longest_s(waiting.total() + num_images), self.device)

    def num_waiting(self) -> "Counter[str]":
        """Images that wait, by peer, with those whose clients have just gone."""
        return _num_by_peer(self.waiting)

    def _num_in_front(self, waiting: "Counter[str]", peer: str, now_s: float) -> int:
        """Counts what this peer finds: it leaves room for others who have asked of late."""
        others_s = max((asked_s for other, asked_s in self.asked_s.items() if other != peer), default=-math.inf)
        kept = LEFT_FREE * waiting[peer] if now_s <= others_s + REMEMBERED_S else 0
        return waiting.total() + kept

    def _plenty_s(self, num_images: int) -> float:
        """Returns what nobody could call too little for so many images, those in front included."""
        scenario = self.life.scenario
        num_ahead = num_images + 2 * self.max_batch_size
        return 4 * num_ahead * scenario.batch_s(1) + 4 * scenario.batch_s(self.max_batch_size) + 0.005

    def _longest_s(self, num_images: int) -> float:
        """Returns what a calm device may take for so many, behind what it has: batches are at least half full."""
        num_batches = 2 * -(-num_images // self.max_batch_size) + 2
        batch_s = self.life.scenario.batch_s(self.max_batch_size)
        window_s = self.max_queue_delay_s and self.max_queue_delay_s + 0.001
        return self.device.num_on_device * batch_s + num_batches * (batch_s + window_s) + 1e-5

    def take(self, now_s: float) -> tuple[list[Part], list[Request]]:
        """Takes whole requests in their order, as many as fit; one that is larger than any batch is split."""
        is_full = self.num_waiting().total() >= self.max_batch_size
        ensure(is_full or not self.device.num_on_device, "the batch could have grown")
        expected = self._next_batch(now_s)
        parts, expired = super().take(now_s)
        for request in expired:
            is_late = request in self.waiting and not request.future.done() and now_s >= request.deadline_s
            ensure(is_late, "expired, and should not")
            del self.waiting[request]
        ensure([tuple(part) for part in parts] == expected, "another batch was due")
        for request, _, stop in parts:
            ensure(not request.future.done() and now_s < request.deadline_s, "executed, and should not be")
            self.waiting[request] = stop
            if stop == len(request.images):
                del self.waiting[request]
        self.life.note(lambda: f"takes {[(self.life.name_of(part.request), part.stop) for part in parts]}")
        return parts, expired

    def _next_batch(self, now_s: float) -> list[tuple[Request, int, int]]:
        expected: list[tuple[Request, int, int]] = []
        room = self.max_batch_size
        for request, start in self.live.items():
            if now_s >= request.deadline_s:
                continue
            num_waiting, is_large = len(request.images) - start, len(request.images) > self.max_batch_size
            if not room or (expected and num_waiting > room and not is_large):
                break
            expected.append((request, start, start + min(room, num_waiting)))
            room -= min(room, num_waiting)
        return expected

    def forget(self, request: Request) -> None:
        """Lets go of one whose client is gone, or that has failed."""
        super().forget(request)
        self.waiting.pop(request, None)

    def clear(self) -> Iterator[Request]:
        """Lets go of all."""
        expected, self.waiting = list(self.live), {}
        told = list(super().clear())
        ensure([request for request in told if not request.future.done()] == expected, "others were told")
        return iter(told)

    def check(self) -> None:
        """Holds whenever all that is due has run."""
        waiting, device = self.waiting, self.device
        by_peer = self.num_waiting()
        num_images = by_peer.total()
        ensure(not any(request.future.done() for request in waiting), "it has ended, and waits")
        ensure(self.num_requests == len(waiting), "requests counted, and waiting:", self.num_requests, len(waiting))
        ensure(self.num_images == num_images <= self.max_queue_size, "images counted, and waiting:", num_images)
        ensure(self.num_images_of == by_peer, "images of each peer counted, and waiting:", self.num_images_of, by_peer)
        if not waiting or device.failure:
            return
        if device.num_on_device == 1:
            is_full = num_images >= self.max_batch_size and device.num_failed < 2
            ensure(not is_full, "a full batch waits, and there is room ahead")
        elif not device.num_on_device:
            window_s = self.max_queue_delay_s and self.max_queue_delay_s + 0.001
            left_s = next(iter(waiting)).arrived_s + window_s - self.life.loop.now_s
            ensure(left_s > -1e-6 and window_s, "a free device waits, and so do requests")


def _num_by_peer(waiting: dict[Request, int]) -> "Counter[str]":
    number = Counter[str]()
    for request, taken in waiting.items():
        number[request.peer] += len(request.images) - taken
    return number
