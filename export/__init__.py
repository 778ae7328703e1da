"""Turns a checkpoint into a proven model version: `python -m export`."""
