"""Serves: `python -m serving`."""

import os
import signal
import sys

# Nothing has been accepted; later the supervisor drains. Libraries that are being imported would catch SystemExit.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
# A terminal that is closed ends no server; and the version that is about to be read is the newest.
signal.signal(signal.SIGHUP, signal.SIG_IGN)
# Read by libraries when they are imported.
if "--debug" not in sys.argv:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc's own lines beside our one
# Let the thread that waits for events read the sockets too; handing them to grpc's pool of threads and back costs a
# tenth of a small request's CPU time.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy only copies here; its threads would idle in every process

from atelier.program import run_program  # noqa: E402 - importing takes a while, in which a signal may come
from serving.server import main  # noqa: E402

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sys.exit(run_program(main, packages=["grpcio", "pillow"]))
