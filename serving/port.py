"""The server's ports: one held by one server and shared by its workers, one for its metrics.

With SO_REUSEPORT the kernel spreads new connections over all sockets that listen on a port, and would let two
servers share it unnoticed. So a port is first taken alone, and then reserved for sockets that ask to share it.
"""

import errno
import ipaddress
import os
import re
import socket
from typing import Any

from atelier.errors import ConfigurationError, ProgramError, ResourceUnavailableError


def address_from(host: str, port: int) -> str:
    """Writes an address as gRPC, URLs and people do: IPv6 in brackets, which `host` may have or not."""
    bare = _bare(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(host: str) -> bool:
    """Tells whether only this machine reaches what listens there. Raises ConfigurationError (BAD_HOST)."""
    return all(ipaddress.ip_address(address[0]).is_loopback for _, address in _addresses(host))


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port while it is open, and does not listen; workers listen beside it.

    Port 0 lets the system choose; `getsockname` tells. Raises ResourceUnavailableError if the port is taken, and
    ConfigurationError (BAD_HOST) if this machine has no such address.
    """
    reservation = None
    try:
        for family, (address, _, *scope) in _addresses(host):
            try:
                # Refuses if anybody listens.
                with socket.create_server((address, port, *scope), family=family) as alone:
                    port = alone.getsockname()[1]
            except OSError as error:
                if reservation is None or error.errno == errno.EADDRINUSE:
                    raise
                continue  # the host has several addresses, and this one is unavailable here
            if reservation is None:
                reservation = socket.socket(family)
                reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                reservation.bind((address, port, *scope))
        if reservation is None:
            raise OSError(errno.EADDRNOTAVAIL, "it has no address")
        return reservation
    except OSError as error:
        if reservation is not None:
            reservation.close()
        raise _failure(host, port, error) from None


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets for the metrics page that listen, alone, on all addresses of the host.

    Port 0 lets the system choose one. Raises what `reserve_port` does.
    """
    listeners: list[socket.socket] = []
    try:
        for family, (address, _, *scope) in _addresses(host):
            try:
                listeners.append(socket.create_server((address, port, *scope), family=family))
            except OSError as error:
                if not listeners or error.errno == errno.EADDRINUSE:
                    raise
                continue  # as above
            port = listeners[-1].getsockname()[1]
        return listeners
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _failure(host, port, error, "--metrics-port", "; --metrics-port 0 does without metrics") from None


def _failure(host: str, port: int, error: OSError, flag: str = "--port", other_cure: str = "") -> ProgramError:
    if error.errno == errno.EADDRNOTAVAIL:
        return _bad_host(host, "is no address of this machine")
    what = f"cannot listen on {address_from(host, port)}"
    if error.errno == errno.EADDRINUSE:
        cure = f"stop what uses it, or choose another {flag}{other_cure}"
        return ResourceUnavailableError("PORT_IN_USE", what, cure)
    why = os.strerror(error.errno) if error.errno else str(error)
    return ResourceUnavailableError("CANNOT_LISTEN", f"{what}: {why}", f"choose another --host or {flag}")


def _bad_host(host: str, what: str, cure: str = "") -> ConfigurationError:
    usual = "give an address or a name of this machine: localhost, ::1, ...; 0.0.0.0 or :: listens on all"
    return ConfigurationError("BAD_HOST", f"--host {host!r} {what}", cure or usual)


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _addresses(host: str) -> list[tuple[socket.AddressFamily, Any]]:
    """All that gRPC listens on for a host: for these names in both families, whatever the system resolves."""
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
