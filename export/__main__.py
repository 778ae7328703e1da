"""`python -m export`: see export.py."""

import sys

from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Imports the program only here, so that a package it lacks is reported as every other failure."""
    from export.export import main as export

    return export(arguments)


sys.exit(run_program(main, extras="export,serve", packages=["torch", "onnx"]))
