"""The server as it is, on a device of a known pace: `python -m loadtest.bench.paced_server`, with serving's settings.

The model is run, and the device then stays busy for the rest of the time, as a GPU does, without a core. So it is the
device that a load saturates, and a generator on the same cores can offer ten times as much.
"""

import sys
import time
from dataclasses import replace

from atelier.contract import Images, Logits
from atelier.program import run_program
from serving.backends.base import Backend
from serving.config import ServerConfig, parse_arguments
from serving.models import ModelVersion, ServedModel, read_version
from serving.server import serve_version

IMAGE_S = 0.002  # one at a time
PACE = f"a device of {1 / IMAGE_S:,.0f} images/s"


class PacedBackend(Backend):
    """A backend that takes `IMAGE_S` for each image."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.device, self.max_batch_size = backend.name, backend.device, backend.max_batch_size
        self._backend = backend

    def infer(self, images: Images) -> Logits:
        """Returns the model's own answer, later."""
        ends_s = time.monotonic() + IMAGE_S * len(images)
        logits = self._backend.infer(images)
        time.sleep(max(0.0, ends_s - time.monotonic()))
        return logits

    def close(self) -> None:
        """Frees the device."""
        self._backend.close()


class PacedVersion(ModelVersion):
    """A version whose device is paced."""

    def open(self, config: ServerConfig) -> ServedModel:
        """Opens it as any version."""
        served = super().open(config)
        return replace(served, backend=PacedBackend(served.backend))


def main(arguments: list[str]) -> int:
    """Serves until SIGTERM or SIGINT."""
    config = parse_arguments([*arguments, "--max-batch-size", "1"])
    version = read_version(config)
    return serve_version(config, PacedVersion(directory=version.directory, manifest=version.manifest))


if __name__ == "__main__":
    sys.exit(run_program(main))
