"""Installs Python packages with uv, in a fifth of the time that pip takes; or with pip if uv cannot.

    python -m atelier.installing .venv/bin/python --require-hashes --requirement requirements/serve.txt

uv gets no settings of its own: it is told what those of pip say of where packages come from. The first argument is the
Python of the environment to install into, the others are requirements, and options that uv and pip both know.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

# What pip's settings say of where packages come from, and uv's words for it.
WORDS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Of all places, as pip: requirements name exact versions, or hashes.
UV = (sys.executable, "-m", "uv", "pip", "install", "--index-strategy", "unsafe-best-match")


def main(arguments: list[str]) -> int:
    """Installs; returns the exit code of the one that tried last."""
    python, *requirements = arguments
    if find_spec("uv") is not None:
        settings = pip_settings()
        certificates = {"SSL_CERT_FILE": settings["cert"]} if "cert" in settings else {}
        command = [*UV, "--python", python, *sources(settings), *requirements]
        if subprocess.run(command, env=certificates | os.environ).returncode == 0:  # noqa: S603
            return 0
        print("note: uv could not, for the reason above: pip tries", flush=True)
    command = [*PIP, "--python", python, "install", "--no-compile", *requirements]  # most is never imported
    return subprocess.run(command).returncode  # noqa: S603


def pip_settings() -> dict[str, str]:
    """Reads pip's files and variables; of a name that is in several the last one counts, as pip has it."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True)  # noqa: S603
    pairs = [line.partition("=") for line in listed.stdout.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))  # variables come before files
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in pairs}


def sources(settings: dict[str, str]) -> Iterator[str]:
    """Yields uv's options for where packages come from."""
    for name, option in WORDS.items():
        yield from (f"{option}={place}" for place in settings.get(name, "").split())
    if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        yield "--no-index"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
