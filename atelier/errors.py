"""The errors that end a program, with their exit codes.

Every message is `WORD: what happened (what to do about it)`. The word is stable (`BAD_DATASET`, `NO_MODEL`), so that
scripts can match it. Exit codes are those of BSD's sysexits.h. What fails a single request is in serving/errors.py.
"""

import os
from typing import ClassVar


class AtelierError(Exception):
    """`WORD: what happened: why (what to do about it)`; each part is a field too."""

    def __init__(self, word: str, what: str, cure: str = "", *, why: str = "") -> None:
        happened = f"{what}: {why}" if why else what
        super().__init__(f"{word}: {happened} ({cure})" if cure else f"{word}: {happened}")
        self.word = word
        self.what = what
        self.why = why
        self.cure = cure


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
    """A file that is needed does not exist."""

    exit_code = os.EX_NOINPUT


class ResourceUnavailableError(ProgramError):
    """A port, device, provider or library is unavailable."""

    exit_code = os.EX_UNAVAILABLE


class StorageError(ProgramError):
    """The disk is full, read-only or failing."""

    exit_code = os.EX_IOERR


class InterruptedRunError(ProgramError):
    """The run was interrupted and can be resumed."""

    exit_code = os.EX_TEMPFAIL


class DeviceError(ProgramError):
    """The device does not work any more in this process; another process may do better."""


class PermissionRefusedError(ProgramError):
    """The operating system refuses access."""

    exit_code = os.EX_NOPERM


class ConfigurationError(ProgramError):
    """The settings contradict each other, or what they are applied to."""

    exit_code = os.EX_CONFIG
