"""`python -m training`: see train.py."""

import sys

from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Imports the program only here, so that a package it lacks is told as every other failure."""
    from training.train import main as train

    return train(arguments)


sys.exit(run_program(main, extras="train", packages=["torch"]))
