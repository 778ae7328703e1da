"""`python -m export`: see export.py."""

import sys

from atelier.program import run_program
from export.export import main

sys.exit(run_program(main))
