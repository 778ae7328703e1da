"""Memory that the C library keeps is given back, also what lies between things in use."""

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import psutil

from serving.heap import Heap

MEGABYTE = 1 << 20


def test_what_is_free_between_things_in_use_is_given_back() -> None:
    """In a process of its own, whose memory nothing else moves."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        grown, left = processes.submit(grown_and_left).result()
    assert grown > 100 * MEGABYTE
    assert left < 40 * MEGABYTE


def grown_and_left() -> tuple[int, int]:
    """By how many bytes the process grows with 125 MB of blocks, and what is left of it once most of them are freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    process, watched = psutil.Process(), Heap(look_every_s=0)
    watched.look()
    before = process.memory_info().rss
    blocks = [libc.malloc(16_384) for _ in range(8_000)]
    for block in blocks:
        ctypes.memset(block, 1, 16_384)
    for block in blocks[1:-1]:
        if (block // 16_384) % 16:
            libc.free(block)
    grown = process.memory_info().rss - before
    watched.look()
    return grown, process.memory_info().rss - before
