"""Hold the served model against the references: `make bench`, `make classify`."""
