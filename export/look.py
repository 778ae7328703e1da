"""`python -m export.look` (make look): the exported graph in Netron, in the browser."""

import argparse
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from atelier.environments import python_with
from atelier.program import run_program
from serving.manifest import ONNX_NAME, find_version

PACKAGES = ("netron==9.3.3",)
ENVIRONMENT = Path(".cache") / "netron"


def main(arguments: list[str]) -> int:
    """Installs Netron the first time, and serves the newest version's graph on localhost until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m export.look", description="Look at the exported graph in Netron.")
    add = parser.add_argument
    add("--repository", type=Path, default=Path("artifacts/models"), metavar="DIR", help="what export wrote")
    add("--port", type=int, default=8080, metavar="N", help="where the browser finds it (8080)")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    version_dir, _ = find_version(options.repository)
    python = python_with(PACKAGES, ENVIRONMENT)
    command = [str(python.with_name("netron")), "--host", "localhost", "--port", str(options.port), "--browse"]
    with suppress(KeyboardInterrupt):
        return subprocess.run([*command, str(version_dir / ONNX_NAME)], check=False).returncode  # noqa: S603
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, extras="export,serve"))
