"""Installs Python packages with uv, in a quarter of the time that pip takes; or with pip, where uv cannot.

    python -m atelier.installing .venv/bin/python --require-hashes --requirement requirements/serve.txt

Where packages come from is for the settings of pip to say, whoever installs: uv's own are left aside. If those of pip
say what uv has no words for, pip installs. The first argument is the Python of the environment to install into, the
others are requirements, and options that both know.
"""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Of all places, as pip: requirements name exact versions, or hashes.
UV = (sys.executable, "-m", "uv", "--no-config", "pip", "install", "--index-strategy", "unsafe-best-match")
# pip's settings, and uv's variables for them: an address may hold a password, which an argument would show to others.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
}
SWITCHES = {"no-index": "--no-index", "no-cache-dir": "--no-cache"}
# Nothing is taken from elsewhere, nor by other means, for these.
HARMLESS = {"default-timeout", "timeout", "retries", "disable-pip-version-check", "root-user-action", "no-input"}
HARMLESS |= {
    "config-file",
    "quiet",
    "verbose",
    "no-color",
    "progress-bar",
    "cache-dir",
    "no-compile",
    "require-virtualenv",
}
KEPT = {"UV_CACHE_DIR", "UV_LINK_MODE", "UV_HTTP_TIMEOUT"}  # of uv's variables
SECTIONS = ("global", "install", ":env:")  # a later one counts for more


def main(arguments: list[str]) -> int:
    """Installs; returns the exit code of the one that tried last."""
    python, *requirements = arguments
    settings = pip_settings() if find_spec("uv") is not None else None
    if settings is not None:
        switches = [switch for name, switch in SWITCHES.items() if is_on(settings.get(name, "0"))]
        command = [*UV, *switches, "--python", python, *requirements]
        if subprocess.run(command, env=environment_for_uv(settings)).returncode == 0:  # noqa: S603
            return 0
        print("note: uv could not, for the reason above: pip tries", flush=True)
    command = [*PIP, "--python", python, "install", "--no-compile", *requirements]  # most is never imported
    return subprocess.run(command).returncode  # noqa: S603


def pip_settings() -> dict[str, str] | None:
    """Reads pip's files and variables; None if uv has no words for one, if two contradict, or if pip cannot read them.

    Two files of which one overrides the other contradict too: in which order they come, pip does not list.
    """
    spoken = os.environ | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"}
    listed = subprocess.run([*PIP, "config", "list"], env=spoken, capture_output=True, text=True)  # noqa: S603
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.stdout.splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        value = str(ast.literal_eval(quoted))
        if section not in SECTIONS or name in HARMLESS or not value:
            continue
        is_known = name in VARIABLES or name in SWITCHES
        if not is_known or found[section].setdefault(name, value) != value:
            return None
    return None if listed.returncode else found["global"] | found["install"] | found[":env:"]


def environment_for_uv(settings: dict[str, str]) -> dict[str, str]:
    """Returns the variables of this process, with pip's settings in place of uv's own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UV_") or name in KEPT}
    return ours | {VARIABLES[name]: value for name, value in settings.items() if name in VARIABLES}


def is_on(value: str) -> bool:
    """Reads a switch as pip does."""
    return value.lower() in ("1", "true", "yes", "on", "y", "t")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
