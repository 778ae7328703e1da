"""A throw-away environment for each peer: .cache/peers/<name>, installed once."""

from pathlib import Path

from atelier.environments import python_with
from atelier.errors import ResourceUnavailableError

PEERS_DIR = Path(".cache") / "peers"

# What is compared, in which version. PyYAML is what TorchServe needs and does not ask for.
PACKAGES = {
    "TorchServe": ("torchserve==0.12.0", "pyyaml==6.0.3"),
    "KServe": ("kserve==0.21.0",),
    "LitServe": ("litserve==0.2.19",),
}


def installed(peer: str, directory: Path = PEERS_DIR) -> Path:
    """Returns the Python of the peer's environment. Raises ResourceUnavailableError NO_PEER if pip cannot make it.

    Behind the peer's own packages the environment sees ours: ONNX Runtime is the same, PyTorch is not fetched again.
    """
    try:
        return python_with(PACKAGES[peer], directory / peer.lower(), sees_ours=True)
    except ResourceUnavailableError as error:
        what = f"{peer} cannot be installed"
        raise ResourceUnavailableError("NO_PEER", what, "leave out PEERS=1", why=error.why) from None
