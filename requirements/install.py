"""Installs what requirements/ pins, for `make setup`: `python requirements/install.py serve train`.

uv does so in a fifth of the time, from where the settings of pip say. If it cannot (a keyring, a proxy that pip knows),
pip does. Neither takes a package whose hash is not there, nor one that it would have to build.
"""

import ast
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# What pip's settings say of where packages come from, and uv's words for it.
WORDS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "no-index": "--no-index",
}
STRATEGY = ("--index-strategy", "unsafe-best-match")  # as pip; what is taken from anywhere is what the hashes say


def main(names: list[str]) -> int:
    """Installs the files of these names; returns the exit code of the last that tried."""
    files = [f"--requirement={HERE / name}.txt" for name in names]
    pinned = ["--require-hashes", "--only-binary=:all:"]
    if platform.machine() == "aarch64":
        pinned.append("--no-binary=hdrhistogram")  # it alone has no wheel there, and is compiled
    if find_spec("uv") is not None:
        settings = pip_settings()
        certificates = {"SSL_CERT_FILE": settings["cert"]} if "cert" in settings else {}
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *STRATEGY]
        environment = certificates | os.environ
        done = subprocess.run([*command, *sources(settings), *pinned, *files], env=environment)  # noqa: S603
        if done.returncode == 0:
            return 0
        print("note: uv could not, for the reason above: pip tries", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    return subprocess.run([*command, *pinned, *files]).returncode  # noqa: S603


def pip_settings() -> dict[str, str]:
    """Reads pip's files and variables; of a name that is in several the last one counts, as pip has it."""
    listed = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    pairs = [line.partition("=") for line in lines if "=" in line]
    order = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))  # variables come before files
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in order}


def sources(settings: dict[str, str]) -> Iterator[str]:
    """Yields uv's options for where packages come from."""
    for name, option in WORDS.items():
        if name == "no-index":
            yield from [option] if settings.get(name, "0").lower() in ("1", "true", "yes", "on") else []
        else:
            yield from (f"{option}={place}" for place in settings.get(name, "").split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
