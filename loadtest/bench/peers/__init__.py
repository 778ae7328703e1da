"""Other model servers, each in an environment of its own, that serve the very model and runtime that we do."""
