"""Commands in namespaces of their own: without a network, or where no file can be written."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def unshared(*options: str) -> list[str]:
    """A command's beginning that gives it such namespaces, without root's rights if need be."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *rights, *options]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip(f"{' '.join(command)} is not allowed here")
    return command


READ_ONLY = """
[ "$TMPDIR" = /var/tmp ] && mount -t tmpfs tmpfs /var/tmp
mount -o remount,bind,ro /
touch "$0" 2>/dev/null && exit 99
exec "$@"
"""


def read_only() -> list[str]:
    """A command's beginning that runs it where no file can be written, but in /var/tmp if TMPDIR is that."""
    return [*unshared("--mount"), "sh", "-ec", READ_ONLY, str(Path("can_be_written").absolute())]
