"""Runs a program: every failure becomes one line on stderr and an exit code."""

import contextlib
import errno
import io
import logging
import os
import select
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TextIO

from atelier.errors import PermissionRefusedError, ProgramError, ResourceUnavailableError, StorageError
from atelier.memory import is_out_of_memory
from atelier.versions import check_packages

_num_lost: Counter[TextIO] = Counter()  # lines that a stream did not take
os.register_at_fork(after_in_child=_num_lost.clear)  # its parent says how many were lost before


def say(line: str) -> None:
    """Prints a line for the operator. A server goes on if nobody reads it: a closed pipe, a full one."""
    level = "warning" if line.startswith("warning: ") else "info"
    with contextlib.suppress(OSError, ValueError):
        if _takes_a_line(sys.stdout):
            # One write: the second might block.
            print(_lines_lost(sys.stdout) + _line_of(level, line) + "\n", end="", flush=True)
        else:
            _num_lost[sys.stdout] += 1


def say_in(line_of: Callable[[str, str], str]) -> None:
    """Has `say` and `report` print what this makes of a level (info, warning, error) and a text."""
    global _line_of
    _line_of = line_of


def _plain_line(level: str, text: str) -> str:
    return f"{'error' if level == 'error' else 'atelier'}: {text}"


_line_of = _plain_line


class NonBlockingHandler(logging.StreamHandler[TextIO]):
    """Logs to stderr; what nobody reads is dropped and counted, since a full pipe must not stop a server."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, if the stream takes it."""
        with contextlib.suppress(OSError, ValueError):
            if _takes_a_line(self.stream):
                self.stream.write(_lines_lost(self.stream))
                super().emit(record)
            else:
                _num_lost[self.stream] += 1


def _lines_lost(stream: TextIO) -> str:
    """Returns a line that says how many a stream did not take since it last took one; none if it took all."""
    count = _num_lost.pop(stream, 0)
    text = f"warning: {count} {'line was' if count == 1 else 'lines were'} lost here: nobody read the log"
    return _line_of("warning", text) + "\n" if count else ""


def _takes_a_line(stream: TextIO, wait_s: float = 0.0) -> bool:
    """Returns whether a write would not block: a pipe that poll(2) calls writable has room for 4,096 bytes."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except io.UnsupportedOperation:  # no file: it takes everything
        return True
    return bool(poll.poll(wait_s * 1000))


def can_print(text: str) -> bool:
    """Returns whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def report(error: ProgramError) -> None:
    """Prints an error as one line on stderr, whatever a library's message has in it; a pipe stuck for 1 s gets none."""
    if _takes_a_line(sys.stderr, wait_s=1.0):
        print(_line_of("error", " ".join(str(error).split())) + "\n", end="", file=sys.stderr, flush=True)


def run_program(
    main: Callable[[list[str]], int],
    arguments: list[str] | None = None,
    *,
    extras: str = "",
    packages: Sequence[str] = (),
) -> int:
    """Runs `main` and turns every failure into one line on stderr and an exit code; `--debug` adds the traceback.

    `extras` are those that `main` needs (`export,serve`), to be named if a package is missing: it imports them itself.
    `packages` must not be older than their minimum (atelier/versions.py).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what the terminal's encoding has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        check_packages(packages)
        return main(arguments)
    except KeyboardInterrupt:
        print("error: INTERRUPTED: stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as a shell would say: what was asked for may not be done
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        failure = error if isinstance(error, ProgramError) else _program_error_from(error, extras)
        report(failure)
        return failure.exit_code


def run_lazily(module: str, *, extras: str, packages: Sequence[str] = ()) -> None:
    """Runs `main` of a module, imported only here: a package that it lacks is reported like every other failure."""
    sys.exit(
        run_program(lambda arguments: int(import_module(module).main(arguments)), extras=extras, packages=packages)
    )


def how_to_install(extras: str) -> str:
    """Returns the cure for a missing package: `pip install '.[<extras>]' ...`."""
    gpu = " (`gpu` in place of `serve` for an NVIDIA GPU)" if "serve" in extras.split(",") else ""
    return f"pip install '.[{extras}]' in Atelier's directory{gpu}, or make setup there"


def _program_error_from(error: Exception, extras: str) -> ProgramError:
    if isinstance(error, ModuleNotFoundError) and error.name and extras:
        package = error.name.partition(".")[0]
        if find_spec(package) is None:  # else a module of it is missing, which no extra brings
            what = f"this program needs the package {package}, which is not installed"
            return ResourceUnavailableError("NOT_INSTALLED", what, how_to_install(extras))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            "NO_SPACE", f"cannot write {error.filename or 'a file'}: {error.strerror}", "free some space"
        )
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # by tempfile, which tries several
        return StorageError(
            "IO_ERROR", "no directory takes temporary files", "set TMPDIR to one that does", why=str(error)
        )
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EIO):
        return StorageError("IO_ERROR", f"{error.filename or 'a file'}: {error.strerror}", "use another directory")
    if isinstance(error, PermissionError):
        return PermissionRefusedError(
            "NO_PERMISSION", f"{error.filename or 'a file'}: {error.strerror}", "change its mode or owner"
        )
    if is_out_of_memory(error):
        if "cuda" in str(error).lower():
            cure = "end what else uses it (nvidia-smi), or use smaller batches"
            return ResourceUnavailableError("GPU_MEMORY", "the GPU has no memory left for this", cure)
        cure = "free some, or use smaller batches"
        return ProgramError("OUT_OF_MEMORY", "the host has no memory left for this", cure)
    return ProgramError("INTERNAL", f"{type(error).__name__}: {error}", "a bug: run again with --debug and report it")
