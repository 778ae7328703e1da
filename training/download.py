"""Fetches Fashion-MNIST: from torchvision's mirrors, or else from the Debian package, without root.

A file is checked before it gets its name, and gets it by a rename: an interrupted or corrupt download leaves nothing
that looks like data, and two downloads at once do not meet.
"""

import errno
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from atelier.errors import BadDataError, PermissionRefusedError, StorageError
from training.idx_files import DataFile, dangling_link, data_missing, not_in_any_place, read_verified

TIMEOUT_S = 15  # for each answer of a mirror; a slow download that moves on is not cut off
APT_TIMEOUT_S = 600
DEBIAN_PACKAGE = "dataset-fashion-mnist"
CHUNK_BYTES = 1 << 16
GZIP_OVERHEAD_BYTES = 1000  # what does not compress becomes a little longer


class FetchFailedError(Exception):
    """This way did not work; there may be another."""


def fetch_dataset(directory: Path, files: Sequence[DataFile]) -> Path:
    """Puts `files`, gzipped and checked, into `directory`, and returns it.

    Raises MissingInputError DATA_MISSING saying what was tried, PermissionRefusedError or StorageError DATA_UNWRITABLE
    if `directory` cannot be made or written.
    """
    if dangling_link(directory):  # a disk that is not mounted, say, for which nothing is put elsewhere
        raise data_missing(not_in_any_place())
    with _workspace_in(directory) as workspace:
        failures = []
        for fetch in (fetch_from_mirrors, fetch_from_debian):
            try:
                paths = fetch(files, workspace)
            except FetchFailedError as failure:
                failures.append(str(failure))
                continue
            for path in paths:
                path.replace(directory / path.name)
            return directory
    raise data_missing(f"{not_in_any_place()}, and fetching it failed: {'; '.join(failures)}")


@contextmanager
def _workspace_in(directory: Path) -> Iterator[Path]:
    """Makes a temporary directory inside `directory`, so that a rename moves files out of it."""
    cure = "make it writable, or put the data elsewhere and name the place with --data-dir"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        workspace = tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-")
    except PermissionError as error:
        raise PermissionRefusedError("DATA_UNWRITABLE", f"cannot write {directory}: {error.strerror}", cure) from None
    except OSError as error:
        raise StorageError("DATA_UNWRITABLE", f"cannot write {directory}: {error.strerror}", cure) from None
    with workspace as path:
        yield Path(path)


# --- torchvision's mirrors -----------------------------------------------------------------------------------------


def fetch_from_mirrors(files: Sequence[DataFile], workspace: Path, mirrors: Sequence[str] = ()) -> list[Path]:
    """Downloads `files`, gzipped, from the first mirror (by default one of torchvision's) that has them.

    Raises FetchFailedError.
    """
    mirrors = mirrors or _torchvision_mirrors()
    return [_download(file, workspace, mirrors) for file in files]


def _torchvision_mirrors() -> list[str]:
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, RuntimeError) as error:  # RuntimeError: it does not belong to the torch beside it
        raise FetchFailedError(f"torchvision, which knows the mirrors, cannot be imported ({error})") from None
    return list(FashionMNIST.mirrors)


def _download(file: DataFile, workspace: Path, mirrors: Sequence[str]) -> Path:
    path = workspace / f"{file.name}.gz"
    failures = []
    for mirror in mirrors:
        url = f"{mirror}{path.name}"
        try:
            _save_url(url, path, max_bytes=file.num_bytes + GZIP_OVERHEAD_BYTES)
            read_verified(path, file)
        except (OSError, HTTPException, BadDataError) as error:  # URLError and timeouts are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # no other mirror would fit either
            failures.append(f"{url}: {error}")
        else:
            return path
    raise FetchFailedError("; ".join(failures))


def _save_url(url: str, path: Path, max_bytes: int) -> None:
    """Saves what `url` has, up to `max_bytes`, with a progress bar on a terminal."""
    from tqdm import tqdm  # here: data that need not be fetched need no extra

    opener = urllib.request.build_opener()  # a new one, which heeds the environment's proxy settings as they are now
    with opener.open(url, timeout=TIMEOUT_S) as response, path.open("wb") as out:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > max_bytes:
                    raise BadDataError("BAD_DATASET", f"{url} sends more than {max_bytes} bytes")


# --- The Debian package --------------------------------------------------------------------------------------------


def fetch_from_debian(files: Sequence[DataFile], workspace: Path) -> list[Path]:
    """Downloads and unpacks the Debian package into `workspace`, and checks the files in it.

    apt gets lists and a cache of its own there, so this needs no root, works with empty lists, and changes nothing
    outside. Raises FetchFailedError.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchFailedError(f"without apt-get and dpkg-deb the Debian package {DEBIAN_PACKAGE} is unavailable too")
    print(f"no mirror has it: getting the Debian package {DEBIAN_PACKAGE} (31 MB)", flush=True)
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (workspace / folder).mkdir(parents=True)
    state, cache = f"Dir::State={workspace.resolve()}/state", f"Dir::Cache={workspace.resolve()}/cache"
    # The sandbox user could not enter the workspace, which is ours alone.
    apt_get = ["apt-get", "-o", state, "-o", cache, "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]
    _run([*apt_get, "update"], workspace)
    _run([*apt_get, "download", DEBIAN_PACKAGE], workspace)
    for package in workspace.glob("*.deb"):
        _run(["dpkg-deb", "-x", package.name, "unpacked"], workspace)
    paths = [workspace / f"unpacked/usr/share/datasets/fashion-mnist/{file.name}.gz" for file in files]
    try:
        for file, path in zip(files, paths, strict=True):
            read_verified(path, file)
    except (OSError, BadDataError) as error:
        raise FetchFailedError(f"the Debian package {DEBIAN_PACKAGE}: {error}") from None
    return paths


def _run(command: list[str], directory: Path) -> None:
    """Runs a command that shows its own progress on stdout; its last line on stderr says why it failed."""
    try:
        subprocess.run(  # noqa: S603 - the commands above, with no word from outside
            command, cwd=directory, check=True, stderr=subprocess.PIPE, text=True, timeout=APT_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise FetchFailedError(f"{command[0]}: {lines[-1]}") from None
    except subprocess.TimeoutExpired:
        raise FetchFailedError(f"{command[0]}: no end after {APT_TIMEOUT_S} s") from None
