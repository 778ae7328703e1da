"""The messages on the wire, generated from protos/*.proto by hatch_build.py, and the names of the services."""

SERVICE = "atelier.v1.Classifier"
HEALTH = "grpc.health.v1.Health"
OPEN_INFERENCE = "inference.GRPCInferenceService"
