"""Tells of each call that ended: a line in the log (`--log-requests`), and a span of a trace (`--traces`).

A front end keeps records only if one of the two is on.
"""

import logging
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import NamedTuple

from serving.config import ServerConfig
from serving.logs import FIELDS

logger = logging.getLogger("atelier.requests")

MAX_PATH = 200  # of a method that there is not, strangers choose the name
# By number, https://grpc.io/docs/guides/status-codes/. grpcio has them too, but the native front end does without it.
STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# https://www.w3.org/TR/trace-context/#traceparent-header, of version 00 and of later ones, which may be longer
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class CallRecord(NamedTuple):
    """Holds one call that has ended. Times of one that the model did not run for are 0."""

    method: str  # "atelier.v1.Classifier/Classify"; HTTP's path
    code: int  # gRPC's
    version: str  # of the model that answered; empty if none did
    num_images: int
    ended_ns: int  # Unix time
    took_us: int  # from its headers to its answer
    queue_us: int
    inference_us: int
    batch_size: int
    traceparent: str  # the header, or empty

    @property
    def status(self) -> str:
        """The code's name: OK."""
        return STATUSES[self.code]


class Ran(NamedTuple):
    """Holds what the model did for a call."""

    version: str
    num_images: int
    queue_us: int
    inference_us: int
    batch_size: int


NOT_RUN = Ran("", 0, 0, 0, 0)
# Of the call that this task handles, with grpcio; the native front end knows it by itself.
ran: ContextVar[Ran] = ContextVar("ran", default=NOT_RUN)


class TraceParent(NamedTuple):
    """Holds what a client says of the trace that its call belongs to."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @classmethod
    def parse(cls, header: str) -> "TraceParent | None":
        """Reads the header; returns None for one that is none."""
        match = TRACEPARENT.fullmatch(header)
        return cls(match[1], match[2], bool(int(match[3], 16) & 1)) if match else None


class RequestLog:
    """Writes records where the settings say."""

    def __init__(self, config: ServerConfig, labels: dict[str, str]) -> None:
        """`labels` say what is served. Raises ResourceUnavailableError NO_LIBRARY for traces without OpenTelemetry."""
        self._has_lines = config.log_requests
        self._tracer = None
        if self._has_lines:
            logger.setLevel(logging.INFO)
        if config.traces:
            from serving.traces import Tracer  # here: who wants no traces needs no OpenTelemetry

            self._tracer = Tracer(labels)

    def write(self, records: Iterable[CallRecord]) -> None:
        """Writes a line and a span for each, as far as they are wanted."""
        for record in records:
            parent = TraceParent.parse(record.traceparent)
            trace_id = parent.trace_id if parent else ""
            if self._tracer:
                trace_id = self._tracer.add(record, parent) or trace_id
            if self._has_lines:
                _log(record, trace_id)

    def write_call(self, path: str, code: int, began_s: float, traceparent: str) -> None:
        """Writes a call of this task that ends now; it began at `began_s`, on the monotonic clock."""
        version, num_images, queue_us, inference_us, batch_size = ran.get()
        record = CallRecord(
            path.removeprefix("/")[:MAX_PATH],
            code,
            version,
            num_images,
            time.time_ns(),
            round((time.monotonic() - began_s) * 1e6),
            queue_us,
            inference_us,
            batch_size,
            traceparent,
        )
        self.write([record])

    def close(self) -> None:
        """Sends the spans that have not been sent."""
        if self._tracer:
            self._tracer.close()


def _log(record: CallRecord, trace_id: str) -> None:
    fields = {
        "method": record.method,
        "status": record.status,
        "took_ms": record.took_us / 1e3,
    }
    text = f"{record.method} {record.status} in {record.took_us / 1e3:.2f} ms"
    if record.batch_size:
        fields |= {
            "model_version": record.version,
            "num_images": record.num_images,
            "queue_ms": record.queue_us / 1e3,
            "inference_ms": record.inference_us / 1e3,
            "batch_size": record.batch_size,
        }
        text += (
            f": {record.num_images} images, {record.queue_us / 1e3:.2f} ms queued, {record.inference_us / 1e3:.2f} ms"
            f" in a batch of {record.batch_size}, version {record.version}"
        )
    if trace_id:
        fields["trace_id"] = trace_id
        text += f", trace {trace_id}"
    if not text.isprintable():  # strangers choose the method's name, and a line is one line
        text = text.encode("unicode_escape").decode()
    logger.info("%s", text, extra={FIELDS: fields})
