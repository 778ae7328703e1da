"""How long the supervisor waits before it replaces a worker.

A device that is broken may be broken for the next process too, and what killed one process may kill the next: replaced
at once, they would be started without end, and on a GPU each start costs seconds. So a worker that lost its device or
died after it had been ready is replaced at once the first time, and then after 1, 2, 4 ... 30 s; one that has been
ready for a minute starts anew.

Not so a worker that left for what strangers can cause: a request whose path is not UTF-8 ends grpcio's accept loop
(ACCEPT_FAILED), floods of large messages make a process grow (MEMORY_GROWN). The process itself was in order, so the
next one will serve; and where there is one worker, a pause would be an outage that strangers could cause at will. Nor a
worker that never was ready: the supervisor bounds how many of them may fail in a row.
"""

STABLE_S = 60.0  # who has been ready for so long has outlived its predecessors' failures
MAX_PAUSE_S = 30.0


def failures_in_a_row(before: int, served_s: float, *, is_failure: bool) -> int:
    """How often a worker and those that it replaced have failed: `before` it, and by its own end.

    `served_s`: since it was ready.
    """
    return (before if served_s < STABLE_S else 0) + is_failure


def pause_s(num_failures: int) -> float:
    """0 after the first failure, then 1, 2, 4 ... MAX_PAUSE_S."""
    return min(MAX_PAUSE_S, 2.0 ** min(num_failures - 2, 10)) if num_failures > 1 else 0.0
