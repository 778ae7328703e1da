"""The server's ports: one held by one server and shared by its workers, one for its metrics.

With SO_REUSEPORT the kernel spreads new connections over all sockets that listen on a port, and would let two
servers share it unnoticed. So a port is first taken alone, and then reserved for sockets that ask to share it.
"""

import errno
import socket

from atelier.errors import ResourceUnavailableError


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port while it is open, and does not listen; workers listen beside it.

    Port 0 lets the system choose; `getsockname` tells. Raises ResourceUnavailableError where the port is taken.
    """
    reservation = None
    try:
        for family, address in _addresses(host):
            try:
                with socket.create_server((address, port), family=family) as alone:  # refuses where anybody listens
                    port = alone.getsockname()[1]
            except OSError as error:
                if reservation is None or error.errno == errno.EADDRINUSE:
                    raise
                continue  # the host has several addresses, and this one is not to be had here
            if reservation is None:
                reservation = socket.socket(family)
                reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                reservation.bind((address, port))
        if reservation is None:
            raise OSError(errno.EADDRNOTAVAIL, "it has no address")
        return reservation
    except OSError as error:
        if reservation is not None:
            reservation.close()
        raise cannot_listen(host, port, error) from None


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets for the metrics page that listen, alone, on all addresses of the host.

    Port 0 lets the system choose one. Raises ResourceUnavailableError where the port is taken.
    """
    listeners: list[socket.socket] = []
    try:
        for family, address in _addresses(host):
            try:
                listeners.append(socket.create_server((address, port), family=family))
            except OSError as error:
                if not listeners or error.errno == errno.EADDRINUSE:
                    raise
                continue  # as above
            port = listeners[-1].getsockname()[1]
        return listeners
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise cannot_listen(host, port, error, "--metrics-port", "; --metrics-port 0 does without metrics") from None


def cannot_listen(
    host: str, port: int, error: OSError | None = None, flag: str = "--port", other_cure: str = ""
) -> ResourceUnavailableError:
    """What to tell the user. grpcio does not say why it cannot listen: without an error, the system is asked."""
    if error is None:
        try:
            reserve_port(host, port).close()
        except ResourceUnavailableError as reason:
            return reason
    if error is not None and error.errno == errno.EADDRINUSE:
        cure = f"stop what uses it, or choose another {flag}{other_cure}"
        return ResourceUnavailableError("PORT_IN_USE", f"cannot listen on {host}:{port}", cure)
    why = "grpc refuses the address" if error is None else error.strerror or str(error)
    cure = f"choose another --host or {flag}; IPv6 addresses are written in brackets"
    return ResourceUnavailableError("CANNOT_LISTEN", f"cannot listen on {host}:{port}: {why}", cure)


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """All that gRPC listens on for a host: for these names in both families, whatever the system resolves."""
    if host == "localhost":
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 # compared, not listened on
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104
    found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]
