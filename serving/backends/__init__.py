"""The runtimes a model can be served on, one module each, behind the interface in base.py."""
