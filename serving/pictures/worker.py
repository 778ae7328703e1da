"""Runs the process that decodes pictures: `python -m serving.pictures.worker`, asked over its standard input.

It holds no key, token or socket of the server's, gives way to what answers, and may take so much memory and time for a
picture and no more: what breaks a decoder ends this process, and costs one picture.
"""

import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from serving.errors import InvalidRequestError
from serving.pictures.decode import fitted, light_on_black
from serving.pictures.photographs import has_light_border, prepared
from serving.pictures.reading import Reading, ReadPicture, asked, refused

NICENESS = 10
MAX_BYTES = 512 << 20  # beside what the process takes before its first picture; the dearest need a third of it
MAX_CPU_S = 10


def main() -> int:
    """Answers until the server closes its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to all processes; the server ends this one
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)  # now that it is loaded: the first picture waits for that
    _limit_memory()
    link = Connection(os.dup(sys.stdin.fileno()))
    while True:
        try:
            picture, index, reading = asked(link.recv_bytes())
        except EOFError:
            return 0
        _limit_time()
        try:
            answer = read_picture(picture, index, reading).to_bytes()
        except InvalidRequestError as error:
            answer = refused(error)
        link.send_bytes(answer)


def read_picture(picture: bytes, index: int, reading: Reading) -> ReadPicture:
    """Decodes the picture. Raises InvalidRequestError, which names it by its place in the request, `index`."""
    if reading.prepare:
        return ReadPicture(*prepared(picture, index=index), is_light=False)
    gray = light_on_black(picture, index=index, invert=reading.invert)
    return ReadPicture(fitted(gray), None, not reading.invert and has_light_border(np.asarray(gray)))


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold pictures


def _limit_time() -> None:
    """Lets the system end this process if the next picture takes much longer than any may."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + MAX_CPU_S, hard))


if __name__ == "__main__":
    sys.exit(main())
