"""`python -m export.runtimes`: see run.py."""

import sys

from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Imports the program only here, so that a package it lacks is told as every other failure."""
    from export.runtimes.run import main as runtimes

    return runtimes(arguments)


sys.exit(run_program(main, extras="export,serve"))
