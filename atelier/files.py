"""Writes files whole or not at all."""

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY_FILES = ".*.tmp"  # what a killed writer may leave behind


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path` whole or not at all: whatever was there stays until the new file is safely on the disk.

    Raises OSError, with `path` as its file name, and then leaves nothing behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # unique: two writers do not meet in it
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)  # the rename itself
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # write() and fsync() do not say which file failed
        raise


def check_writable(directory: Path) -> None:
    """Raises OSError, with `directory` as its file name, if no file can be written in it, or where it is to be made.

    For a program that works for long before it writes.
    """
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        error.filename = str(directory)
        raise


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document as `write_atomically` does, for programs; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(document, indent=1, default=str) + "\n").encode())


def sync_directory(directory: Path) -> None:
    """Waits until the disk has the directory's entries."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
