"""The server as it is, on a fake device that breaks as CUDA's does: from one batch on, for the rest of the process.

python -m tests.serving.breaking_server --lives 5,0 [the server's settings]

The first process answers five batches, the second none; those after them do not break. `--idle-fault hangs` has the
device of the first process break by itself a second after its start, whether or not anybody asks anything of it.
"""

import argparse
import ctypes
import dataclasses
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.contract import Images, Logits
from atelier.errors import ResourceUnavailableError
from atelier.program import run_program, say
from serving.config import ServerConfig, parse_arguments
from serving.limits import Limits
from serving.models import ModelVersion, ServedModel
from serving.server import serve_version
from tests.serving.fake_backend import MANIFEST, FakeBackend

FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB")
BROKEN = RuntimeError("CUDA error 700: an illegal memory access was encountered")


class BreakingBackend(FakeBackend):
    """Answers `num_batches` after its warm-up, and then fails whatever is asked of it."""

    def __init__(self, config: ServerConfig, num_batches: float, slow_s: float, image_s: float) -> None:
        super().__init__(config.max_batch_size or 64)
        self.has_memory = True
        self._image_s = image_s
        self._num_left = num_batches
        self._slow_s = slow_s
        self.idle_fault = ""
        self._began_s = time.monotonic()

    def warm_up(self) -> None:
        if not self.has_memory:
            raise FULL

    def infer(self, images: Images) -> Logits:
        if images.any():  # what a front end tries before it serves is black
            self._num_left -= 1
            time.sleep(self._slow_s)
        time.sleep(self._image_s * len(images))
        fault = self.idle_fault if time.monotonic() > self._began_s + 1 else ""
        if self._num_left < 0 or fault == "raises":
            raise BROKEN
        if fault == "hangs":
            time.sleep(60)
        if fault == "stands":
            stand_still()
        return super().infer(images) + (fault == "drifts")

    def close(self) -> None:
        if self._num_left < 0:
            raise BROKEN


def stand_still() -> None:
    """Holds Python's lock for ever, so that no thread goes on: reads from a pipe into which nobody writes."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


@dataclass(frozen=True, kw_only=True)
class BreakingVersion(ModelVersion):
    """Opens a device that breaks, each time that a process begins."""

    lives: list[int]
    num_starts: Any
    failing_starts: list[int]
    has_memory: bool
    slow_s: float
    image_s: float
    idle_fault: str

    def open(self, config: ServerConfig) -> ServedModel:
        with self.num_starts:
            number = self.num_starts.value
            self.num_starts.value += 1
        if number in self.failing_starts:
            raise ResourceUnavailableError("NO_GPU", "the device has gone", "plug it in")
        say(f"process {number} starts")
        lives = self.lives[number] if number < len(self.lives) else float("inf")
        backend = BreakingBackend(config, lives, self.slow_s, self.image_s)
        backend.has_memory = self.has_memory
        backend.idle_fault = self.idle_fault if number == 0 else ""
        return ServedModel(manifest=MANIFEST, backend=backend, sha256="a" * 64)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lives", type=lambda text: [int(word) for word in text.split(",")], default=[])
    parser.add_argument("--failing-starts", type=lambda text: [int(word) for word in text.split(",")], default=[])
    parser.add_argument("--no-memory", action="store_true", help="where the device is warmed up")
    parser.add_argument("--slow-s", type=float, default=0.0, help="that each batch takes")
    parser.add_argument("--image-s", type=float, default=0.0, help="that each image takes")
    parser.add_argument("--lame-duck-s", type=float, default=0.1, help="as in serving/limits.py")
    parser.add_argument("--idle-fault", choices=("raises", "drifts", "hangs", "stands"), default="")
    parser.add_argument("--probe-after-s", type=float, default=10.0, help="as in serving/limits.py")
    options, settings = parser.parse_known_args(arguments)
    version = BreakingVersion(
        directory=Path(),
        manifest=MANIFEST,
        lives=options.lives,
        failing_starts=options.failing_starts,
        has_memory=not options.no_memory,
        slow_s=options.slow_s,
        image_s=options.image_s,
        idle_fault=options.idle_fault,
        num_starts=multiprocessing.get_context("fork").Value("i", 0),
    )
    limits = Limits(lame_duck_s=options.lame_duck_s, probe_after_s=options.probe_after_s)
    config = dataclasses.replace(parse_arguments(settings), limits=limits)
    return serve_version(config, version)


if __name__ == "__main__":
    sys.exit(run_program(main))
