"""Shows what is counted under Triton's names too: dashboards and scalers that know Triton find what they look for.

The native front end does the same in native/src/metrics_page.rs. OpenMetrics wants counters to end with `_total`; these
names do not, so their type is `unknown`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

INFERENCES = ("Classify", "ModelInfer")  # methods that are inferences, each over all its protocols

FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
# Statuses of calls that failed, as the reasons that Triton knows; any other is OTHER.
REASONS = {
    "CANCELLED": "CANCELED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "RESOURCE_EXHAUSTED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "INTERNAL": "BACKEND",
}


class TritonMetrics:
    """Derives families from metrics of prometheus_client's whenever the page is asked for."""

    def __init__(
        self, labels: Mapping[str, str], *, calls: Any, images: Any, batches: Any, request: Any, queue: Any
    ) -> None:
        """`labels` say what is served; the others are metrics, as serving/metrics.py names them."""
        self.num_waiting_requests: Callable[[], int] = lambda: 0
        self.compute_s = 0.0  # what batches took, once for each of their requests
        self.set_labels(labels)
        self._calls, self._images, self._batches, self._request, self._queue = calls, images, batches, request, queue

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """Takes what is served from now on."""
        self._labels = {"model": labels.get("model", ""), "version": labels.get("model_version", "")}

    def collect(self) -> Iterator[Any]:
        """Yields the families, for prometheus_client's registry."""
        yield self._failures()
        for name, about, value in (
            (
                "request_success",
                "Inference requests that were answered.",
                sum(_total(self._calls, method=method, code="OK") for method in INFERENCES),
            ),
            ("count", "Images answered.", _total(self._images)),
            ("exec_count", "Runs of the model.", _total(self._batches, outcome="ok")),
            ("request_duration_us", "What answered requests took, added up.", _total(self._request) * 1e6),
            ("queue_duration_us", "What requests waited for their batch, added up.", _total(self._queue) * 1e6),
            ("compute_infer_duration_us", "What their batches took, added up over requests.", self.compute_s * 1e6),
        ):
            yield self._family(name, about, "unknown", {"": round(value)})
        waiting = {"": self.num_waiting_requests()}
        yield self._family("pending_request_count", "Requests that wait for a batch.", "gauge", waiting)

    def _failures(self) -> Any:
        counts = dict.fromkeys(FAILURES, 0.0)
        for sample in _samples(self._calls):
            if sample.labels["code"] != "OK" and sample.labels["method"] in INFERENCES:
                counts[REASONS.get(sample.labels["code"], "OTHER")] += sample.value
        return self._family("request_failure", "Inference requests that failed, by Triton's reason.", "unknown", counts)

    def _family(self, name: str, about: str, kind: str, values: Mapping[str, float]) -> Any:
        from prometheus_client import Metric  # here: a server without metrics does without

        family = Metric(f"nv_inference_{name}", about, kind)
        for reason, value in values.items():
            family.add_sample(family.name, self._labels | ({"reason": reason} if reason else {}), float(value))
        return family


def _total(metric: Any, **labels: str) -> float:
    """Adds up a counter's values, or a histogram's sums."""
    return sum(float(sample.value) for sample in _samples(metric, **labels))


def _samples(metric: Any, **labels: str) -> Iterator[Any]:
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum")) and labels.items() <= sample.labels.items():
                yield sample
