"""Signs manifests, so that a server with `--require-signature` can tell who exported a version."""

from collections.abc import Callable
from pathlib import Path

from atelier.errors import ConfigurationError, ResourceUnavailableError
from atelier.program import how_to_install
from atelier.trusted_files import check_secret

Sign = Callable[[bytes], bytes]
KEY_CURE = "openssl genpkey -algorithm ed25519 -out KEY makes one"


def signer_from(path: Path) -> Sign:
    """Returns the function that signs with an Ed25519 private key in PEM, unencrypted: bytes -> 64 bytes.

    Raises ConfigurationError BAD_KEY if the file is none, PermissionRefusedError TOKEN_FILE_MODE if others than its
    owner may open it, and ResourceUnavailableError NO_LIBRARY if `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        what, cure = "--signing-key needs cryptography, which is not installed", how_to_install("signing")
        raise ResourceUnavailableError("NO_LIBRARY", what, cure, why=str(error)) from None
    check_secret(path, may_group_read=False)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:  # TypeError: it is encrypted
        raise ConfigurationError("BAD_KEY", f"{path}: {error}", KEY_CURE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError("BAD_KEY", f"{path} holds a key of another kind than Ed25519", KEY_CURE)
    return key.sign
