"""The server as it is, with a page whose process ends, and may start again, sooner than others wait.

python -m tests.serving.playground.quick_server --playground-idle-s 1 --playground-pause-s 0.2 [the server's settings]
"""

import argparse
import dataclasses
import sys

from atelier.program import run_program
from serving.config import parse_arguments
from serving.limits import Limits
from serving.models import read_version
from serving.playground import process
from serving.server import serve_version


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--playground-idle-s", type=float, default=600.0)
    parser.add_argument("--playground-pause-s", type=float, default=0.2)
    options, settings = parser.parse_known_args(arguments)
    process.PAUSE_S = options.playground_pause_s
    limits = Limits(playground_idle_s=options.playground_idle_s, lame_duck_s=0.05)
    config = dataclasses.replace(parse_arguments(settings), limits=limits)
    return serve_version(config, read_version(config))


if __name__ == "__main__":
    sys.exit(run_program(main))
