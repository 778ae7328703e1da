"""`python -m loadtest.attack`: see run.py."""

from atelier.program import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.attack.run", extras="load,serve")
