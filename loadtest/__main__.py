"""`python -m loadtest`: see run.py."""

import sys

from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Imports the program only here, so that a package it lacks is told as every other failure."""
    from loadtest.run import main as loadtest

    return loadtest(arguments)


if __name__ == "__main__":  # the generator's processes import this module too
    sys.exit(run_program(main, extras="load,serve"))
