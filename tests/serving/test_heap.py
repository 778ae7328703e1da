"""Memory that the C library keeps is given back, also what lies between things in use."""

import ctypes

import psutil

from serving.frontends.native.heap import Heap

MEGABYTE = 1 << 20


def test_what_is_free_between_things_in_use_is_given_back() -> None:
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
    assert process.memory_info().rss > before + 100 * MEGABYTE
    watched.look()
    assert process.memory_info().rss < before + 40 * MEGABYTE
    for block in blocks:
        if block in (blocks[0], blocks[-1]) or not (block // 16_384) % 16:
            libc.free(block)
