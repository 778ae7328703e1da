"""Throw-away environments for packages that we do not depend on: installed once and kept, under .cache."""

import fcntl
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from atelier.errors import ResourceUnavailableError

INSTALL = (sys.executable, "-m", "atelier.installing")
INSTALL_TIMEOUT_S = 1800  # TensorFlow on a busy machine
_COMES_WITH_PYTHON = re.compile(r"(pip|setuptools|pkg_resources|_distutils_hack|distutils-precedence|__pycache__)\b")


def python_with(packages: Sequence[str], environment: Path, *, sees_ours: bool = False) -> Path:
    """Returns the Python of a virtual environment that holds these packages, pinned.

    Behind its own packages it sees ours if `sees_ours`, so that PyTorch is not fetched again.
    Raises ResourceUnavailableError NO_ENVIRONMENT if neither uv nor pip can fill it.
    """
    python = environment / "bin" / "python"
    venv = (sys.executable, "-m", "venv", "--without-pip", str(environment))
    _install_once(environment, packages, venv, (*INSTALL, str(python), "--quiet", *packages))
    if sees_ours:  # written after the installation: pip does not see it
        own = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (own / "zz-atelier.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.absolute()


def node_modules_with(packages: Sequence[str], environment: Path) -> Path:
    """Returns a `node_modules` that holds these packages. Raises ResourceUnavailableError NO_ENVIRONMENT as above."""
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefix", str(environment))
    _install_once(environment, packages, ("npm", "install", *options, *packages))
    return (environment / "node_modules").absolute()


def size_mb(environment: Path) -> float:
    """Returns what the installed packages take on disk, without pip and what a new environment has anyway.

    With the bytecode of what has been imported there.
    """
    [packages] = [*environment.glob("node_modules"), *environment.glob("lib/*/site-packages")]
    folders = [path for path in packages.iterdir() if not _COMES_WITH_PYTHON.match(path.name)]
    files = (file for folder in folders for file in (folder.rglob("*") if folder.is_dir() else (folder,)))
    return sum(file.lstat().st_size for file in files if not file.is_dir()) / 1e6


def _install_once(environment: Path, packages: Sequence[str], *commands: tuple[str, ...]) -> None:
    """Makes the environment anew by these commands, unless it holds these packages.

    Waits until no other process installs there: tests run several at a time.
    """
    environment.parent.mkdir(parents=True, exist_ok=True)
    marker = environment / ".installed"
    with (environment.parent / f".{environment.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists() and marker.read_text().split() == list(packages):
            return
        shutil.rmtree(environment, ignore_errors=True)
        environment.mkdir(parents=True)
        for command in commands:
            _run(*command)
        marker.write_text("\n".join(packages))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        why = _reason(done.stderr) if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it took longer than {INSTALL_TIMEOUT_S} s"
    except OSError as error:
        why = str(error)
    if why:
        raise ResourceUnavailableError("NO_ENVIRONMENT", f"{Path(command[0]).name} cannot install", why=why)


def _reason(stderr: str) -> str:
    """Returns the first line that speaks of an error, if there is one in pip's words: those behind it refer to it."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    of_pip = [line for line in lines if line.startswith("ERROR: ")]
    return next((line for line in of_pip or lines if "error" in line.lower()), lines[-1])
