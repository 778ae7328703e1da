"""`python -m loadtest`: see run.py."""

from loadtest.lazily import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.run", "load,serve")
