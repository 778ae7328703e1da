"""A server under a steady load, and one fault after the other: `python -m loadtest.soak`."""
