"""`python -m loadtest.bench`."""

import sys

from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Imports the program only here, so that a package it lacks is told as every other failure."""
    from loadtest.bench.run import main as bench

    return bench(arguments)


sys.exit(run_program(main, extras="load,serve,train"))
