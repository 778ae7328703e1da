"""Keeps the process small: gives memory that calls have taken back to the system once they have ended."""

import contextlib
import ctypes
import time
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
SPARE_BYTES = 32 << 20  # more than usual: so much may lie about
PAGE_BYTES = 4096


class Heap:
    """Watches the C library's heap. With another library than glibc, or no /proc, it does nothing."""

    def __init__(self, *, look_every_s: float = 5.0) -> None:
        """By default glibc keeps up to twice the largest message, for each thread."""
        self._look_every_s = look_every_s
        self._libc = ctypes.CDLL(None)
        self._usual_bytes = 0
        self._next_look_s = 0.0
        with contextlib.suppress(AttributeError):
            self._libc.mallopt(M_MMAP_THRESHOLD, 256 << 10)
            self._libc.mallopt(M_TRIM_THRESHOLD, 1 << 20)
            self._libc.mallopt(M_ARENA_MAX, 2)

    def look(self) -> None:
        """Has what is free between things in use given back too, if the process is larger than when it began.

        That takes some milliseconds, in which threads that allocate wait: so it is not done in vain, nor often.
        """
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + self._look_every_s
        resident_bytes = _resident_bytes()
        self._usual_bytes = self._usual_bytes or resident_bytes
        if resident_bytes > self._usual_bytes + SPARE_BYTES:
            with contextlib.suppress(AttributeError):
                self._libc.malloc_trim(0)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
