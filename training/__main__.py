"""`python -m training`: see train.py."""

from atelier.program import run_lazily

run_lazily("training.train", extras="train", packages=["torch"])
