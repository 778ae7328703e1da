"""A throw-away environment for each peer: .cache/peers/<name>, installed once."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from atelier.errors import ResourceUnavailableError

PEERS_DIR = Path(".cache") / "peers"
INSTALL_TIMEOUT_S = 600

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
    environment = directory / peer.lower()
    marker, python = environment / ".installed", environment / "bin" / "python"
    packages = PACKAGES[peer]
    if not marker.exists() or marker.read_text().split() != list(packages):
        shutil.rmtree(environment, ignore_errors=True)
        _run(peer, sys.executable, "-m", "venv", str(environment))
        _run(peer, str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        marker.write_text("\n".join(packages))
    own = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (own / "zz-atelier.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # after the installation: pip sees it not
    return python.absolute()


def _run(peer: str, *command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        why = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it took longer than {INSTALL_TIMEOUT_S} s"
    if why:
        raise ResourceUnavailableError("NO_PEER", f"{peer} cannot be installed", "leave out PEERS=1", why=why)
