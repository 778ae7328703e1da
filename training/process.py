"""A trainer among other processes: who speaks, one run at a time in a directory, and a clean stop when told to."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from atelier.errors import ResourceUnavailableError, StorageError

LOCK_NAME = ".lock"


def is_first() -> bool:
    """Returns whether this process speaks and writes: of several that `torchrun` started, the first."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Makes the directory where needed, and keeps other trainers out of it until the block or the process ends.

    The kernel holds the lock, so that of a killed process is gone with it. Raises ResourceUnavailableError RUN_LOCKED
    naming the process that has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        what = f"cannot make the directory {directory}: {error.strerror}"
        raise StorageError("NOT_A_DIRECTORY", what, "name another with --checkpoint-dir") from None
    with (directory / LOCK_NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            what = f"{directory} is being trained into by {owner}"
            raise ResourceUnavailableError(
                "RUN_LOCKED", what, "wait for it, or name another --checkpoint-dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


class StopRequestedError(Exception):
    """A signal asked this process to stop; the message is the signal's name."""


class StopRequest:
    """Notes the first SIGINT or SIGTERM, to be acted upon where it is convenient; a second one ends the process."""

    def __init__(self) -> None:
        self._signal_name = ""
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> "StopRequest":
        for number in self._previous:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal_name = signal.Signals(number).name
        for known in self._previous:
            signal.signal(known, signal.SIG_DFL)

    def check(self) -> None:
        """Raises StopRequestedError once a signal has come."""
        if self._signal_name:
            raise StopRequestedError(self._signal_name)
