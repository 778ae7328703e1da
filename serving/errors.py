"""One exception tree: what ends a program, with its exit code, and what fails a request, with its gRPC status.

Every message names the value, the limit and the cure, and starts with a stable word (`BAD_DATASET`, `QUEUE_FULL`) that
scripts can match. Exit codes are those of BSD's sysexits.h. This module imports the standard library only: training
and export end their programs through it too.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar


class AtelierError(Exception):
    """`WORD: what happened (what to do about it)`."""

    def __init__(self, word: str, what: str, cure: str = "") -> None:
        super().__init__(f"{word}: {what} ({cure})" if cure else f"{word}: {what}")
        self.word = word
        self.what = what


# --- What ends a program -------------------------------------------------------------------------------------------


class ProgramError(AtelierError):
    """Ends a program; `exit_code` is the process's."""

    exit_code: ClassVar[int] = os.EX_SOFTWARE


class UsageError(ProgramError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class BadDataError(ProgramError):
    """A data set, checkpoint or artifact is not what it must be."""

    exit_code = os.EX_DATAERR


class MissingInputError(ProgramError):
    """A file that is needed is not there."""

    exit_code = os.EX_NOINPUT


class ResourceUnavailableError(ProgramError):
    """A port, device, provider or library is not to be had."""

    exit_code = os.EX_UNAVAILABLE


class StorageError(ProgramError):
    """The disk is full, read-only or failing."""

    exit_code = os.EX_IOERR


class InterruptedRunError(ProgramError):
    """The run was interrupted and can be resumed."""

    exit_code = os.EX_TEMPFAIL


class DeviceError(ProgramError):
    """The device does not work any more, in this process: another may do better."""


class PermissionRefusedError(ProgramError):
    """The operating system refuses access."""

    exit_code = os.EX_NOPERM


class ConfigurationError(ProgramError):
    """The settings contradict each other, or what they are applied to."""

    exit_code = os.EX_CONFIG


def run_program(main: Callable[[list[str]], int], arguments: list[str] | None = None, *, extras: str = "") -> int:
    """Runs `main` and turns every failure into one line on stderr and an exit code; `--debug` adds the traceback.

    `extras` are those that `main` needs (`export,serve`), to be named if a package is missing: it imports them itself.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
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
        print("error:", " ".join(str(failure).split()), file=sys.stderr)  # one line, whatever a library's message has
        return failure.exit_code


def how_to_install(extras: str) -> str:
    """The cure for a missing package: `pip install '.[<extras>]' ...`."""
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
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EIO):
        return StorageError("IO_ERROR", f"{error.filename or 'a file'}: {error.strerror}", "use another directory")
    if isinstance(error, PermissionError):
        return PermissionRefusedError(
            "NO_PERMISSION", f"{error.filename or 'a file'}: {error.strerror}", "change its mode or owner"
        )
    if isinstance(error, MemoryError):
        return ProgramError(
            "OUT_OF_MEMORY", "the host has no memory left for this", "free some, or use smaller batches"
        )
    return ProgramError("INTERNAL", f"{type(error).__name__}: {error}", "a bug: run again with --debug and report it")


# --- What fails a request ------------------------------------------------------------------------------------------


class RequestError(AtelierError):
    """Fails one request; `status` is the gRPC status code's name. The message goes to the client as it is."""

    status: ClassVar[str] = "INTERNAL"
    # How long a client that may retry should wait first (gRFC A6); None where retrying cannot help.
    retry_pushback_ms: ClassVar[int | None] = None


class InvalidRequestError(RequestError):
    """The request can never succeed."""

    status = "INVALID_ARGUMENT"


class UnknownModelError(RequestError):
    """The model or version asked for is not the one served."""

    status = "NOT_FOUND"


class OverloadedError(RequestError):
    """The queue is full, or the deadline cannot be met: load is shed."""

    status = "RESOURCE_EXHAUSTED"
    retry_pushback_ms = 100


class ExpiredError(RequestError):
    """The deadline passed before the request was executed."""

    status = "DEADLINE_EXCEEDED"


class NotServingError(RequestError):
    """Draining, not warm yet, or the device is gone: another try, or another server, may succeed."""

    status = "UNAVAILABLE"
    retry_pushback_ms = 700


class BackendError(RequestError):
    """The backend failed on this batch, or its output makes no sense."""

    status = "INTERNAL"
