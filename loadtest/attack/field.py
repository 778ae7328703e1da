"""Field of an attack, and its process, which takes only what others leave: real attackers have cores of their own."""

import contextlib
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

from loadtest.processes import Child

Counts = Counter[str]
GoesOn = Callable[[], bool]
LOWEST_PRIORITY = 19
GRACE_S = 15.0  # past the attack's own end; then its process is killed


@dataclass(frozen=True, kw_only=True)
class Field:
    """One attack's target, size and time, on the monotonic clock of the machine."""

    address: tuple[str, int]
    metrics_address: tuple[str, int]
    size: int
    least_s: float  # it goes on until then, however soon its size is reached
    most_s: float  # it ends then, however little was reached

    def goes_on(self, done: int) -> bool:
        """Returns whether there is more to do."""
        now_s = time.monotonic()
        return now_s < self.most_s and (done < self.size or now_s < self.least_s)


class Attack(NamedTuple):
    """One way to attack: `work` runs in a process of its own, until it has counted `size` of `unit`."""

    name: str
    work: Callable[[Field], Counts]
    unit: str
    size: int
    short_size: int  # in the gate

    @property
    def what(self) -> str:
        """One sentence."""
        return (self.work.__doc__ or "").partition("\n")[0]


def in_threads(number: int, field: Field, work: Callable[[int, Counts, GoesOn], None], unit: str) -> Counts:
    """Repeats `work` in threads until they have together counted the field's size of `unit`.

    It gets the number of its thread, what that has counted, and whether there is more to do, for all of them.
    """
    shares: list[Counts] = [Counter() for _ in range(number)]

    def goes_on() -> bool:
        return field.goes_on(sum(share[unit] for share in shares))

    def repeat(rank: int) -> None:
        while goes_on():
            try:
                work(rank, shares[rank], goes_on)
            except OSError:
                shares[rank]["refused"] += 1
                time.sleep(0.01)

    threads = [threading.Thread(target=repeat, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total: Counts = Counter()
    for share in shares:
        total.update(share)
    return total


def paused(seconds: float, field: Field) -> None:
    """Sleeps, but not past the end of the attack."""
    with contextlib.suppress(ValueError):
        time.sleep(min(seconds, field.most_s - time.monotonic()))


def run_attack(work: Callable[[Field], Counts], field: Field) -> Counts:
    """Returns what the attack counted. Raises ProgramError if its process died; an endless one is killed."""
    child = Child(work.__name__, _attack, work, field)
    try:
        if not child.pipe.poll(field.most_s - time.monotonic() + GRACE_S):
            return Counter({"killed": 1})
        counts: Counts = child.receive()
        return counts
    finally:
        child.end()


def _attack(work: Callable[[Field], Counts], field: Field, pipe: Connection) -> None:
    os.nice(LOWEST_PRIORITY)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # less than any niceness
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipe.send(work(field))
