"""`python -m loadtest.attack`: see run.py."""

from loadtest.lazily import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.attack.run", "load,serve")
