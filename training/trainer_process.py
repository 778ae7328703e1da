"""A trainer among other processes: who speaks, one run in a directory, a clean stop, and how it was started."""

import fcntl
import os
import shlex
import signal
import sys
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


# --- How it was started: commands in messages work when pasted into the shell that started it -------------------------


def train_command(*options: object) -> str:
    """Names the trainer with `options` as this process was started: through make, torchrun, or Python itself."""
    arguments = shlex.join(str(option) for option in options)
    if "RANK" in os.environ:
        return f"{_torchrun()} -m training {arguments}".strip()
    if not _is_in_project():
        return f"{_python()} -m training {arguments}".strip()
    quoted = shlex.quote(arguments.replace("$", "$$"))  # a dollar sign is make's, unless doubled
    return f"make train ARGS={quoted}" if options else "make train"


def _is_in_project() -> bool:
    """Returns whether `make train`, typed here, would run this very Python."""
    venv = Path(".venv")
    return Path("Makefile").is_file() and venv.exists() and venv.samefile(sys.prefix)


def _python() -> str:
    """Names the interpreter, as short as it can be said from here."""
    path, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _torchrun() -> str:
    """Names the launcher, if all processes are on this machine: only the user knows how several find each other."""
    on_this_machine, everywhere = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if on_this_machine != everywhere:
        return "on every machine the same torchrun ..."
    return f"{_python()} -m torch.distributed.run --nproc-per-node {on_this_machine}"
