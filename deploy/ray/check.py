"""Runs the application on a local cluster of two nodes, under load, and kills a replica: `python -m deploy.ray.check`.

Ray is installed into an environment of its own, `.cache/ray` (some minutes, 0.5 GB), which sees our packages.
"""

import os
import subprocess
import sys
from pathlib import Path

from atelier.environments import python_with
from atelier.program import run_program

RAY = ("ray[serve]==2.60.0",)
ENVIRONMENT = Path(".cache") / "ray"
SURROUNDINGS = {
    "PYTHONPATH": str(Path.cwd()),  # Ray's workers find the checkout by it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # "no cluster over a network": all nodes on the loopback
}


def main(arguments: list[str]) -> int:
    """Returns the exit code of the trial, which runs there."""
    python = python_with(RAY, ENVIRONMENT, sees_ours=True)
    return subprocess.run(  # noqa: S603
        [str(python), "-m", "deploy.ray.trial", *arguments], env=os.environ | SURROUNDINGS, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(run_program(main))
