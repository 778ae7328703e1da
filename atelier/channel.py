"""A client's connection: its target, gRPC's options for it, and how the client proves itself.

Several addresses, `a:50051,b:50051`, and `dns:///name:50051`, which may stand for several, are asked in turn: gRPC's
own round robin, with a health check on every connection. A server that is dead, warms up or drains is passed over.
"""

import ipaddress
import json
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

import grpc

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # those that gRPC reads, in its order

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Any server tolerates a ping in five minutes; a connection on which data goes unacknowledged ends after 10 s.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
IN_TURN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})


# --- The target ------------------------------------------------------------------------------------------------------


def channel_options(target: str) -> list[tuple[str, int | str]]:
    """Returns gRPC's channel arguments for `target`, checked. A local target is never reached through a proxy."""
    for address in addresses_of(target):
        check_target(address)
    in_turn = [("grpc.service_config", IN_TURN)] if _is_several(target) else []
    hosts = {host_of(address) for address in addresses_of(target)}
    authority = [("grpc.default_authority", hosts.pop())] if "," in target and len(hosts) == 1 else []
    return [*CHANNEL_OPTIONS, *proxy_options(target), *in_turn, *authority]


def proxy_options(target: str) -> list[tuple[str, int]]:
    """Returns the channel argument that keeps calls to this machine away from the proxies of the environment."""
    return [("grpc.enable_http_proxy", 0)] if is_local(target) else []


def addresses_of(target: str) -> list[str]:
    """Returns the addresses of a target, which commas separate."""
    scheme = re.match(r"ipv[46]:", target)
    return [(scheme[0] if scheme and index else "") + part for index, part in enumerate(target.split(","))]


def host_of(address: str) -> str:
    """Returns an address without its scheme and port."""
    bare = re.sub(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:|passthrough:///?)", "", address)
    return bare.rpartition(":")[0].strip("[]") or bare


def grpc_target(target: str) -> str:
    """Returns gRPC's own form of a target: of several addresses a list of IP addresses, names looked up now.

    Raises ValueError for a name that cannot be resolved, and for a mixture of IPv4 and IPv6.
    """
    if "," not in target or re.match(r"ipv[46]:", target):
        return target
    for scheme, family in (("ipv4:", socket.AF_INET), ("ipv6:", socket.AF_INET6)):
        try:
            found = [_resolved(address, family) for address in addresses_of(target)]
        except OSError:
            continue
        return scheme + ",".join(dict.fromkeys(address for several in found for address in several))
    raise ValueError(
        f"the target {target} has a name that cannot be resolved, or both IPv4 and IPv6: check each; dns:///NAME:PORT "
        "is a name for several servers, looked up again when one is lost"
    )


def _resolved(address: str, family: socket.AddressFamily) -> list[str]:
    host, port = host_of(address), address.rpartition(":")[2]
    found = socket.getaddrinfo(host, int(port), family, socket.SOCK_STREAM)
    return [f"[{place[0]}]:{port}" if family == socket.AF_INET6 else f"{place[0]}:{port}" for *_, place in found]


def _is_several(target: str) -> bool:
    """Returns whether a target may stand for several servers."""
    return "," in target or target.startswith("dns:")


def check_target(target: str) -> None:
    """Raises ValueError, with a hint, for what gRPC would not take for the address of a server."""
    example = "pass HOST:PORT, such as localhost:50051, or unix:/path"
    if not target:
        raise ValueError(f"the target is empty: {example}")
    if re.match(r"[a-z0-9+.-]+://", target) and not re.match(r"(dns|unix|xds|passthrough)://", target):
        rest = target.split("://", 1)[1].rstrip("/")
        raise ValueError(f"the target {target} begins like a web address: pass {rest or 'localhost:50051'} alone")
    if re.match(r"(dns|unix|unix-abstract|ipv4|ipv6|xds|passthrough|vsock):", target):
        return
    host, colon, port = target.rpartition(":")
    if not colon or target.endswith("]"):
        raise ValueError(f"the target {target} has no port: pass {target}:50051, or another")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"the target {target} has no port from 1 to 65535 behind its last colon: {example}")
    if not host or (":" in host and not re.fullmatch(r"\[[0-9a-fA-F:.%\w]+\]", host)):
        raise ValueError(f"the target {target} has no host before its port: {example}, or [::1]:50051 for IPv6")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Holds how a client proves itself, and whom it trusts; read from files, so that no secret is in an argument."""

    tls: bool = False
    authority: bytes | None = None  # certificates to trust, in PEM; None trusts the system's
    certificate: bytes | None = None  # the client's own, in PEM, for mutual TLS
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """gRPC's, None for plain text."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate) if self.tls else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata that every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def access_from(
    target: str,
    tls: "bool | str | os.PathLike[str]",
    certificate: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None",
    token: str,
) -> Access:
    """Reads a client's `tls`, `certificate` and `token`. Raises ValueError for a token that others could read."""
    own = [Path(path).read_bytes() for path in certificate or (None, None) if path]
    has_tls = bool(tls) or bool(own)
    if has_tls and len({host_of(address) for address in addresses_of(target)}) > 1:
        what = f"the target {target} has several hosts, and TLS needs the one name that their certificates share"
        raise ValueError(f"{what}: pass dns:///NAME:PORT, a name that stands for all of them")
    if token and not has_tls and not is_local(target):
        raise ValueError(f"a token for {target} would go in plain text: pass tls=True, or a file of authorities")
    if not re.fullmatch(r"[!-~]*", token):
        raise ValueError("the token has characters that a header cannot carry: spaces, line ends or beyond ASCII")
    return Access(
        tls=has_tls,
        authority=None if isinstance(tls, bool) else Path(tls).read_bytes(),
        certificate=own[0] if own else None,
        key=own[1] if own else None,
        token=token,
    )


def is_local(target: str) -> bool:
    """Returns whether all of the target is on this machine: unix sockets, localhost and loopback addresses."""
    return all(map(_is_address_local, addresses_of(target)))


def _is_address_local(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = host_of(address)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return False
    return parsed.is_loopback or parsed.is_unspecified


def proxy_hint(target: str) -> str:
    """Returns what a message says of the proxy that calls to `target` go through; empty if there is none."""
    if is_local(target):
        return ""
    variable = next((name for name in PROXY_VARIABLES if os.environ.get(name)), None)
    host = ", ".join(map(host_of, addresses_of(target)))
    return f"; calls go through the proxy of ${variable}, unless $no_proxy names {host}" if variable else ""
