"""Lives of grpcio's server in virtual time."""
