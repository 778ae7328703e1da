"""Has the processes that decode pictures stand still: a picture then waits, as behind many that take long."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psutil

from loadtest.attack.bombs import blank_png
from serving.pictures.decoders import NUM_DECODERS, read_in_process
from serving.pictures.reading import Reading
from tests.serving.running import running_children_of


def decoder_processes() -> list[psutil.Process]:
    """Those that this process has started."""
    children = running_children_of(psutil.Process())
    return [child for child in children if "serving.pictures.worker" in child.cmdline()]


@contextmanager
def decoders_stopped() -> Iterator[Callable[[], None]]:
    """No picture is decoded until the end, or until what is yielded is called."""
    for _ in range(20):
        if len(decoder_processes()) == NUM_DECODERS:
            break
        with ThreadPoolExecutor(NUM_DECODERS) as threads:  # one that is asked while all others are busy starts
            list(threads.map(_read, range(NUM_DECODERS)))
    stopped = decoder_processes()
    assert len(stopped) == NUM_DECODERS

    def resume() -> None:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):  # it was given up
                process.send_signal(signal.SIGCONT)

    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        yield resume
    finally:
        resume()


def _read(index: int) -> None:
    read_in_process(blank_png(2048), index, Reading(invert=False, prepare=False))
