"""The wire contract. `*_pb2` modules are generated from the .proto files at install time (hatch_build.py)."""
