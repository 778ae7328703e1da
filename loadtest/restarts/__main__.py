"""`python -m loadtest.restarts`: see run.py."""

import sys

from atelier.program import run_program
from loadtest.restarts.run import main

sys.exit(run_program(main))
