"""Signs manifests, so that a server with `--require-signature` can tell who exported a version."""

import stat
from collections.abc import Callable
from pathlib import Path

from atelier.errors import ConfigurationError, ResourceUnavailableError
from atelier.program import how_to_install

Sign = Callable[[bytes], bytes]
KEY_CURE = "openssl genpkey -algorithm ed25519 -out KEY makes one"


def signer_from(path: Path) -> Sign:
    """Returns the function that signs with an Ed25519 private key in PEM, unencrypted: bytes -> 64 bytes.

    Raises ConfigurationError BAD_KEY if the file is none or others than its owner may read it, and
    ResourceUnavailableError NO_LIBRARY if `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        what, cure = "--signing-key needs cryptography, which is not installed", how_to_install("signing")
        raise ResourceUnavailableError("NO_LIBRARY", what, cure, why=str(error)) from None
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            what = f"{path} has mode {mode:o}: others than its owner may read or write the private key"
            raise ConfigurationError(
                "BAD_KEY", what, f"chmod 600 {path}, and make a new key if others may have read it"
            )
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:  # TypeError: it is encrypted
        raise ConfigurationError("BAD_KEY", f"{path}: {error}", KEY_CURE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError("BAD_KEY", f"{path} holds a key of another kind than Ed25519", KEY_CURE)
    return key.sign
