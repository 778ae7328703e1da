"""`python -m export`: see export.py."""

from atelier.program import run_lazily

run_lazily("export.export", extras="export,serve", packages=["torch", "onnx"])
