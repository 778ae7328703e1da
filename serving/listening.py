"""Listens: TCP and Unix sockets that the supervisor holds open, whichever process serves behind them.

While a process is being replaced, new connections wait in the sockets' backlog. grpcio opens its own socket, so for it
a port is only reserved: with SO_REUSEPORT the kernel would let two servers share a port unnoticed.
"""

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote_to_bytes

from atelier.errors import ConfigurationError, ProgramError, ResourceUnavailableError
from atelier.program import say

BACKLOG = 1024
SCHEME = "unix:"
MAX_PATH_BYTES = 107  # sockaddr_un has 108, with a zero at the end


class Listening:
    """Holds the sockets of one server, open until the block ends, and their addresses as gRPC's targets."""

    def __init__(self, hosts: Sequence[str], port: int, *, flag: str = "--port", only_reserve: bool = False) -> None:
        """Port 0 lets the system choose one for all hosts; `only_reserve` keeps the addresses without listening.

        Raises ResourceUnavailableError if an address is taken, ConfigurationError (BAD_HOST) if none can be there.
        """
        self.sockets: list[socket.socket] = []
        self.addresses: list[str] = []
        self._paths: list[tuple[Path, tuple[int, int]]] = []
        self._opened: set[tuple[socket.AddressFamily, str]] = set()
        self._only_reserve = only_reserve
        try:
            for host in hosts:
                if is_unix(host):
                    self._open_path(host)
                else:
                    port = self._open_port(host, port, flag)
        except BaseException:
            self.close()
            raise

    def _open_port(self, host: str, port: int, flag: str) -> int:
        unavailable: dict[str, OSError] = {}
        addresses = _addresses(host)
        for family, (address, _, *scope) in addresses:
            if (family, address) in self._opened:
                continue  # by another name: 0.0.0.0 and :: each mean both families
            try:
                opened = socket.create_server((address, port, *scope), family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRINUSE or len(unavailable) + 1 == len(addresses):
                    raise _failure(host, port, error, flag) from None
                unavailable[address] = error  # the host has others: there is no IPv6 here, or no IPv4
                continue
            port = opened.getsockname()[1]
            self._opened.add((family, address))
            self.sockets.append(_reservation_of(opened) if self._only_reserve else opened)
        for address, failure in unavailable.items():
            why = os.strerror(failure.errno or 0)
            say(f"not listening on {address_from(address, port)}, which {host} means too: {why}")
        self.addresses.append(address_from(host, port))
        return port

    def _open_path(self, host: str) -> None:
        path = path_from(host)
        _remove_if_dead(path, host)
        opened = socket.socket(socket.AF_UNIX)
        try:
            opened.bind(os.fsencode(path))
            opened.listen(BACKLOG)
        except OSError as error:
            opened.close()
            raise _cannot_listen(path, error) from None
        self._paths.append((path, _id_of(path)))
        self.addresses.append(host_from(path))
        if self._only_reserve:
            opened.close()
            path.unlink()
        else:
            self.sockets.append(opened)

    def stop(self) -> None:
        """Closes this process's sockets; another that has them still listens."""
        for each in self.sockets:
            each.close()

    def close(self) -> None:
        """Closes the sockets, and removes the files that are still this server's."""
        self.stop()
        for path, made in self._paths:
            with contextlib.suppress(OSError):  # it has gone, or its directory
                if self._only_reserve or _id_of(path) == made:
                    path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reservation_of(opened: socket.socket) -> socket.socket:
    """Replaces a listening socket by one that does not listen, beside which another may."""
    name = opened.getsockname()
    opened.close()  # nobody else listened there
    reservation = socket.socket(opened.family)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if opened.family == socket.AF_INET6:
        reservation.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    reservation.bind(name)
    return reservation


# --- Ports -----------------------------------------------------------------------------------------------------------


def address_from(host: str, port: int) -> str:
    """Writes an address as gRPC, URLs and people do: IPv6 in brackets, which `host` may have or not."""
    bare = _bare(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches what listens there. Raises ConfigurationError (BAD_HOST)."""
    return is_unix(host) or all(ipaddress.ip_address(address[0]).is_loopback for _, address in _addresses(host))


def _failure(host: str, port: int, error: OSError, flag: str) -> ProgramError:
    if error.errno == errno.EADDRNOTAVAIL:
        named = "--playground-host" if flag == "--playground-port" else "--host"
        return _bad_host(host, "is no address of this machine", flag=named)
    what = f"cannot listen on {address_from(host, port)}"
    if error.errno == errno.EADDRINUSE:
        cure = f"stop what uses it, or choose another {flag}"
        if flag == "--metrics-port":
            cure += "; --metrics-port 0 does without metrics"
        return ResourceUnavailableError("PORT_IN_USE", what, cure)
    why = os.strerror(error.errno) if error.errno else str(error)
    return ResourceUnavailableError("CANNOT_LISTEN", f"{what}: {why}", f"choose another --host or {flag}")


def _bad_host(host: str, what: str, cure: str = "", *, flag: str = "--host") -> ConfigurationError:
    usual = "give an address or a name of this machine: localhost, ::1, ...; 0.0.0.0 or :: listens on all"
    return ConfigurationError("BAD_HOST", f"{flag} {host!r} {what}", cure or usual)


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _addresses(host: str) -> list[tuple[socket.AddressFamily, Any]]:
    """Finds all that gRPC listens on for a host: for these names in both families, whatever the system resolves."""
    bare = _bare(host)
    if bare == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))]
    if bare in ("0.0.0.0", "::"):  # noqa: S104 # compared, not listened on
        return [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0))]  # noqa: S104
    if with_port := re.fullmatch(r"([^:]+|\[.*\]):(\d+)", host):
        cure = f"give it apart: --host {_bare(with_port[1])} --port {with_port[2]}"
        raise _bad_host(host, "has a port in it", cure)
    try:
        found = socket.getaddrinfo(bare, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
        why = getattr(error, "strerror", None) or "no name has that form"
        raise _bad_host(host, f"does not resolve: {why}") from None
    return [(family, address) for family, _, _, _, address in found]


# --- Unix sockets ----------------------------------------------------------------------------------------------------


def is_unix(host: str) -> bool:
    """Returns whether a host is a Unix socket's, which has no port."""
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
    if num_bytes > MAX_PATH_BYTES:
        what = f"has a path of {num_bytes} bytes, and {MAX_PATH_BYTES} is the most"
        raise _bad_host(host, what, "choose a shorter one")
    return path


def host_from(path: Path) -> str:
    """Writes a path as gRPC's target."""
    return SCHEME + quote(os.fsencode(path))


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
