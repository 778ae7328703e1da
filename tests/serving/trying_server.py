"""The server as it is, but versions from 2 on do harm when they are opened, each in its way, as a runtime might.

python -m tests.serving.trying_server --harm FIRST_VERSION [--trial-s S] [--trial-cpu-s S] [--trial-again-s S]
    [the server's settings]
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

from atelier.program import run_program, say
from serving.config import ServerConfig, parse_arguments
from serving.limits import Limits
from serving.models import ModelVersion, ServedModel, read_version
from serving.server import serve_version

really_open = ModelVersion.open


def ask_for_8_gb() -> None:
    memory = bytearray(8 << 30)
    memory[:: 1 << 12] = b"x" * len(memory[:: 1 << 12])


def never_end() -> None:
    while True:
        pass


# In the order of versions: what opening does, and the word with which the version is refused.
HARM: list[tuple[Callable[[], object], str]] = [
    (ask_for_8_gb, "BAD_MODEL"),
    (never_end, "LOAD_TIMEOUT"),
    (lambda: time.sleep(1000), "LOAD_TIMEOUT"),
    (lambda: os.kill(os.getpid(), signal.SIGSTOP), "LOAD_TIMEOUT"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "LOAD_CRASHED"),  # as the kernel does when memory is short
    (lambda: os.kill(os.getpid(), signal.SIGSEGV), "LOAD_CRASHED"),
    (lambda: os._exit(7), "LOAD_CRASHED"),
    (lambda: 1 / 0, "LOAD_FAILED"),
]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--harm", type=int, default=2, help="the first version that does")
    parser.add_argument("--trial-s", type=float, default=4.0)
    parser.add_argument("--trial-cpu-s", type=int, default=2)
    parser.add_argument("--trial-again-s", type=float, default=600.0)
    options, settings = parser.parse_known_args(arguments)

    def harmful_open(version: ModelVersion, config: ServerConfig) -> ServedModel:
        say(f"process {os.getpid()} opens version {version.manifest.version}")
        number = version.manifest.version - options.harm
        if 0 <= number < len(HARM):
            HARM[number][0]()
        return really_open(version, config)

    limits = Limits(trial_s=options.trial_s, trial_cpu_s=options.trial_cpu_s, trial_again_s=options.trial_again_s)
    config = dataclasses.replace(parse_arguments(settings), limits=limits)
    with patch.object(ModelVersion, "open", harmful_open):
        return serve_version(config, read_version(config))


if __name__ == "__main__":
    sys.exit(run_program(main))
