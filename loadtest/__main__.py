"""`python -m loadtest`: see run.py."""

import sys

from loadtest.run import main
from serving.errors import run_program

if __name__ == "__main__":  # the generator's processes import this module too
    sys.exit(run_program(main))
