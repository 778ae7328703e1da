"""Checks who exported a version: its manifest's Ed25519 signature, before anything else of it is read.

`manifest.sig` beside `manifest.json` holds the 64 bytes. The manifest has the version's number and the digest of every
file, so no signed version can be changed, mixed with another or given another number.
"""

import re
import stat
from functools import partial
from pathlib import Path
from typing import Any

from atelier.errors import BadDataError, ConfigurationError, ResourceUnavailableError
from atelier.program import how_to_install
from atelier.trusted_files import read_trusted
from serving.manifest import SIGNATURE_NAME, Check

MAX_BYTES = 4096  # of a signature's file, which has 64
PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
KEY_CURE = "openssl pkey -in KEY -pubout writes the public key of an Ed25519 key"


def signature_check(key_file: Path) -> Check:
    """Returns what raises BadDataError BAD_SIGNATURE for a manifest that none of the file's keys has signed.

    Raises ConfigurationError BAD_KEY if the file has no Ed25519 public key, or everybody can write it, and
    ResourceUnavailableError NO_LIBRARY if `cryptography` is not installed.
    """
    return partial(_check, _public_keys(key_file), key_file)


def _check(keys: list[Any], key_file: Path, version_dir: Path, manifest: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    path = version_dir / SIGNATURE_NAME
    cure = 'make export ARGS="--signing-key KEY" signs a new version'
    try:
        signature = read_trusted(path, version_dir.absolute().parent.parent, MAX_BYTES)
    except FileNotFoundError:
        what = f"{version_dir} has no {SIGNATURE_NAME}, and --require-signature wants one"
        raise BadDataError("BAD_SIGNATURE", what, cure) from None
    for key in keys:
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            continue
        return
    raise BadDataError("BAD_SIGNATURE", f"{path} is not the signature of this manifest by a key of {key_file}", cure)


def _public_keys(path: Path) -> list[Any]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        what, cure = "--require-signature needs cryptography, which is not installed", how_to_install("signing")
        raise ResourceUnavailableError("NO_LIBRARY", what, cure, why=str(error)) from None
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise ConfigurationError("BAD_KEY", f"{path} can be written by every user of this machine", "chmod o-w")
        keys = [load_pem_public_key(pem) for pem in PEM.findall(path.read_bytes())]
    except (OSError, ValueError) as error:
        raise ConfigurationError("BAD_KEY", f"{path}: {error}", KEY_CURE) from None
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ConfigurationError("BAD_KEY", f"{path} holds no Ed25519 public key, or another key beside it", KEY_CURE)
    return keys
