"""What README and docs show, made by programs."""
