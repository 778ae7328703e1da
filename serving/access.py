"""Reads who may call, from the files of TLS and of bearer tokens.

Files are read again when they change, within a second; one that is broken then is not taken, and the old one stays.
"""

import hashlib
import hmac
import logging
import re
import ssl
import time
from _ssl import _test_decode_cert  # type: ignore[attr-defined]  # `ssl` reads dates of a peer's certificate only
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from atelier.errors import ConfigurationError
from serving.config import ServerConfig
from serving.errors import UnauthenticatedError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
PEM_CURE = "give certificates and key in PEM"
DAY_S = 24 * 60 * 60
WARN_DAYS = (30, 7, 1, 0)  # before a certificate's end the log says so; the last time it has ended
Content = TypeVar("Content")
Stamps: TypeAlias = list[tuple[int, int, int]]  # of each file: when it was written, its size, its inode


class WatchedFiles(Generic[Content]):
    """Reads some files again when they change."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], Content]) -> None:
        """Raises what `load` does, now but not later."""
        self._paths, self._load = paths, load
        self._stamps = self._stamps_now()
        self._refused: Stamps = []
        self._content = load()
        self._next_look_s = time.monotonic() + LOOK_EVERY_S

    def current(self) -> Content:
        """Returns the content, read again if a file has changed."""
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_EVERY_S
            stamps = self._stamps_now()
            if stamps != self._stamps:
                self._reload(stamps)
        return self._content

    def _reload(self, stamps: Stamps) -> None:
        """Takes what the files have now; what cannot be used, is not valid yet for example, is tried again."""
        try:
            self._content = self._load()
            self._stamps = stamps
        except (ConfigurationError, OSError) as error:
            if stamps != self._refused:
                logger.warning("%s: what was read before stays", error)
            self._refused = stamps

    def _stamps_now(self) -> Stamps:
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

    def digests(self) -> list[bytes]:
        """Returns the digests of today, 32 bytes each."""
        return self._digests.current()

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
        for digest in self.digests():
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


class Identity(NamedTuple):
    """Holds what the files of TLS contain, and until when it is valid."""

    chain: bytes
    private_key: bytes
    authority: bytes | None  # of clients
    ends_s: int  # in Unix time


Use: TypeAlias = Callable[[Identity], None]


class Tls:
    """Holds certificate and key, always those of today, and warns before the certificate ends."""

    def __init__(self, certificate: Path, key: Path, authority: Path | None, use: Use) -> None:
        """`use` is given each identity before it counts, and may refuse it by a ValueError.

        Raises ConfigurationError BAD_TLS for files that cannot be read or used, or not now.
        """

        def load() -> Identity:
            identity = _identity(certificate, key, authority)
            try:
                use(identity)
            except ValueError as error:
                raise ConfigurationError("BAD_TLS", f"{certificate}: {error}", PEM_CURE) from None
            return identity

        self._files = WatchedFiles([path for path in (certificate, key, authority) if path], load)
        self._num_warnings = 0

    def current(self) -> Identity:
        """Returns what the files hold, read again if they have changed."""
        return self._files.current()

    @property
    def ends_s(self) -> int:
        """Returns when the certificate ends, in Unix time."""
        return self.current().ends_s

    def look(self) -> None:
        """Reads the files again if they have changed, and warns of a certificate that ends soon."""
        ends_s = self.ends_s
        num_warnings = sum(ends_s - time.time() <= days * DAY_S for days in WARN_DAYS)
        if num_warnings > self._num_warnings:
            cure = "put a new one in its place: it is read again"
            logger.warning("the TLS certificate is valid until %s (%s)", _utc(ends_s), cure)
        self._num_warnings = num_warnings


def tls_of(config: ServerConfig, use: Use = lambda _identity: None) -> Tls | None:
    """Returns what a server with these settings shows its clients; None for plain text. Takes and raises as Tls."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return Tls(config.tls_certificate, config.tls_key, config.tls_client_authority, use)


def _identity(certificate: Path, key: Path, authority: Path | None) -> Identity:
    """Reads the files, once Python's own TLS accepts them: gRPC takes anything, and serves nobody."""
    chain, private_key = _read(certificate), _read(key)
    root = _read(authority) if authority else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    blamed = certificate if b"PRIVATE KEY-----" in private_key else key
    try:
        context.load_cert_chain(certificate, key, password=_no_pass_phrase)
        ends_s = _end_of(certificate)
        if authority:
            blamed = authority
            context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise ConfigurationError("BAD_TLS", f"{blamed}: {error}", PEM_CURE) from None
    return Identity(chain, private_key, root, ends_s)


def _no_pass_phrase() -> str:
    """Answers OpenSSL, which would ask on the terminal for what opens an encrypted key, and wait."""
    raise ValueError("it is encrypted, and nobody is asked for a pass phrase")


def _end_of(certificate: Path) -> int:
    """Returns until when it is valid, in Unix time. Raises ValueError if it is not valid now."""
    fields = _test_decode_cert(certificate)
    first_s, last_s = (ssl.cert_time_to_seconds(fields[name]) for name in ("notBefore", "notAfter"))
    if not first_s <= time.time() <= last_s:
        raise ValueError(f"it is valid from {_utc(first_s)} until {_utc(last_s)}, which is not now")
    return last_s


def _utc(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError("BAD_TLS", f"{path}: {error.strerror}", PEM_CURE) from None
