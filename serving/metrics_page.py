"""The metrics page: what all processes of a server have counted, for Prometheus, over HTTP.

It is served by a process of its own (metrics_process.py): a scraper that is slow, stuck or hostile keeps nothing
waiting but other scrapers.
"""

import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.metrics import BATCH_SIZE_BOUNDS, CODES, DURATION_BOUNDS_S, METHODS, Board

logger = logging.getLogger(__name__)

SCRAPE_TIMEOUT_S = 10.0  # that a scraper may be silent
MAX_SCRAPES = 16  # at once: each has a thread


class BoardCollector(Collector):
    """The board as Prometheus' metrics, read anew for every scrape."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Names by Prometheus' conventions, base units; see README's table."""
        totals, workers = self._board.totals(), self._board.descriptions()
        about = "A worker's version of the server, model, backend and device; one line for each that differs."
        info = InfoMetricFamily("atelier", about, labels=())
        for labels in {tuple(worker.items()): worker for worker in workers}.values():
            info.add_metric((), labels)
        yield info
        yield GaugeMetricFamily("atelier_workers", "Worker processes that are ready.", len(workers))
        about = "Worker processes that were replaced because they died, hung or could not go on."
        yield CounterMetricFamily("atelier_worker_restarts", about, totals["restarts"][0])
        calls = CounterMetricFamily("atelier_requests", "Calls that ended, by gRPC status.", labels=("method", "code"))
        pairs = [(method, code) for method in METHODS for code in CODES]
        for pair, count in zip(pairs, totals["calls"], strict=True):
            calls.add_metric(pair, count)
        yield calls
        yield CounterMetricFamily("atelier_images", "Images answered.", totals["images"][0])
        batches = CounterMetricFamily("atelier_batches", "Runs of the model.", labels=("outcome",))
        batches.add_metric(("ok",), totals["batches"][0])
        batches.add_metric(("failed",), totals["failed_batches"][0])
        yield batches
        yield GaugeMetricFamily("atelier_queue_images", "Images that wait for a batch.", totals["queue_images"][0])
        yield _histogram("atelier_batch_size_images", "Images of a batch.", BATCH_SIZE_BOUNDS, totals["batch_size"])
        for name, about in (
            ("queue", "What a request waited for its batch."),
            ("inference", "What a batch took on the device."),
            ("request", "What an answered Classify call took, from its whole message to its answer."),
        ):
            yield _histogram(f"atelier_{name}_duration_seconds", about, DURATION_BOUNDS_S, totals[name])


def _histogram(name: str, about: str, bounds: Sequence[float], numbers: Sequence[float]) -> HistogramMetricFamily:
    """`numbers`: a count for each bucket, that of +Inf, and the sum."""
    names = [*map(floatToGoString, bounds), "+Inf"]
    buckets = list(zip(names, accumulate(numbers[:-1]), strict=True))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=numbers[-1])


class PageServer(ThreadingMixIn, WSGIServer):
    """HTTP on a socket that listens already. Scrapers are few; when they are not, the next is turned away."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, board: Board) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = host, port
        self.setup_environ()
        registry = CollectorRegistry()
        registry.register(BoardCollector(board))
        self.set_app(make_wsgi_app(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for it."""
        if threading.active_count() > MAX_SCRAPES + 3:  # the main one, and one for each of up to two sockets
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """A scraper that hangs up is no news."""
        logger.debug("a scrape failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = SCRAPE_TIMEOUT_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not logged."""


def serve_page(board: Board, listeners: Sequence[socket.socket]) -> None:
    """Answers on all of the sockets, in threads, and returns."""
    for listener in listeners:
        threading.Thread(target=PageServer(listener, board).serve_forever, daemon=True).start()
