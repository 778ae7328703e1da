"""The ground floor that all programs stand on: errors, settings, files, machine facts, and the client."""

__version__ = "0.1.0"  # the whole project's; pyproject.toml takes it from here
