"""Serves an exported model over gRPC in dynamic batches: `python -m serving`."""
