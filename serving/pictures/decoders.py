"""Decodes pictures in processes of their own, started when the first picture comes.

Not in threads: Pillow holds Python's lock for up to 27 ms at a time (copies of large pictures), in which no batch can
begin, and a fault in libwebp, libjpeg or zlib would be the server's. With 100 bombs in parallel on two cores, p99 of
others was 24 times the quiet one beside threads. A process costs 0.15 s of CPU to start, 0.1 ms a picture and 20 MB.
"""

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

from serving.errors import PictureError
from serving.pictures.reading import Reading, ReadPicture, question

logger = logging.getLogger(__name__)

# Pictures are decoded on at most half of the cores: the others answer. Each process may hold some 200 MB.
NUM_DECODERS = max(1, min(4, len(os.sched_getaffinity(0)) // 2)) if sys.platform == "linux" else 1
MAX_ANSWER_BYTES = 4096
MAX_WAIT_S = 60.0  # for an answer, as long as any client waits; a busy machine is slow, so CPU is bounded in worker.py
# glibc gives memory back at once, and keeps to one heap.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_TRIM_THRESHOLD_": str(1 << 20), "OPENBLAS_NUM_THREADS": "1"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")  # of the environment


class _DiedError(Exception):
    """The process ended, or was ended, while it had a picture."""

    def __init__(self, how: str, *, is_from_outside: bool = False) -> None:
        super().__init__(how)
        self.is_from_outside = is_from_outside


class Decoder:
    """One process, and the next one when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None before the first picture."""
        return self._process.pid if self._process else None

    def read(self, picture: bytes, index: int, reading: Reading) -> ReadPicture:
        """Reads a picture. Raises InvalidRequestError, also if it ends the process, and RuntimeError for no answer."""
        for is_last in (False, True):
            try:
                return ReadPicture.from_bytes(self._answer(question(picture, index, reading)))
            except _DiedError as error:
                logger.warning("a picture's decoder %s: the next picture starts another", error)
                if is_last or not error.is_from_outside:
                    break
        raise PictureError("ends the process that decodes it", "save it anew, with another program").at(index)

    def _answer(self, asked: bytes) -> bytes:
        link = self._started()
        try:
            link.send_bytes(asked)
            if link.poll(MAX_WAIT_S):
                return link.recv_bytes(MAX_ANSWER_BYTES)
        except (EOFError, OSError):  # OSError: more than any answer has, too
            pass
        else:
            self.end()
            raise RuntimeError(f"a picture's decoder gave no answer within {MAX_WAIT_S:g} s")
        code = self.end()
        if code > 0:
            raise RuntimeError(f"a picture's decoder ended with exit code {code}; what it printed says why")
        raise _DiedError(f"ended by signal {-code}", is_from_outside=code == -signal.SIGKILL)

    def _started(self) -> Connection:
        if self._process and self._link and self._process.poll() is None:
            return self._link
        self.end()
        ours, its = socket.socketpair()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | HEAP
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-P", "-s", "-m", "serving.pictures.worker"]
        with ours, its:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=its.fileno(), stdout=subprocess.DEVNULL, env=environment
            )
            self._link = Connection(ours.detach())
        return self._link

    def end(self) -> int:
        """Ends the process, if there is one; its exit code."""
        if self._process is None or self._link is None:
            return 0
        self._link.close()
        try:
            self._process.wait(1.0)  # it has crashed, or sees the end of what it reads
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        self._process = self._link = None
        return code


_idle: "queue.LifoQueue[Decoder]" = queue.LifoQueue()  # so the second is started when two are asked at once
for _ in range(NUM_DECODERS):
    _idle.put(Decoder())


def read_in_process(picture: bytes, index: int, reading: Reading) -> ReadPicture:
    """Reads a picture in the next process that is free. Raises InvalidRequestError as `read_picture` does."""
    decoder = _idle.get()
    try:
        return decoder.read(picture, index, reading)
    finally:
        _idle.put(decoder)
