"""Counts what a server does, for Prometheus: the numbers, and the page that shows them.

The native front end counts under the same names, labels and buckets in Rust: native/src/metrics_page.rs.
"""

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from serving.triton_metrics import TritonMetrics

logger = logging.getLogger(__name__)

METHODS = ("Classify", "GetModel", "ModelInfer", "other")  # other: health, metadata, and what does not exist
# The statuses that the server answers with; any other would count as UNKNOWN.
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
)

# Upper bounds of the histograms' buckets; one more, +Inf, has the rest.
DURATION_BOUNDS_S = tuple(
    digit * 10.0**exponent
    for exponent in range(-4, 1)
    for digit in (1, 2.5, 5)  # 100 us to 5 s
)
BATCH_SIZE_BOUNDS = tuple(float(2**exponent) for exponent in range(11))  # 1 to 1024

SCRAPE_TIMEOUT_S = 10.0  # that a scraper may be silent
MAX_SCRAPES = 16  # at once: each has a thread


class Metrics:
    """Counts what happens to requests and batches. Names by Prometheus' conventions, base units."""

    def __init__(self, labels: Mapping[str, str], num_restarts: int = 0) -> None:
        """`labels` say what is served; `num_restarts` counts this process's forerunners."""
        from prometheus_client import (  # here: a server without metrics does without
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            Info,
            disable_created_metrics,
        )

        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._labels = dict(labels)
        self._info = Info("atelier", "Version of the server, model, backend and device.", registry=registry)
        self._workers = Gauge("atelier_workers", "Server processes that are ready.", registry=registry)
        about = "Server processes that were replaced because they died, hung or could not go on."
        Counter("atelier_worker_restarts", about, registry=registry).inc(num_restarts)
        about = "Newer versions of the model that took the place of the one before."
        self._swaps = Counter("atelier_version_swaps", about, registry=registry)
        about = "Newer versions of the model that were not served, by the word of the reason."
        self._refused_versions = Counter("atelier_versions_refused", about, ("reason",), registry=registry)
        calls = Counter("atelier_requests", "Calls that ended, by gRPC status.", ("method", "code"), registry=registry)
        self._calls = {(method, code): calls.labels(method, code) for method in METHODS for code in CODES}
        self._images = Counter("atelier_images", "Images answered.", registry=registry)
        about = "Answers whose client had gone when they were ready."
        self._undelivered = Counter("atelier_undelivered", about, registry=registry)
        batches = Counter("atelier_batches", "Runs of the model.", ("outcome",), registry=registry)
        self._ok_batches, self._failed_batches = batches.labels("ok"), batches.labels("failed")
        self._queue_images = Gauge("atelier_queue_images", "Images that wait for a batch.", registry=registry)
        about = "Images of a batch."
        self._batch_size = Histogram("atelier_batch_size_images", about, buckets=BATCH_SIZE_BOUNDS, registry=registry)
        self._queue, self._inference, self._request = (
            Histogram(f"atelier_{name}_duration_seconds", about, buckets=DURATION_BOUNDS_S, registry=registry)
            for name, about in (
                ("queue", "What a request waited for its batch."),
                ("inference", "What a batch took on the device."),
                ("request", "What an answered Classify or ModelInfer took, from its whole message to its answer."),
            )
        )
        self._triton = TritonMetrics(
            labels, calls=calls, images=self._images, batches=batches, request=self._request, queue=self._queue
        )
        registry.register(self._triton)

    def count_call(self, method: str, code: str) -> None:
        """Counts a call that ended with this gRPC status."""
        method = method if method in METHODS else "other"
        self._calls[method, code if code in CODES else "UNKNOWN"].inc()

    def observe_request(self, seconds: float) -> None:
        """Notes how long after its message was there a call was answered."""
        self._request.observe(seconds)

    def observe_queue(self, seconds: float) -> None:
        """Notes how long a request waited for its batch."""
        self._queue.observe(seconds)

    def observe_batch(self, num_images: int, seconds: float, num_answered: int, num_requests: int = 1) -> None:
        """Notes a batch of so many requests and how long it ran; `num_answered` images are answered with it."""
        self._triton.compute_s += seconds * num_requests
        self._ok_batches.inc()
        self._images.inc(num_answered)
        self._batch_size.observe(num_images)
        self._inference.observe(seconds)

    def count_undelivered(self) -> None:
        """Counts an answer whose client had gone when it was ready."""
        self._undelivered.inc()

    def count_failed_batch(self) -> None:
        """Counts a batch that could not be run, or whose logits made no sense."""
        self._failed_batches.inc()

    def count_swap(self, labels: Mapping[str, str]) -> None:
        """Counts a newer version that is served from now on; `labels` say what it is."""
        self._labels = dict(labels)
        self._info.info(self._labels)
        self._triton.set_labels(labels)
        self._swaps.inc()

    def count_refused_version(self, word: str) -> None:
        """Counts a newer version that is not served, for this reason."""
        self._refused_versions.labels(word).inc()

    def show_certificate(self, ends_s: Callable[[], int]) -> None:
        """Shows when the TLS certificate ends, in Unix time."""
        from prometheus_client import Gauge

        about = "When the TLS certificate that is served ends."
        gauge = Gauge("atelier_tls_certificate_expiry_timestamp_seconds", about, registry=self.registry)
        gauge.set_function(ends_s)

    def triton(self, name: str, **labels: str) -> int:
        """Returns what is counted under a name of Triton's, without its `nv_inference_`."""
        labels |= {"model": self._labels.get("model", ""), "version": self._labels.get("model_version", "")}
        return int(self.registry.get_sample_value(f"nv_inference_{name}", labels) or 0)

    def set_ready(self, queue_images: Callable[[], int], queue_requests: Callable[[], int] = lambda: 0) -> None:
        """Says that the process serves; the functions return how many images and requests wait."""
        self._info.info(self._labels)
        self._workers.set(1)
        self._queue_images.set_function(queue_images)
        self._triton.num_waiting_requests = queue_requests


class NoMetrics(Metrics):
    """Counts nothing, for a server without metrics, and costs next to nothing."""

    def __init__(self) -> None: ...

    def count_call(self, method: str, code: str) -> None: ...

    def observe_request(self, seconds: float) -> None: ...

    def observe_queue(self, seconds: float) -> None: ...

    def observe_batch(self, num_images: int, seconds: float, num_answered: int, num_requests: int = 1) -> None: ...

    def count_undelivered(self) -> None: ...

    def count_failed_batch(self) -> None: ...

    def count_swap(self, labels: Mapping[str, str]) -> None: ...

    def count_refused_version(self, word: str) -> None: ...

    def show_certificate(self, ends_s: Callable[[], int]) -> None: ...

    def triton(self, name: str, **labels: str) -> int:  # noqa: ARG002
        """Returns 0."""
        return 0

    def set_ready(self, queue_images: Callable[[], int], queue_requests: Callable[[], int] = lambda: 0) -> None: ...


NO_METRICS = NoMetrics()


# --- The page --------------------------------------------------------------------------------------------------------


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves HTTP on a socket that listens already. Scrapers are few; when they are not, the next is turned away."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, registry: Any) -> None:
        from prometheus_client import make_wsgi_app

        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = host, port
        self._places = threading.BoundedSemaphore(MAX_SCRAPES)
        self.setup_environ()
        self.set_app(make_wsgi_app(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the scrape, if there is a place."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers, and gives the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Ignores a scraper that hangs up."""
        logger.debug("a scrape failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = SCRAPE_TIMEOUT_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not logged."""


def serve_page(metrics: Metrics, listeners: Sequence[socket.socket]) -> None:
    """Answers on all of the sockets, in threads, and returns."""
    for listener in listeners:
        threading.Thread(target=PageServer(listener, metrics.registry).serve_forever, daemon=True).start()
