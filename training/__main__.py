"""`python -m training`: see train.py."""

import sys

from atelier.program import run_program
from training.train import main

sys.exit(run_program(main))
