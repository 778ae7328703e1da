"""Owns the device: apart from the event loop it is warmed up, runs batches in their order, and is freed."""

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from atelier.contract import IMAGE_SHAPE, Images
from serving.backends.base import Backend
from serving.batching.request import Part
from serving.batching.runs import BatchRuns, Ran

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Batch:
    """Holds what is handed to the device's thread, which notes when it began."""

    parts: list[Part]
    images: Images  # (N, 1, 28, 28) uint8
    started_s: float = math.inf

    @classmethod
    def of(cls, parts: list[Part]) -> "Batch":
        """Joins the images of all parts; a single part's are not copied."""
        if len(parts) == 1:
            return cls(parts, parts[0].images)
        joined = b"".join([part.images.data for part in parts])
        return cls(parts, np.frombuffer(joined, np.uint8).reshape(-1, *IMAGE_SHAPE))


class Executor(Protocol):
    """Runs what it is given, one after the other, apart from the event loop: a thread, or a simulation of one."""

    def start(self) -> None:
        """Makes it ready for work."""
        ...

    def put(self, work: Callable[[], None]) -> None:
        """Has this run behind what was put before."""
        ...

    def end(self) -> None:
        """Has it end behind what was put before."""
        ...

    async def join(self, timeout_s: float) -> None:
        """Returns once it has ended, or takes longer than this."""
        ...


class DeviceThread:
    """Runs work in a thread, which is left behind at the end of the process if something hangs in it."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self.start, self.put = self._thread.start, self._work.put

    def end(self) -> None:
        """Has the thread end behind what was put before."""
        self._work.put(None)

    async def join(self, timeout_s: float) -> None:
        """Returns once the thread has ended, or takes longer than this."""
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class Device:
    """Is spoken to from the event loop, and answers there; what it does in between is the executor's to run."""

    def __init__(
        self,
        backend: Backend,
        deliver: Callable[[Batch, Ran, float], None],
        clock: Callable[[], float],
        executor: Executor,
        hang_timeout_s: float,
    ) -> None:
        """`deliver` gets each batch with what became of it, and the seconds that it ran."""
        self._backend, self._deliver, self._clock, self._executor = backend, deliver, clock, executor
        self._runs = BatchRuns(backend, clock, hang_timeout_s=hang_timeout_s)
        self._loop = asyncio.get_running_loop()
        self._is_warm: asyncio.Future[None] = self._loop.create_future()

    async def start(self) -> None:
        """Warms up every batch size. Raises what the backend does."""
        self._executor.start()
        self._executor.put(self._warm_up)
        await self._is_warm

    def put(self, batch: Batch) -> None:
        """Has a batch run behind those that were put before."""
        self._executor.put(partial(self._run, batch))

    async def close(self, timeout_s: float) -> None:
        """Frees the device behind what it has; one that takes longer is left behind."""
        self._executor.put(self._free)
        self._executor.end()
        await self._executor.join(timeout_s)

    def _warm_up(self) -> None:
        try:
            self._backend.warm_up()
        except Exception as error:
            self._executor.end()
            self._loop.call_soon_threadsafe(self._is_warm.set_exception, error)
        else:
            self._loop.call_soon_threadsafe(self._is_warm.set_result, None)

    def _run(self, batch: Batch) -> None:
        batch.started_s = self._clock()
        ran = self._runs.run(batch.images)
        with contextlib.suppress(RuntimeError):  # given up as hung, it may come back after the loop has closed
            self._loop.call_soon_threadsafe(self._deliver, batch, ran, self._clock() - batch.started_s)

    def _free(self) -> None:
        try:
            self._backend.close()
        except Exception:  # nothing can be done with a broken one; the system frees what the process had
            logger.exception("the device could not be freed")
