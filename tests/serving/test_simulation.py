"""Lives of the queue of grpcio's front end, in virtual time.

Arrivals, deadlines, cancellations, a device that is slow, fails or hangs, and a drain are drawn from a seed. The queue
is asked as `Batcher` asks it, and a model of it, too simple to be wrong, must agree behind every event.

`ATELIER_SIMULATION_SEED=7 pytest tests/serving/test_simulation.py` replays one life, of either core.
"""

import asyncio
import heapq
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from atelier.contract import IMAGE_SHAPE
from serving.batching.queue import LEFT_FREE, REMEMBERED_S, BatchQueue
from serving.batching.request import Answer, Part, Request
from serving.errors import BackendError, ExpiredError, NotServingError, OverloadedError
from tests.reliability.goals import RESULTS, is_release
from tests.reliability.plugin import Figure

ROOT = Path(__file__).parents[2]
ANSWER = Answer(np.zeros((0, 10), np.float32), 0, 0, 0)
FAILED = BackendError("BACKEND_FAILED", "the model could not be run on this batch", "see the server's log")
GIVEN_UP = NotServingError("BACKEND_HUNG", "a batch ran too long", "retry: another may serve")
MAX_FAILED_BATCHES = 3
IMAGES = np.zeros((256, *IMAGE_SHAPE), np.uint8)


class Life:
    """Runs one server's life and checks it; `ends` counts how requests ended."""

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.random = random = Random(seed)
        self.loop = loop
        self.now_s = 1000.0
        self.trace: list[str] = []
        self.ends: Counter[str] = Counter()
        size = random.choice([1, 2, 4, 8, 32, 64])
        delay_us = random.choice([0, 0, 300, 8000])
        self.queue = BatchQueue(
            max_batch_size=size, max_queue_size=size * random.randint(2, 12), max_queue_delay_us=delay_us
        )
        unit_s = random.choice([1e-5, 1e-4, 1e-3, 2e-2])
        self.base_s, self.image_s = random.randint(1, 10) * unit_s, random.randint(0, 10) * unit_s / 8
        self.batch_s = self.base_s + size * self.image_s
        self.slow, self.failing, self.hanging = (random.choice([0, 0.05, 0.3]) for _ in range(3))
        self.cancelled = random.choice([0, 0.05, 0.3])
        self.max_images = min(random.choice([1, size // 2 + 1, size, 3 * size]), len(IMAGES))
        self.max_burst = random.choice([1, 4, 4 * size])
        self.gap_s = self.max_burst * self.max_images * self.batch_s / size * random.choice([0.03, 0.2, 1, 5])
        self.max_lag_s = random.choice([0, self.base_s / 4, 3 * self.batch_s])
        self.num_left = random.randint(20, 120)
        self.num_peers = random.choice([1, 3, 20])
        self.drain_at = random.choice([-1, random.randint(0, self.num_left)])
        self.events: list[tuple[float, int, str, Callable[[], None]]] = []
        self.num_events = 0
        self.waiting: list[Request] = []  # the model: in their order
        self.leaving: list[Request] = []  # cancelled, and not yet forgotten
        self.num_taken: dict[Request, int] = {}
        self.num_run: dict[Request, int] = {}
        self.on_device: list[list[Part]] = []  # the one that runs, and at most one behind it
        self.is_woken = self.is_refusing = self.has_given_up = False
        self.num_failed = 0
        self.requests: list[Request] = []
        self.asked_s: dict[str, float] = {}  # when each peer asked last

    def at(self, delay_s: float, name: str, event: Callable[[], None]) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (self.now_s + delay_s, self.num_events, name, event))

    def live(self) -> None:
        self.at(0.0, "burst", self.burst)
        while self.events:
            time_s, _, name, event = heapq.heappop(self.events)
            self.now_s = max(self.now_s, time_s)
            self.trace.append(f"{self.now_s - 1000:.6f} s: {name}")
            event()
            self.check()
        assert all(request.future.done() for request in self.requests), "a request never ended"

    def num_waiting(self, request: Request) -> int:
        return len(request.images) - self.num_taken[request]

    def check(self) -> None:
        """What must hold between any two events."""
        num_images, num_requests = sum(map(self.num_waiting, self.waiting)), len(self.waiting)
        most = num_images + sum(map(self.num_waiting, self.leaving)), num_requests + len(self.leaving)
        assert num_images <= self.queue.num_images <= min(most[0], self.queue.max_queue_size)
        assert num_requests <= self.queue.num_requests <= most[1]
        held = self.held_by(self.waiting)
        assert held <= self.queue.num_images_of <= held + self.held_by(self.leaving)
        assert self.queue.num_images_of.total() == self.queue.num_images
        assert not any(request.future.done() for request in self.waiting)
        stands_still = not (self.on_device or self.is_woken or self.has_given_up)
        assert not (stands_still and self.waiting), "a free device waits, and so do requests"

    def held_by(self, requests: list[Request]) -> Counter[str]:
        held = Counter[str]()
        for request in requests:
            held[request.peer] += self.num_waiting(request)
        return held

    def kept_for_others(self, peer: str) -> int:
        self.asked_s[peer] = self.now_s
        others_s = max((asked_s for other, asked_s in self.asked_s.items() if other != peer), default=0)
        return LEFT_FREE * self.queue.num_images_of[peer] if self.now_s <= others_s + REMEMBERED_S else 0

    def settle(self, request: Request, end: str, error: Exception | None = None) -> None:
        """As Batcher: only what has not ended can end."""
        if request.future.done():
            return
        self.ends[end] += 1
        if error is None:
            request.future.set_result(ANSWER)
        else:
            request.future.set_exception(error)
            request.future.exception()  # or asyncio complains that nobody looked
        if request in self.waiting:  # the rest of one whose batch failed
            self.waiting.remove(request)

    def burst(self) -> None:
        for _ in range(self.random.randint(1, self.max_burst)):
            if not self.num_left:
                return
            self.is_refusing |= self.num_left == self.drain_at
            self.num_left -= 1
            self.arrive()
        self.at(self.random.random() * 2 * self.gap_s, "burst", self.burst)

    def arrive(self) -> None:
        """As Batcher.submit."""
        count = self.random.randint(1, self.max_images)
        left_s = self.random.random() * self.batch_s * self.random.choice([3, 20, 500])
        if self.is_refusing or self.has_given_up:
            self.ends["refused"] += 1
            return
        request = Request(
            images=IMAGES[:count],
            future=self.loop.create_future(),
            arrived_s=self.now_s,
            deadline_s=self.now_s + left_s,
            peer=f"unix:{self.random.randrange(self.num_peers)}",
        )
        num_images = self.queue.num_images + self.kept_for_others(request.peer) + count
        try:
            self.queue.add(request, self.now_s)
        except OverloadedError as error:
            is_full = num_images > self.queue.max_queue_size
            assert error.word == ("QUEUE_FULL" if is_full else "DEADLINE_TOO_SHORT"), error
            assert is_full or self.queue.num_images, "nothing waits, and yet there is no time"
            self.ends["refused"] += 1
            return
        assert num_images <= self.queue.max_queue_size
        self.requests.append(request)
        self.waiting.append(request)
        self.num_taken[request] = 0
        self.trace.append(f"    admitted {len(self.requests) - 1}: {count} images, {left_s:.6f} s left")
        if self.random.random() < self.cancelled:
            self.at(self.random.random() * left_s, "cancel", lambda: self.cancel(request))
        self.wake(self.random.random() * self.max_lag_s)

    def cancel(self, request: Request) -> None:
        """The client goes away, and a little later its task in Batcher.answer_to wakes."""
        if request.future.cancel():
            self.ends["cancelled"] += 1
        if request in self.waiting:
            self.waiting.remove(request)
            self.leaving.append(request)
        self.at(self.random.random() * self.max_lag_s, "forget", lambda: self.forget(request))

    def forget(self, request: Request) -> None:
        self.queue.forget(request)
        self.leaving = [other for other in self.leaving if other is not request]

    def wake(self, delay_s: float) -> None:
        if not self.is_woken:
            self.is_woken = True
            self.at(delay_s, "dispatch", self.dispatch)

    def dispatch(self) -> None:
        """As Batcher._dispatch."""
        self.is_woken = False
        is_in_doubt = self.num_failed >= MAX_FAILED_BATCHES - 1
        while not self.has_given_up and len(self.on_device) < (1 if is_in_doubt else 2):
            ready_in_s = self.queue.ready_in_s(self.now_s)
            assert (ready_in_s is None) == (not self.waiting)
            if ready_in_s is None or (self.on_device and not self.queue.is_full_batch):
                return
            if ready_in_s > 0:
                assert ready_in_s <= self.queue.max_queue_delay_s
                assert not self.queue.is_full_batch
                self.wake(max(ready_in_s, 0.001))
                return
            self.take()

    def take(self) -> None:
        parts, expired = self.queue.take(self.now_s)
        for request in expired:
            assert request in self.waiting
            assert self.now_s >= request.deadline_s
            self.settle(request, "expired", ExpiredError("EXPIRED", "the deadline passed while it was queued"))
        self.check_batch(parts)
        if parts:
            self.trace.append(f"    takes {[(self.requests.index(part.request), part.stop) for part in parts]}")
            self.on_device.append(parts)
            if len(self.on_device) == 1:
                self.begin()

    def check_batch(self, parts: list[Part]) -> None:
        """Whole requests in their order, as many as fit; one that is larger than any batch is split."""
        expected: list[Part] = []
        room = self.queue.max_batch_size
        for request in self.waiting:
            is_large = len(request.images) > self.queue.max_batch_size
            if not room or (expected and self.num_waiting(request) > room and not is_large):
                break
            start = self.num_taken[request]
            count = min(room, self.num_waiting(request))
            expected.append(Part(request, start, start + count))
            room -= count
        assert parts == expected, "another batch was due"
        for request, _, stop in parts:
            assert not request.future.done() and self.now_s < request.deadline_s, "executed, and should not be"
            self.num_taken[request] = stop
        self.waiting = [request for request in self.waiting if self.num_waiting(request)]

    def begin(self) -> None:
        num_images = sum(part.stop - part.start for part in self.on_device[0])
        seconds = (self.base_s + num_images * self.image_s) * self.random.uniform(0.9, 1.3)
        if self.random.random() < self.slow:
            seconds *= self.random.uniform(2, 30)
        if self.random.random() < self.hanging / 10:
            self.at(1000 * self.batch_s, "hang", self.give_up)
        else:
            is_ok = self.random.random() >= self.failing
            self.at(seconds, "deliver" if is_ok else "failure", lambda: self.deliver(num_images, seconds, is_ok))

    def deliver(self, num_images: int, seconds: float, is_ok: bool) -> None:
        """As Batcher._deliver."""
        for request, start, stop in self.on_device.pop(0):
            assert start == self.num_run.get(request, 0), "executed twice, or not in order"
            self.num_run[request] = stop
            if not is_ok:
                self.settle(request, "failed", FAILED)
                if request.num_waiting:
                    self.queue.forget(request)
            elif stop == len(request.images):
                self.settle(request, "answered")
        if is_ok:
            self.queue.observe(num_images, seconds)
        self.num_failed = 0 if is_ok else self.num_failed + 1
        if self.num_failed == MAX_FAILED_BATCHES:
            self.give_up()
        elif self.on_device:
            self.begin()
        self.dispatch()

    def give_up(self) -> None:
        """As Batcher.abandon."""
        self.has_given_up = True
        told = list(self.queue.clear())
        assert [request for request in told if not request.future.cancelled()] == self.waiting
        self.waiting.clear()
        for request in [*[part.request for parts in self.on_device for part in parts], *told]:
            self.settle(request, "given up", GIVEN_UP)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def lived(seed: int, loop: asyncio.AbstractEventLoop) -> Life:
    life = Life(seed, loop)
    try:
        life.live()
    except Exception as error:
        last = "\n".join(life.trace[-40:])
        raise AssertionError(f"{last}\n{error}\nATELIER_SIMULATION_SEED={seed}") from error
    return life


@pytest.mark.fault("S18", "S19", "S20", "S21", "S32")
@pytest.mark.goal("G15", of="simulated lives of grpcio's queue", ci=200, release=100_000)
def test_simulation_of_many_lives_breaks_no_rule(loop: asyncio.AbstractEventLoop, size: int, figure: Figure) -> None:
    if "ATELIER_SIMULATION_SEED" in os.environ:
        lived(int(os.environ["ATELIER_SIMULATION_SEED"]), loop)
        return
    ends: Counter[str] = Counter()
    simulated_s = 0.0
    for seed in range(size):
        life = lived(seed, loop)
        ends += life.ends
        simulated_s += life.now_s - 1000
    figure(f"0 violations in {size:,} lives, {simulated_s / 3600:,.1f} simulated hours; {dict(ends)}")
    assert set(ends) == {"answered", "refused", "expired", "cancelled", "failed", "given up"}


@pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo: rustup, or apt-get install cargo")
@pytest.mark.skipif(RESULTS not in os.environ, reason="cargo test lives the same lives; make reliability counts them")
@pytest.mark.slow
@pytest.mark.goal("G15", of="simulated lives of the native core", ci=1000, release=1_000_000)
def test_simulation_of_the_native_core_breaks_no_rule(size: int, figure: Figure) -> None:
    command = [
        "cargo",
        "test",
        "--locked",
        "--lib",
        "simulation",
        *(["--release"] if is_release() else []),
        "--",
        "--nocapture",
    ]
    environment = {"CARGO_TARGET_DIR": str(ROOT / ".cache/native"), **os.environ, "ATELIER_SIMULATION_SEEDS": str(size)}
    subprocess.run([sys.executable, ROOT / "native/pins.py", "restore"], check=True)
    done = subprocess.run(command, cwd=ROOT / "native", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = next(line for line in done.stdout.splitlines() if "simulated hours" in line)
    figure(f"0 violations in {told.strip()}")
