"""Bounds what grpcio itself takes from clients, as far as it can be told to."""

from serving.config import ServerConfig


def channel_arguments(config: ServerConfig, *, shares_port: bool) -> list[tuple[str, int]]:
    """Returns channel arguments (grpc/grpc's channel_arg_names.h), whose defaults set no bound on streams."""
    return [
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_concurrent_streams", 128),
        # A stream counts for a moment after its end; a client that fills all streams again at once was refused.
        ("grpc.http2.max_deallocating_streams", 256),
        # Calls that have come while the event loop was busy: beyond the first, ever more of them were CANCELLED.
        ("grpc.server.max_pending_requests", config.limits.max_concurrent_requests),
        ("grpc.server.max_pending_requests_hard_limit", 2 * config.limits.max_concurrent_requests),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients may ping to keep an idle connection alive: each of gRPC's libraries and proxies can be told to. More
        # than two pings that come within half a second of the last, with no answer between, end their connection.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ]
