"""Reads files that others may have put there, regular ones that not everybody can write; guards secrets' files."""

import errno
import os
import stat
from pathlib import Path

from atelier.errors import BadDataError, PermissionRefusedError

KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def read_trusted(path: Path, root: Path, max_bytes: int) -> bytes:
    """Reads a file under `root`; symbolic links may lead about in there, as those of Kubernetes do, but not out.

    Never waits, as a FIFO would have it. Raises PermissionRefusedError UNTRUSTED_FILE for anything but a regular file,
    for a link that leaves `root`, and if everybody may write to the file or to a folder from `root` to it, unless it is
    mounted read-only; BadDataError TOO_LARGE for more than `max_bytes`; OSError if it is not there or cannot be read.
    """
    real, real_root = _resolved(path), root.resolve()
    if not real.is_relative_to(real_root):
        raise _untrusted(f"{path} leads to {real}, outside of {root}", "copy the file to where the link is")
    _check_kind(path, real.stat())  # first: to open a device can do something
    for part in (real, *real.parents[: len(real.relative_to(real_root).parts)]):
        if part.stat().st_mode & stat.S_IWOTH and not os.statvfs(part).f_flag & os.ST_RDONLY:
            cure = f"chmod -R o-w {root}, or mount it read-only"
            raise _untrusted(f"{part} can be written by every user of this machine", cure)
    with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        _check_kind(path, found)  # it may have been replaced since
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        what = f"{path} has {max(found.st_size, len(data))} bytes, the limit is {max_bytes}"
        raise BadDataError("TOO_LARGE", what, "no export of Atelier's is that large: make export")
    return data


def check_secret(path: Path, *, may_group_read: bool = True) -> None:
    """Raises PermissionRefusedError TOKEN_FILE_MODE for a secret's file that every user of this machine may open.

    The group may read it if `may_group_read`: so Kubernetes gives a pod its secrets. A missing file is not looked at.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & (0o007 if may_group_read else 0o077):
        whom = "every user of this machine" if mode & 0o007 else "its group"
        what = f"{path} has mode {mode:04o}: {whom} may open what is to be secret"
        cure = f"chmod 600 {path}, and make a new secret if others may have read it; in Kubernetes defaultMode: 0440"
        raise PermissionRefusedError("TOKEN_FILE_MODE", what, cure)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # Python 3.13 made the second, of links that lead in a circle, the first
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise _untrusted(f"{path} is a link that leads back to itself", "make export writes a new version") from None


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise _untrusted(f"{path} is {kind}, no regular file", "make export writes a new version")


def _untrusted(what: str, cure: str) -> PermissionRefusedError:
    return PermissionRefusedError("UNTRUSTED_FILE", what, cure)
