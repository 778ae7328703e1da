"""Runs an attack in a process of its own, which leaves the cores to the server: real attackers have cores of theirs."""

import contextlib
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection

from loadtest.attack.field import Counts, Field
from loadtest.child import Child

LOWEST_PRIORITY = 19
GRACE_S = 15.0  # past the attack's own end; then its process is killed


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
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipe.send(work(field))
