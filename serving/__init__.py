"""Serve an exported model over gRPC in dynamic batches: `python -m serving`."""

__version__ = "0.1.0"  # the whole project's; pyproject.toml takes it from here
