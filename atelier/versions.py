"""Refuses packages that are too old to be safe: pip's bounds hold while it installs, and packages may change later."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from atelier.errors import ConfigurationError


class Minimum(NamedTuple):
    """The oldest version of a package that may run, as in pyproject.toml, and why."""

    version: str
    why: str


MINIMUM = {
    "torch": Minimum("2.11", "before 2.10 weights-only files can execute code, CVE-2026-24747; exports need 2.11"),
    "onnx": Minimum("1.21", "before it a model can read any file through a link, CVE-2026-27489"),
    "grpcio": Minimum("1.80", "before 1.65.4 a client can spoil others' calls, CVE-2024-7246; others are untested"),
    "pillow": Minimum("13.0", "before it a JPEG picture can overwrite memory, CVE-2026-112403"),
}


def check_packages(names: Sequence[str]) -> None:
    """Raises ConfigurationError OLD_PACKAGE if one of these is older than its minimum; missing ones are left out."""
    from importlib.metadata import PackageNotFoundError, version  # 30 ms, for programs that ask

    for name in names:
        minimum, why = MINIMUM[name]
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue  # whoever imports it says how to install it
        if _release(installed) < _release(minimum):
            what = f"{name} {installed} is installed, and {minimum} is the oldest that may run"
            raise ConfigurationError("OLD_PACKAGE", what, f"make setup, or pip install '{name}>={minimum}'", why=why)


def _release(text: str) -> tuple[int, ...]:
    """Reads the first numbers, so that 2.11.0a0+cu130 is no older than 2.11."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
