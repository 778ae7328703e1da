"""Runs a program of this package, whose imports may lack a package: that is reported like every other failure."""

import sys
from importlib import import_module

from atelier.program import run_program


def run_lazily(module: str, extras: str) -> None:
    """Imports `module` and runs its `main`; ends the process with the exit code."""
    sys.exit(run_program(lambda arguments: int(import_module(module).main(arguments)), extras=extras))
