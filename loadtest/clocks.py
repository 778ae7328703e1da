"""The two clocks that a call of `infer` is timed by: the wall's, and between CUDA events on the stream that it is on.

A call returns when the logits are in host memory, so the stream is idle when the first event is recorded and when the
second one is: between them lie both copies, all kernels, and what the host does in the meantime.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from atelier.contract import Images
from serving.backends.base import Backend

LEGACY_STREAM = 0  # PyTorch's own


class Taken(NamedTuple):
    """One call, in seconds."""

    clock_s: float  # between the events, or by the wall clock where there are none
    wall_s: float


class WallClock:
    """Python's own."""

    name = "wall clock"

    def time(self, infer: Callable[[Images], Any], images: Images) -> Taken:
        """One call."""
        started_s = time.perf_counter()
        infer(images)
        taken_s = time.perf_counter() - started_s
        return Taken(taken_s, taken_s)

    def close(self) -> None:
        """There is nothing to give back."""


class EventClock:
    """The device's. `stream` is a `serving.backends.cuda.Stream` or a raw handle. Raises CudaError."""

    name = "CUDA events"

    def __init__(self, stream: Any) -> None:
        from serving.backends.cuda import Event

        self._stream, self._start, self._end = stream, Event(), Event()
        self._wall = WallClock()

    def time(self, infer: Callable[[Images], Any], images: Images) -> Taken:
        """One call; waits for the second event."""
        self._start.record(self._stream)
        wall_s = self._wall.time(infer, images).wall_s
        self._end.record(self._stream)
        return Taken(self._end.milliseconds_since(self._start) / 1e3, wall_s)

    def close(self) -> None:
        """Frees the events."""
        self._start.free()
        self._end.free()


def clock_of(backend: Backend) -> WallClock | EventClock:
    """Events where the backend is on a GPU: on its own `stream`, or on PyTorch's where it tells none."""
    if not backend.device.startswith("cuda"):
        return WallClock()
    from serving.backends.cuda import use_device

    use_device(int(backend.device.partition(":")[2] or "0"))
    return EventClock(getattr(backend, "stream", LEGACY_STREAM))
