"""Runs an attack in a process of its own, which leaves the cores to the server: real attackers have cores of theirs."""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection

from atelier.errors import ProgramError
from loadtest.attack.field import Counts, Field

LOWEST_PRIORITY = 19
GRACE_S = 15.0  # past the attack's own end; then its process is killed


def run_attack(work: Callable[[Field], Counts], field: Field) -> Counts:
    """Returns what the attack counted. Raises ProgramError if its process died; an endless one is killed."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_attack, args=(work, field, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not pipe.poll(field.most_s - time.monotonic() + GRACE_S):
            return Counter({"killed": 1})
        counts: Counts = pipe.recv()
        return counts
    except (EOFError, ConnectionResetError):
        raise ProgramError("ATTACKER_DIED", f"the process of {work.__name__} ended early") from None
    finally:
        pipe.close()
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join()


def _attack(work: Callable[[Field], Counts], field: Field, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's
    os.nice(LOWEST_PRIORITY)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipe.send(work(field))
