"""A server on a Unix socket: one file, whichever process listens behind it.

gRPC makes the file when it listens and takes it away when it stops, by its name: a process that drains would take away
the file of the one that took over. So each process listens on a hidden name beside the public one, and the supervisor
renames that to the public one once the process is ready. Until the first is, the supervisor holds the name itself.
"""

import contextlib
import errno
import os
import secrets
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote_to_bytes

from atelier.errors import ConfigurationError, ProgramError, ResourceUnavailableError

SCHEME = "unix:"
MAX_PATH_BYTES = 107  # sockaddr_un has 108, with a zero at the end
HIDDEN_BYTES = 7  # of a hidden name


def is_unix(host: str) -> bool:
    """Tells whether a host is a Unix socket's, which has no port."""
    return host.startswith(SCHEME)


def path_from(host: str) -> Path:
    """Reads unix:relative, unix:/absolute and unix:///absolute as gRPC does. Raises ConfigurationError (BAD_HOST)."""
    written = host.removeprefix(SCHEME)
    written = written[2:] if written.startswith("///") else written
    name = os.fsdecode(unquote_to_bytes(written))
    if not name or "\0" in name:
        raise _bad_host(host, "has no path in it", "give one: unix:/run/atelier.sock")
    path = Path(name)
    num_bytes = len(os.fsencode(path))
    limit = MAX_PATH_BYTES - max(0, HIDDEN_BYTES - len(os.fsencode(path.name)))
    if num_bytes > limit:
        raise _bad_host(host, f"has a path of {num_bytes} bytes, and {limit} is the most", "choose a shorter one")
    return path


def host_from(path: Path) -> str:
    """Writes a path as gRPC's target."""
    return SCHEME + quote(os.fsencode(path))


class SocketFile:
    """Holds the public name from the start to the end, and renames to it what listens."""

    def __init__(self, host: str) -> None:
        """Raises ConfigurationError if no socket can be there, ResourceUnavailableError if another listens there."""
        self._path = path_from(host)
        _remove_if_dead(self._path, host)
        self._reservation: socket.socket | None = socket.socket(socket.AF_UNIX)
        self._hidden: list[Path] = []
        try:
            self._reservation.bind(os.fsencode(self._path))
            self._reservation.listen(0)  # another that starts now sees that somebody lives here
            self._id = _id_of(self._path)
        except OSError as error:
            self._reservation.close()
            raise _cannot_listen(self._path, error) from None

    @property
    def handles(self) -> list[socket.socket]:
        """What no other process may inherit."""
        return [self._reservation] if self._reservation else []

    def hidden_host(self) -> str:
        """Makes up where the next process listens until it is ready."""
        path = self._path.with_name("." + secrets.token_hex(HIDDEN_BYTES // 2))
        self._hidden.append(path)
        return host_from(path)

    def publish(self, hidden_host: str) -> None:
        """Sends new connections to the process that listens there. Raises OSError if it does not, or not any more."""
        hidden = path_from(hidden_host)
        self._id = _id_of(hidden)
        hidden.replace(self._path)
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.close()
        for path in self._hidden:  # of processes that died before they were ready
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it has gone, or its directory
            if _id_of(self._path) == self._id:
                self._path.unlink()


def _id_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_if_dead(path: Path, host: str) -> None:
    """Takes away a socket on which nobody listens any more, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _bad_host(host, "names what is no socket", "choose another path, or move that away")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(os.fsencode(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        if not isinstance(error, TimeoutError) and error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
            raise _cannot_listen(path, error) from None
    raise _in_use(path)


def _in_use(path: Path) -> ProgramError:
    what = f"another process listens on {host_from(path)}"
    return ResourceUnavailableError("SOCKET_IN_USE", what, "stop it, or choose another --host")


def _cannot_listen(path: Path, error: OSError) -> ProgramError:
    if error.errno == errno.EADDRINUSE:  # it has started at the same moment
        return _in_use(path)
    what = f"cannot listen on {host_from(path)}: {error.strerror or error}"
    return ResourceUnavailableError("CANNOT_LISTEN", what, "make the directory, or choose another --host")


def _bad_host(host: str, what: str, cure: str) -> ConfigurationError:
    return ConfigurationError("BAD_HOST", f"--host {host!r} {what}", cure)
