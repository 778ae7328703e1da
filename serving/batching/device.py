"""Owns the device: one thread warms it up, runs batches in their order, and frees it."""

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

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


class DeviceThread:
    """Is spoken to from the event loop, and answers there."""

    def __init__(
        self,
        backend: Backend,
        deliver: Callable[[Batch, Ran, float], None],
        clock: Callable[[], float],
        hang_timeout_s: float,
    ) -> None:
        """`deliver` gets each batch with what became of it, and the seconds that it ran."""
        self._backend, self._deliver, self._clock = backend, deliver, clock
        self._runs = BatchRuns(backend, clock, hang_timeout_s=hang_timeout_s)
        self._loop = asyncio.get_running_loop()
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._is_warm: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    async def start(self) -> None:
        """Warms up every batch size. Raises what the backend does."""
        self._thread.start()
        await self._is_warm

    def put(self, batch: Batch) -> None:
        """Has a batch run behind those that were put before."""
        self._batches.put(batch)

    async def close(self, timeout_s: float) -> None:
        """Ends the thread after what it has, and frees the device; a thread that takes longer is left behind."""
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _work(self) -> None:
        try:
            self._backend.warm_up()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._is_warm.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._is_warm.set_result, None)
        while (batch := self._batches.get()) is not None:
            batch.started_s = self._clock()
            ran = self._runs.run(batch.images)
            with contextlib.suppress(RuntimeError):  # given up as hung, it may come back after the loop has closed
                self._loop.call_soon_threadsafe(self._deliver, batch, ran, self._clock() - batch.started_s)
        try:
            self._backend.close()
        except Exception:  # nothing can be done with a broken one; the system frees what the process had
            logger.exception("the device could not be freed")
