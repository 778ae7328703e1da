"""`python -m loadtest.soak`: see run.py."""

from atelier.program import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.soak.run", extras="load,serve,export,signing")
