"""`python -m export`: see export.py."""

import sys

from export.export import main
from serving.errors import run_program

sys.exit(run_program(main))
