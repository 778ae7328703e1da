"""The front end in Python, on grpcio: for machines without the native one, and for reading."""
