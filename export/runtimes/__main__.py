"""`python -m export.runtimes`: see run.py."""

from atelier.program import run_lazily

run_lazily("export.runtimes.run", extras="export,serve")
