"""Atelier as an application of Ray Serve."""
