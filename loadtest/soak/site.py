"""The server of a soak, with its credentials: an authority that clients trust signs each certificate of its own."""

import datetime
import hashlib
import ipaddress
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from atelier.errors import ProgramError
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import ServerProcess, comes_true

LIMIT_S = 20.0  # for a fault to show what it does
VALID = datetime.timedelta(days=60)
HOST, ADDRESS = "localhost", ipaddress.ip_address("127.0.0.1")
Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class Credentials:
    """Makes the files; what is written anew is whole at each moment, but certificate and key are two files."""

    def __init__(self, directory: Path) -> None:
        self.authority, self.certificate = directory / "authority.pem", directory / "server.pem"
        self.key, self.tokens = directory / "server.key", directory / "tokens"
        self.token = secrets.token_urlsafe(32)  # stays
        self._issuer = _signed(None)
        self.authority.write_bytes(self._issuer[0].public_bytes(Encoding.PEM))
        self.renew_certificate()
        self.renew_tokens()

    @cached_property
    def context(self) -> ssl.SSLContext:
        """TLS of a client that trusts the authority, and speaks HTTP/2."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.set_alpn_protocols(["h2"])
        return context

    @property
    def server_flags(self) -> list[str]:
        """What a server is told."""
        files = [str(path) for path in (self.certificate, self.key, self.tokens)]
        return ["--tls-certificate", files[0], "--tls-key", files[1], "--tokens", files[2]]

    def renew_certificate(self) -> bytes:
        """Writes another certificate with its key; returns it as TLS sends it."""
        certificate, key = _signed(self._issuer)
        put(self.certificate, certificate.public_bytes(Encoding.PEM))
        put(self.key, _pem_of(key))
        return certificate.public_bytes(Encoding.DER)

    def mismatched_key(self) -> bytes:
        """Returns a key that is no certificate's."""
        return _pem_of(_signed(self._issuer)[1])

    def renew_tokens(self) -> str:
        """Writes another token beside the one that stays; returns it. The one before is valid no more."""
        self.changing_token = secrets.token_urlsafe(32)
        lines = [f"{hashlib.sha256(each.encode()).hexdigest()}\n" for each in (self.token, self.changing_token)]
        put(self.tokens, "".join(lines).encode())
        return self.changing_token


def put(path: Path, data: bytes) -> None:
    """Puts a file whole in the place of another; only its owner may read it."""
    temporary = path.with_name(f".{path.name}")
    temporary.touch(0o600)
    temporary.write_bytes(data)
    temporary.replace(path)


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _signed(issuer: Pair | None) -> Pair:
    """Makes a certificate for this machine and its key; without an issuer, an authority's."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST if issuer else "authority of a soak")])
    certificate, signing_key = issuer or (None, key)
    builder = x509.CertificateBuilder(
        subject_name=name,
        issuer_name=certificate.subject if certificate else name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - VALID,
        not_valid_after=now + VALID,
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(signing_key.public_key())
    if issuer:
        names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ADDRESS)])
        key_identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        builder = builder.add_extension(names, critical=False).add_extension(key_identifier, critical=False)
    else:
        builder = builder.add_extension(identifier, critical=False)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signing_key, SHA256()), key


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running server, its repository and its credentials; each is changed by one fault at a time."""

    server: ServerProcess
    shelf: Shelf
    credentials: Credentials
    of_process: threading.Lock = field(default_factory=threading.Lock)
    of_shelf: threading.Lock = field(default_factory=threading.Lock)
    of_certificate: threading.Lock = field(default_factory=threading.Lock)
    of_tokens: threading.Lock = field(default_factory=threading.Lock)
    kills: list[tuple[float, float]] = field(default_factory=list)  # when the process was killed, and seen to be dead


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Returns once it holds. Raises ProgramError NO_EFFECT if it does not in time."""
    if not comes_true(condition, limit_s):
        raise ProgramError("NO_EFFECT", f"{what}, for {limit_s:g} s")
