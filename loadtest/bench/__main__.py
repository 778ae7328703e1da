"""`python -m loadtest.bench`."""

import sys

from atelier.program import run_program
from loadtest.bench.run import main

sys.exit(run_program(main))
