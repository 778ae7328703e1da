"""`python -m serving`."""

import os
import sys

if "--debug" not in sys.argv:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc's own lines beside our one; read when it is imported

from serving.errors import run_program
from serving.server import main

sys.exit(run_program(main))
