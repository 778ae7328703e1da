"""Turns Cargo.lock into pins.lock, which is committed, and back.

pins.lock is Cargo.lock without its `source` lines: versions and checksums say what is built, and where crates come from
is this machine's cargo to say. `python native/pins.py restore` writes Cargo.lock for a build (`make setup` does),
`python native/pins.py save` writes pins.lock after `cargo update`.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LOCK, PINS = HERE / "Cargo.lock", HERE / "pins.lock"
# The source stands between a package's version and its checksum; our own package has neither.
SOURCE = re.compile(r'^source = (".*")\n(?=checksum = )', re.MULTILINE)


def save() -> None:
    """Writes pins.lock from Cargo.lock."""
    PINS.write_text(SOURCE.sub("", LOCK.read_text()))


def restore() -> None:
    """Writes Cargo.lock from pins.lock, unless it says the same already: cargo would build anew."""
    if LOCK.exists() and SOURCE.sub("", LOCK.read_text()) == PINS.read_text():
        return
    pins = PINS.read_text()
    LOCK.write_text(re.sub(r"^(?=checksum = )", f"source = {_source(pins)}\n", pins, flags=re.MULTILINE))


def _source(pins: str) -> str:
    """What this cargo writes for a crate that a project without any lock depends on."""
    version = re.search(r'^name = "cfg-if"\nversion = "(.*)"', pins, re.MULTILINE)
    if version is None:
        raise RuntimeError("pins.lock has no cfg-if, a crate without dependencies of its own")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "src").mkdir()
        (project / "src/lib.rs").touch()
        dependency = f'[dependencies]\ncfg-if = "={version[1]}"\n'
        (project / "Cargo.toml").write_text('[package]\nname = "source"\nedition = "2021"\n' + dependency)
        subprocess.run(["cargo", "generate-lockfile", "--quiet"], cwd=project, check=True)  # noqa: S607
        source = SOURCE.search((project / "Cargo.lock").read_text())
    if source is None:
        raise RuntimeError("this cargo writes no source into Cargo.lock")
    return source[1]


if __name__ == "__main__":
    {"save": save, "restore": restore}[sys.argv[1]]()
