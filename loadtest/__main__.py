"""`python -m loadtest`: see run.py."""

from atelier.program import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.run", extras="load,serve")
