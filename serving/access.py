"""Decides who may call: TLS and bearer tokens for the grpcio front end; the native one does the same in Rust.

Files are read again when they change, within a second; one that is broken then is not taken, and the old one stays.
"""

import hashlib
import hmac
import logging
import re
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from atelier.errors import ConfigurationError
from serving.config import ServerConfig
from serving.errors import UnauthenticatedError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
PEM_CURE = "give certificates and key in PEM"
Content = TypeVar("Content")


class WatchedFiles(Generic[Content]):
    """Reads some files again when they change."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], Content]) -> None:
        """Raises what `load` does, now but not later."""
        self._paths, self._load = paths, load
        self._stamps = self._stamps_now()
        self._content = load()
        self._next_look_s = time.monotonic() + LOOK_EVERY_S

    def current(self) -> Content:
        """Returns the content, read again if a file has changed."""
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_EVERY_S
            stamps = self._stamps_now()
            if stamps != self._stamps:
                self._stamps = stamps
                self._reload()
        return self._content

    def _reload(self) -> None:
        try:
            self._content = self._load()
        except (ConfigurationError, OSError) as error:
            logger.warning("%s: what was read before stays", error)

    def _stamps_now(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return stamps


class Tokens:
    """Knows the SHA-256 digests of the tokens that may call: who reads the file cannot use them."""

    def __init__(self, path: Path, of_page: str = "") -> None:
        """`of_page` is one more digest, in hexadecimal. Raises ConfigurationError BAD_TOKENS if the file has none."""
        more = [bytes.fromhex(of_page)] if of_page else []
        self._digests = WatchedFiles([path], lambda: [*_digests_from(path), *more])

    def check(self, authorization: Sequence[str]) -> None:
        """Raises UnauthenticatedError unless the one header carries a known token; takes as long for any other."""
        cure = "send authorization: Bearer <token>"
        if len(authorization) > 1:
            raise UnauthenticatedError("BAD_TOKEN", "the call carries several of them", cure)
        if not authorization or not authorization[0]:
            raise UnauthenticatedError("NO_TOKEN", "the call carries no bearer token", cure)
        scheme, _, token = authorization[0].partition(" ")
        found = hashlib.sha256(token.encode()).digest()
        known = False
        for digest in self._digests.current():
            known |= hmac.compare_digest(digest, found)
        if not known or scheme.lower() != "bearer":
            raise UnauthenticatedError("BAD_TOKEN", "the call's bearer token is not known here", cure)


def _digests_from(path: Path) -> list[bytes]:
    cure = "a line begins with the 64 hexadecimal digits of a token's SHA-256"
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("BAD_TOKENS", f"{path}: {error}", cure) from None
    digests = []
    for number, line in enumerate(lines, 1):
        first = (line.split() or ["#"])[0]
        if first.startswith("#"):
            continue
        if not re.fullmatch("[0-9a-fA-F]{64}", first):
            raise ConfigurationError("BAD_TOKENS", f"{path}: line {number} has no digest", cure)
        digests.append(bytes.fromhex(first))
    if not digests:
        raise ConfigurationError("BAD_TOKENS", f"{path}: it has no digest", cure)
    return digests


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Returns what grpcio listens with; None for plain text. Raises ConfigurationError BAD_TLS for unreadable files."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    certificate, key, authority = config.tls_certificate, config.tls_key, config.tls_client_authority
    paths = [path for path in (certificate, key, authority) if path]
    files = WatchedFiles(paths, lambda: _checked_pem(certificate, key, authority))

    def configuration() -> grpc.ServerCertificateConfiguration:
        chain, private_key, root = files.current()
        return grpc.ssl_server_certificate_configuration([(private_key, chain)], root)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, authority is not None)


def _checked_pem(certificate: Path, key: Path, authority: Path | None) -> tuple[bytes, bytes, bytes | None]:
    """Reads the files, once Python's own TLS accepts them: gRPC takes anything, and serves nobody."""
    chain, private_key = _read(certificate), _read(key)
    root = _read(authority) if authority else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    blamed = certificate if b"PRIVATE KEY-----" in private_key else key
    try:
        context.load_cert_chain(certificate, key)
        if authority and root is not None:
            blamed = authority
            context.load_verify_locations(cadata=root.decode())
    except (OSError, ValueError) as error:
        raise ConfigurationError("BAD_TLS", f"{blamed}: {error}", PEM_CURE) from None
    return chain, private_key, root


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError("BAD_TLS", f"{path}: {error.strerror}", PEM_CURE) from None
