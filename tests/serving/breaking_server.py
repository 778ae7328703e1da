"""The server as it is, on a fake device that breaks as CUDA's does: from one batch on, for the rest of the process.

python -m tests.serving.breaking_server --lives 5,0 [--stable-s 60] [--pause-s 60] [the server's settings]

The first process answers five batches, the second none; those after them do not break. `--pause-s` makes each pause
before a replacement that long.
"""

import argparse
import multiprocessing
import sys

import pytest

from atelier.contract import Images, Logits
from atelier.program import run_program
from serving import supervisor
from serving.backoff import STABLE_S
from serving.config import ServerConfig
from serving.served_model import ServedModel
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_server import MANIFEST

BROKEN = RuntimeError("CUDA error 700: an illegal memory access was encountered")


class BreakingBackend(FakeBackend):
    """Answers `num_batches`, and then fails whatever is asked of it."""

    def __init__(self, num_batches: float) -> None:
        super().__init__()
        self._num_left = num_batches

    def infer(self, images: Images) -> Logits:
        self._num_left -= 1
        if self._num_left < 0:
            raise BROKEN
        return super().infer(images)

    def close(self) -> None:
        if self._num_left < 0:
            raise BROKEN


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lives", type=lambda text: [int(word) for word in text.split(",")], default=[])
    parser.add_argument("--stable-s", type=float, default=STABLE_S)
    parser.add_argument("--pause-s", type=float)
    options, settings = parser.parse_known_args(arguments)
    num_starts = multiprocessing.get_context("fork").Value("i", 0)

    def load(_config: ServerConfig) -> ServedModel:
        with num_starts:
            number = num_starts.value
            num_starts.value += 1
        print(f"process {number} starts", flush=True)
        backend = BreakingBackend(options.lives[number] if number < len(options.lives) else float("inf"))
        return ServedModel(manifest=MANIFEST, backend=backend, sha256="a" * 64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.worker.load_model", load)
        patch.setattr("serving.backoff.STABLE_S", options.stable_s)
        if options.pause_s is not None:
            patch.setattr("serving.supervisor.pause_s", lambda _num_failures: options.pause_s)
        return supervisor.main(settings)


if __name__ == "__main__":
    sys.exit(run_program(main))
