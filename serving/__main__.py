"""`python -m serving`."""

import sys

from serving.errors import run_program
from serving.server import main

sys.exit(run_program(main))
