"""`python -m loadtest.attack`: see run.py."""

import sys

from atelier.program import run_program
from loadtest.attack.run import main

sys.exit(run_program(main))
