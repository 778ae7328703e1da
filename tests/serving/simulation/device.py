"""A device with its faults, and the thread that owns it, in virtual time.

All work is done when it begins, by a clock that runs ahead of the loop's; the loop hears of it when it is over.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atelier.contract import IMAGE_SHAPE, NUM_CLASSES, Images, Logits
from serving.batching.device import Batch
from serving.batching.runs import Ran
from serving.errors import OverloadedError
from tests.serving.simulation.rules import ensure

if TYPE_CHECKING:
    from tests.serving.simulation.life import Life
    from tests.serving.simulation.process import Process

NUM_IMAGES = 16384
# Image i says i in its first four bytes; 0 is the probe.
NUMBERS = np.arange(NUM_IMAGES, dtype="<u4")
IMAGES = np.zeros((NUM_IMAGES, *IMAGE_SHAPE), np.uint8)
IMAGES[:, 0, 0, :4] = NUMBERS.view(np.uint8).reshape(-1, 4)


def numbers_of(images: Images) -> Any:
    """Returns what the images say: (N,) uint32."""
    return np.ascontiguousarray(images[:, 0, 0, :4]).view("<u4")[:, 0]


@dataclass
class Run:
    """Holds what happened in one piece of work."""

    began_s: float
    took_s: float = 0.0
    hangs_s: float = 0.0
    num_failures_left: float = 0  # that the backend has in store for it
    bad: set[int] = field(default_factory=set)  # numbers of images
    answers_nonsense: bool = False
    lacks_memory: bool = False
    failed_alone: bool = False  # an image with nothing wrong about it

    @property
    def is_failing(self) -> bool:
        """Nothing of it can be right."""
        return self.answers_nonsense or self.num_failures_left == np.inf


class SimulatedDevice:
    """Is the backend of one version, and the executor that runs it."""

    name, device = "simulated", "cpu"

    def __init__(self, life: "Life", process: "Process", version: int) -> None:
        self.life, self.process, self.version = life, process, version
        self.max_batch_size = life.scenario.max_batch_size
        self.ahead_s = 0.0
        self.num_on_device = 0  # batches that were put, and have not been delivered
        self.num_failed = 0  # in a row
        self.num_open = 0  # calls
        self.failure = ""  # why it was given up
        self.is_warm = self.is_loaded = self.is_closed = self.is_dead = self.is_ended = False
        self.run: Run | None = None  # the one that runs
        self._works: deque[Callable[[], None] | None] = deque()
        self._undelivered: deque[Run] = deque()
        self._is_begun = False
        self._has_ended = asyncio.Event()
        self._last_s = 0.0

    # --- The executor: what DeviceThread does --------------------------------------------------------------------

    def start(self) -> None:
        """Is ready at once."""

    def put(self, work: Callable[[], None]) -> None:
        """Has this run behind what was put before."""
        if any(isinstance(one, Batch) for one in getattr(work, "args", ())):
            is_in_doubt = self.num_failed >= 2
            ensure(self.num_on_device < (1 if is_in_doubt else 2), "too many batches are on the device")
            ensure(not self.failure, "a batch is put on a device that was given up")
            self.num_on_device += 1
        self._works.append(work)
        self._begin_soon()

    def end(self) -> None:
        """Ends behind what was put before."""
        self._works.append(None)
        self._begin_soon()

    async def join(self, timeout_s: float) -> None:
        """Returns once it has ended, or takes longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_ended.wait()

    @property
    def running(self) -> Run | None:
        """What runs, or has run and is not heard of yet."""
        return self._undelivered[0] if self._undelivered else None

    def check(self) -> None:
        """Holds whenever all that is due has run."""
        self.life.queues[self].check()
        is_retired = not self.num_open and self not in self.process.loaded  # it is left behind
        if self.num_on_device and not self.failure and not is_retired and (run := self.running):
            hang_s = self.life.scenario.hang_timeout_s
            longest_s = hang_s + min(1.0, hang_s) + 1e-5
            is_noticed = self.life.loop.now_s - run.began_s <= longest_s or self.life.has_paused
            ensure(is_noticed, "hangs, and nobody notices:", run)

    @property
    def is_busy(self) -> bool:
        """Something runs, is about to, or has run and is not heard of yet."""
        return bool(self.num_on_device or self._is_begun or self._works)

    def call_back(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> asyncio.Handle:
        """Has the loop hear of what has run, behind what it was told before."""
        loop = self.life.loop
        when_s = max(loop.clock() + self.life.lag_s(), self._last_s + 1e-9)
        self._last_s = when_s
        if self.run is not None:
            self._undelivered.append(self.run)
        return loop.call_at(when_s, self._deliver, callback, arguments)

    def _begin_soon(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            self.life.loop.call_later(self.life.lag_s(), self._begin)

    def _begin(self) -> None:
        if not self._works or self.is_dead or self.is_ended:
            self._is_begun = False
            return
        work = self._works.popleft()
        if work is None:
            self.is_ended, self._is_begun = True, False
            self._has_ended.set()
            return
        loop, self.ahead_s = self.life.loop, 0.0
        self.run, loop.elsewhere = self._draw_run(), self
        work()
        self.run.took_s = self.ahead_s
        loop.elsewhere = None
        loop.call_later(self.ahead_s, self._begin)

    def _draw_run(self) -> Run:
        life, scenario = self.life, self.life.scenario
        run = Run(life.loop.now_s)
        if self.is_warm and not life.is_healed:
            if life.random.is_one_in(scenario.hang):
                run.hangs_s = scenario.hang_timeout_s * life.random.between(1, 4)
            if life.random.is_one_in(scenario.failure):
                run.answers_nonsense = life.random.is_one_in(3)
                run.lacks_memory = life.random.is_one_in(4)
                run.num_failures_left = np.inf
            elif life.random.is_one_in(scenario.glitch):
                run.num_failures_left = 1
        return run

    def _deliver(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self.is_dead:
            return
        run = self._undelivered.popleft()
        if not isinstance(arguments[0], Batch):
            callback(*arguments)
            return
        batch, ran, _ = arguments  # as Batcher._deliver has them
        self.num_on_device -= 1
        self.life.note(lambda: f"version {self.version}: {len(batch.images)} images came back: {run}")
        self.life.on_run(batch, run)
        self.num_failed = 0 if _is_ok(run, ran, len(batch.images)) else self.num_failed + 1
        callback(*arguments)
        is_broken = self.failure == "BACKEND_BROKEN"
        ensure(
            self.failure == "BACKEND_HUNG" or is_broken == (self.num_failed >= 3), "failed in a row:", self.num_failed
        )

    # --- The backend ---------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Runs a few batches."""
        for num_images in (1, self.max_batch_size):
            self.ahead_s += self.life.scenario.batch_s(num_images)
        if self.version in self.life.cold:
            raise RuntimeError("cold")
        self.is_warm = True

    def infer(self, images: Images) -> Logits:
        """Answers with the number of each image, and the version."""
        life, run = self.life, self.run
        assert run is not None
        ensure(not self.is_closed, "a batch runs on a device that was freed")
        ensure(0 < len(images) <= self.max_batch_size, "a batch has so many images:", len(images))
        ensure(self.failure != "BACKEND_BROKEN", "a batch runs on a device that was given up")
        numbers = numbers_of(images)
        self.ahead_s += self._draw_seconds(len(images)) + run.hangs_s
        run.hangs_s = 0.0
        bad = life.bad.intersection(numbers.tolist()) if life.bad else set()
        run.bad |= bad
        if life.scenario.memory and len(images) > life.scenario.memory and not life.is_healed:
            raise self._no_memory()
        if run.num_failures_left and not run.answers_nonsense:
            run.num_failures_left -= 1
            run.failed_alone = len(images) == 1
            raise self._no_memory() if run.lacks_memory else RuntimeError("broken")
        if bad:
            raise RuntimeError("bad image")
        logits = np.zeros((len(images), NUM_CLASSES), np.float32)
        logits[:, 0], logits[:, 1] = numbers, self.version
        return logits * np.float32(np.nan) if run.answers_nonsense else logits

    def _no_memory(self) -> MemoryError:
        self.life.has_lacked_memory = True
        return MemoryError()

    def close(self) -> None:
        """Frees it."""
        ensure(not self.is_closed, "freed twice")
        self.is_closed = True

    def _draw_seconds(self, num_images: int) -> float:
        life, scenario = self.life, self.life.scenario
        usual_s = scenario.batch_s(num_images)
        if scenario.is_calm or life.is_healed:
            return usual_s
        if life.random.is_one_in(scenario.slow):
            return usual_s * life.random.between(2, 30)
        return usual_s * life.random.between(90, 130) / 100


def _is_ok(run: Run, ran: Ran, num_images: int) -> bool:
    """Says whether the device works, as this batch shows it."""
    if len(ran.failures) == num_images:
        return isinstance(ran.failures[0], OverloadedError)
    return not run.is_failing
