"""Pins what pip installs: `make pins` writes constraints.txt and, with hashes, a file for each extra of pyproject.toml.

Versions stay as constraints.txt has them unless they no longer fit: `make pins ARGS=--upgrade` takes the newest,
`ARGS="--upgrade-package grpcio"` that of one package. Every file holds for Linux and macOS, any processor, from Python
3.11 on, and names no address: where packages come from is the settings of pip.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from atelier.environments import python_with

HERE = Path(__file__).parent
ROOT = HERE.parent
PROJECT, NATIVE = ROOT / "pyproject.toml", ROOT / "native" / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
RESOLVER = "uv==0.13.9"  # atelier/installing.py installs with it
# Its packages on the index are programs that fetch NVIDIA's binaries: a hash of them would pin nothing.
WITHOUT_HASHES = {"tensorrt"}
EDITABLE = "editables"  # hatchling asks for it when it installs a project as editable
FIRST_LINE = "# What make pins wrote; change pyproject.toml and run it again.\n"


def main(arguments: list[str]) -> None:
    """Writes all files anew."""
    project = tomllib.loads(PROJECT.read_text())
    needed = {
        extra: project["project"]["dependencies"] + requirements
        for extra, requirements in project["project"]["optional-dependencies"].items()
    }
    needed["build"] = [*project["build-system"]["requires"], *_build_requirements(NATIVE), EDITABLE]
    needed["uv"] = [RESOLVER]
    python = python_with((RESOLVER,), ROOT / ".cache" / "pins")
    everything = [requirement for requirements in needed.values() for requirement in requirements]
    _compile(python, everything, CONSTRAINTS, *arguments)
    for name in needed.keys() - WITHOUT_HASHES:
        _compile(python, needed[name], HERE / f"{name}.txt", "--generate-hashes", "--constraint", str(CONSTRAINTS))


def _build_requirements(path: Path) -> list[str]:
    requires: list[str] = tomllib.loads(path.read_text())["build-system"]["requires"]
    return requires


def _compile(python: Path, requirements: list[str], output: Path, *options: str) -> None:
    """Resolves for all platforms at once; what the output already pins is preferred."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(requirements))
        source.flush()
        command = [str(python), "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
        shape = ["--no-header", "--no-annotate", "--no-emit-index-url", "--output-file", str(output)]
        subprocess.run([*command, *shape, *options, source.name], check=True)  # noqa: S603
    output.write_text(FIRST_LINE + output.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
