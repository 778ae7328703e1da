"""Sends a span for each call to an OpenTelemetry collector, in the trace that its client began.

OpenTelemetry's own variables say where to, and which of them: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

import os

from atelier.errors import ResourceUnavailableError
from atelier.program import how_to_install
from serving.request_log import CallRecord, TraceParent

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ResourceUnavailableError(
        "NO_LIBRARY", "--traces needs OpenTelemetry, which is not installed", how_to_install("traces"), why=str(error)
    ) from None

# Those of a server span that are the server's fault, by OpenTelemetry's conventions for gRPC.
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE"}


class Tracer:
    """Makes spans of records. Sending them is a thread's; a collector that does not answer costs spans, not calls."""

    def __init__(self, labels: dict[str, str]) -> None:
        """`labels` say what is served, and go into each span's resource."""
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "atelier"}
        attributes = named | {f"atelier.{name}": value for name, value in labels.items()}
        self._provider = TracerProvider(resource=Resource.create(attributes))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("atelier")

    def add(self, record: CallRecord, parent: TraceParent | None) -> str:
        """Ends a span for the record; returns its trace's id. By default a client's sampled bit is obeyed."""
        span = self._tracer.start_span(
            record.method,
            trace.set_span_in_context(_remote(parent)) if parent else None,
            kind=trace.SpanKind.SERVER,
            start_time=record.ended_ns - record.took_us * 1000,
            attributes=_attributes(record),
        )
        if record.status in FAULTS:
            span.set_status(trace.StatusCode.ERROR, record.status)
        span.end(record.ended_ns)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Sends what has not been sent."""
        self._provider.shutdown()


def _remote(parent: TraceParent) -> trace.Span:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.is_sampled else trace.TraceFlags.DEFAULT)
    context = trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return trace.NonRecordingSpan(context)


def _attributes(record: CallRecord) -> dict[str, str | int]:
    service, _, method = record.method.rpartition("/")
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": record.code,
    }
    if record.batch_size:
        attributes |= {
            "atelier.answered_by": record.version,
            "atelier.num_images": record.num_images,
            "atelier.queue_us": record.queue_us,
            "atelier.inference_us": record.inference_us,
            "atelier.batch_size": record.batch_size,
        }
    return attributes
