"""`python -m loadtest.bench`."""

import sys

from loadtest.bench.run import main
from serving.errors import run_program

sys.exit(run_program(main))
