"""The server as it is, but version 2 of the model ends the process that loads it, as a runtime that crashes does.

Version 4 takes a minute to load.
"""

import os
import signal
import sys
import time
from unittest.mock import patch

from atelier.program import run_program, say
from serving.config import ServerConfig
from serving.models import ModelVersion, ServedModel
from serving.server import main

open_beside = ModelVersion.open_beside


def crash_or_open(version: ModelVersion, served: ServedModel, config: ServerConfig) -> ServedModel:
    if version.manifest.version == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if version.manifest.version == 4:
        say("version 4 begins to load")
        time.sleep(60)
    return open_beside(version, served, config)


if __name__ == "__main__":
    with patch.object(ModelVersion, "open_beside", crash_or_open):
        sys.exit(run_program(main))
