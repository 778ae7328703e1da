"""`python -m loadtest.gpu_report`: see run.py."""

from atelier.program import run_lazily

if __name__ == "__main__":  # processes that are spawned import this module too
    run_lazily("loadtest.gpu_report.run", extras="load,serve,train")
