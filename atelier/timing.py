"""Times a backend in this process: for reports, not for serving."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from atelier.contract import Images, Logits

T = TypeVar("T")


def timed_calls(time_call: Callable[[Images], T], batches: Sequence[Images], seconds: float) -> list[T]:
    """Calls with one batch after the other, over and over, for so long but at least once; returns each call's time."""
    calls: list[T] = []
    until_s = time.perf_counter() + seconds
    while not calls or time.perf_counter() < until_s:
        calls.append(time_call(batches[len(calls) % len(batches)]))
    return calls


def wall_s(infer: Callable[[Images], Logits], images: Images) -> float:
    """Makes one call; returns its seconds by the wall clock."""
    started_s = time.perf_counter()
    infer(images)
    return time.perf_counter() - started_s


def images_per_s(infer: Callable[[Images], Logits], images: Images, seconds: float) -> float:
    """Calls with the same batch for so long; returns the rate."""
    times_s = timed_calls(lambda batch: wall_s(infer, batch), [images], seconds)
    return len(images) * len(times_s) / sum(times_s)
