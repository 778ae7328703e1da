"""The server as it is, but version 2 of the model ends the process that loads it, as a runtime that crashes does."""

import os
import signal
import sys
from unittest.mock import patch

from atelier.program import run_program
from serving.config import ServerConfig
from serving.models import ModelVersion, ServedModel
from serving.server import main

open_beside = ModelVersion.open_beside


def crash_or_open(version: ModelVersion, served: ServedModel, config: ServerConfig) -> ServedModel:
    if version.manifest.version == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return open_beside(version, served, config)


if __name__ == "__main__":
    with patch.object(ModelVersion, "open_beside", crash_or_open):
        sys.exit(run_program(main))
