"""A throw-away environment for each peer: .cache/peers/<name>, installed once."""

import sys
from pathlib import Path

from atelier.environments import python_with
from atelier.errors import ResourceUnavailableError

PEERS_DIR = Path(".cache") / "peers"


def installed(peer: str, packages: tuple[str, ...], directory: Path = PEERS_DIR) -> Path:
    """Returns the Python of the peer's environment. Raises ResourceUnavailableError NO_PEER if pip cannot make it.

    Behind the peer's own packages the environment sees ours: ONNX Runtime is the same, PyTorch is not fetched again.
    Without packages of its own the peer runs in ours.
    """
    if not packages:
        return Path(sys.executable)
    try:
        return python_with(packages, directory / peer.lower(), sees_ours=True)
    except ResourceUnavailableError as error:
        what = f"{peer} cannot be installed"
        raise ResourceUnavailableError("NO_PEER", what, "leave out PEERS=1", why=error.why) from None
