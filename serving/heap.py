"""Keeps the process small: gives memory that calls have taken back to the system once they have ended."""

import ctypes
import time

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
FORDBLKS = 8  # which of mallinfo2's numbers says how many bytes are free
SPARE_BYTES = 32 << 20  # so much may lie about


class _MallocInfo(ctypes.Structure):
    """Mirrors glibc's struct mallinfo2."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


class Heap:
    """Watches glibc's heap. With another C library it does nothing."""

    def __init__(self, *, look_every_s: float = 2.0) -> None:
        """By default glibc keeps up to twice the largest message, for each thread."""
        self._look_every_s = look_every_s
        self._next_look_s = 0.0
        self._given_back_bytes = 0  # still free, for the C library
        self._libc = ctypes.CDLL(None)
        self._is_glibc = hasattr(self._libc, "mallinfo2")
        if self._is_glibc:
            self._libc.mallinfo2.restype = _MallocInfo
            self._libc.mallopt(M_MMAP_THRESHOLD, 256 << 10)
            self._libc.mallopt(M_TRIM_THRESHOLD, 1 << 20)
            self._libc.mallopt(M_ARENA_MAX, 2)

    def look(self) -> None:
        """Has what lies free between things in use given back too, once it is much.

        That takes up to some tens of milliseconds, in which threads that allocate wait: so it is not done in vain.
        """
        now_s = time.monotonic()
        if not self._is_glibc or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + self._look_every_s
        free_bytes = self._libc.mallinfo2().numbers[FORDBLKS]
        self._given_back_bytes = min(self._given_back_bytes, free_bytes)  # some of it is in use again
        if free_bytes > self._given_back_bytes + SPARE_BYTES:
            self._libc.malloc_trim(0)
            self._given_back_bytes = free_bytes
