"""`python -m loadtest.gpu_report`: see run.py."""

import sys

from atelier.program import run_program
from loadtest.gpu_report.run import main

if __name__ == "__main__":
    sys.exit(run_program(main))
