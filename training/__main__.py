"""`python -m training`: see train.py."""

import sys

from serving.errors import run_program
from training.train import main

sys.exit(run_program(main))
