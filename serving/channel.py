"""A client's connection: how it is set, what it retries, and the server's methods on it."""

import json
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from protos import classifier_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
HEALTH = "grpc.health.v1.Health"

# Classify changes nothing, so a call may be repeated. A server that is shutting down answers UNAVAILABLE, and
# CANCELLED to what reaches it too late; neither has run. Four retries over about four seconds outlast its restart. A
# server that keeps refusing is spared: retries stop while failures outnumber successes by 500.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 5,  # the most that gRPC allows
                "initialBackoff": "0.4s",
                "backoffMultiplier": 2,
                "maxBackoff": "4s",
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 1},
}
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # A request that does not fit is sent, but never retried; gRPC's default is 256 KiB, 334 images.
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Any server tolerates a ping in five minutes; a connection on which data goes unacknowledged ends after 10 s.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class Methods:
    """The server's methods on a channel, grpc's or grpc.aio's: what the two clients have in common."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._classify = channel.unary_unary(
            f"/{SERVICE}/Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyResponse.FromString,
        )
        self._get_model = channel.unary_unary(
            f"/{SERVICE}/GetModel",
            request_serializer=pb.GetModelRequest.SerializeToString,
            response_deserializer=pb.GetModelResponse.FromString,
        )
        health = {
            "request_serializer": HealthCheckRequest.SerializeToString,
            "response_deserializer": HealthCheckResponse.FromString,
        }
        self._check = channel.unary_unary(f"/{HEALTH}/Check", **health)
        self._watch = channel.unary_stream(f"/{HEALTH}/Watch", **health)
