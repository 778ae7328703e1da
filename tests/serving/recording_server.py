"""The server as it is, on a fake device that writes down what it is given to execute, and holds while a file is there.

python -m tests.serving.recording_server --executed FILE [--hold FILE] [--image-s S] [the server's settings]

What is written survives a `kill -9` of the process.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.contract import IMAGE_SHAPE, Images, Logits
from atelier.program import run_program
from loadtest.load.protocols import Reference
from serving.config import ServerConfig, parse_arguments
from serving.models import ModelVersion, ServedModel
from serving.server import serve_version
from tests.serving.fake_backend import MANIFEST, FakeBackend

NUM_DIGITS = 4  # bytes of a number, behind the pixel that is the label


def numbered(count: int) -> Reference:
    """Returns images from 0 on, each with its number in it, and the right answers. Number 0 is black, as a warm-up."""
    images = np.zeros((count, *IMAGE_SHAPE), np.uint8)
    flat, numbers = images.reshape(count, -1), np.arange(count, dtype=">u4")
    flat[:, 0] = numbers % 10
    flat[:, 1 : 1 + NUM_DIGITS] = numbers.view(np.uint8).reshape(count, NUM_DIGITS)
    return Reference(images=images, logits=np.eye(10, dtype=np.float32)[flat[:, 0]] * 9, atol=1e-5)


def executed_by(path: Path) -> list[int]:
    """Reads what the device was given, in order, without number 0."""
    return [number for number in np.fromfile(path, ">u4").tolist() if number]


class RecordingBackend(FakeBackend):
    """Writes each image's number down before it answers."""

    def __init__(self, max_batch_size: int, executed: Path, hold: Path | None, image_s: float) -> None:
        super().__init__(max_batch_size)
        self._executed = os.open(executed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._hold, self._image_s = hold, image_s

    def infer(self, images: Images) -> Logits:
        if images.any():  # what a front end tries before it serves is black
            os.write(self._executed, images.reshape(len(images), -1)[:, 1 : 1 + NUM_DIGITS].tobytes())
        while self._hold and self._hold.exists():
            time.sleep(0.002)
        time.sleep(self._image_s * len(images))
        self.batches.clear()
        return super().infer(images)


@dataclass(frozen=True, kw_only=True)
class RecordingVersion(ModelVersion):
    executed: Path
    hold: Path | None
    image_s: float

    def open(self, config: ServerConfig) -> ServedModel:
        backend = RecordingBackend(config.max_batch_size or 64, self.executed, self.hold, self.image_s)
        return ServedModel(manifest=MANIFEST, backend=backend, sha256="a" * 64)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--executed", type=Path, required=True)
    parser.add_argument("--hold", type=Path)
    parser.add_argument("--image-s", type=float, default=0.0, help="that each image takes")
    options, settings = parser.parse_known_args(arguments)
    version = RecordingVersion(directory=Path(), manifest=MANIFEST, **vars(options))
    return serve_version(parse_arguments(settings), version)


if __name__ == "__main__":
    sys.exit(run_program(main))
