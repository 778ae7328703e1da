"""Results of a load: the shares of all generator processes, added up, and whether the figures may be believed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hdrh.histogram import HdrHistogram

from loadtest.load.records import HISTOGRAMS, Share, new_histogram
from loadtest.load.scenarios import Load

PERCENTILES = (50.0, 99.0, 99.9)

# How late the generator may be at its p99: a fifth of the latency's p99, or of its bound. Latency includes lateness, so
# figures of a late generator are the server's at worst: what is refused are those that blame it for too much.
MAX_LATENESS_SHARE = 0.2
# How far our median latency may be from LoadGen's: a preempted thread, but not another schedule.
MAX_CLOCK_ERROR_SHARE = 0.05
MAX_CLOCK_ERROR_MS = 0.5


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One load, or the same load several times."""

    load: Load
    shares: tuple[Share, ...]
    elapsed_s: float
    interrupted: bool = False

    @cached_property
    def histograms(self) -> dict[str, HdrHistogram]:
        """By name, in microseconds: those of all processes, added up."""
        histograms = {name: new_histogram() for name in HISTOGRAMS}
        for share in self.shares:
            for name, encoded in share.histograms.items():
                histograms[name].decode_and_add(encoded)
        return histograms

    def count(self, name: str) -> int:
        """Counts requests that were `correct`, `wrong`, `lost` ... as `share_from` names them, or answered `images`."""
        return sum(share.counts.get(name, 0) for share in self.shares)

    @property
    def num_requests(self) -> int:
        """All that were answered or given up."""
        return sum(map(self.count, ("correct", "wrong", "lost", "refused")))

    @cached_property
    def batch_sizes(self) -> dict[int, int]:
        """Images by the size of the batch that they ran in, smallest first; empty if the server does not say."""
        images: Counter[int] = Counter()
        for share in self.shares:
            images.update(share.batch_sizes)
        return dict(sorted(images.items()))

    @property
    def mean_batch_size(self) -> float:
        """Images of a batch; 0 if the server does not say."""
        num_batches = sum(num_images / size for size, num_images in self.batch_sizes.items())
        return sum(self.batch_sizes.values()) / num_batches if num_batches else 0.0

    @property
    def requests_per_s(self) -> float:
        """Right answers per second."""
        return self.count("correct") / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def images_per_s(self) -> float:
        """Images rightly answered per second."""
        return self.count("images") / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def goodput_qps(self) -> float:
        """Right answers within the latency bound, per second."""
        return self.count("within_bound") / self.elapsed_s if self.elapsed_s else 0.0

    def percentile_ms(self, percentile: float, name: str = "latency") -> float:
        """Reads a percentile of one of the histograms."""
        return float(self.histograms[name].get_value_at_percentile(percentile)) / 1e3

    def mean_ms(self, name: str) -> float:
        """Reads the mean of one of the histograms; 0 if there is nothing in it."""
        histogram = self.histograms[name]
        return float(histogram.get_mean_value()) / 1e3 if histogram.get_total_count() else 0.0

    @property
    def faults(self) -> list[str]:
        """The first wrong, lost and refused answers, each named."""
        return [fault for share in self.shares for fault in share.faults]

    @cached_property
    def invalid_because(self) -> list[str]:
        """Why the figures are not the server's; empty if they are."""
        reasons = []
        if not self.num_requests:
            reasons.append("nothing was answered")
        lateness_ms, latency_ms = self.percentile_ms(99.0, "lateness"), self.percentile_ms(99.0)
        limit_ms = MAX_LATENESS_SHARE * max(latency_ms, self.load.latency_p99_ms)
        if lateness_ms > limit_ms:
            reasons.append(f"the generator was late: p99 {lateness_ms:.1f} ms, at most {limit_ms:.1f} ms may be")
        clock_error_ms = max((share.clock_error_us for share in self.shares), default=0.0) / 1e3
        if clock_error_ms > max(MAX_CLOCK_ERROR_MS, MAX_CLOCK_ERROR_SHARE * self.percentile_ms(50.0)):
            reasons.append(f"LoadGen's median latency is {clock_error_ms:.1f} ms from ours")
        results = [share.loadgen for share in self.shares]
        if self.load.scenario == "server" and any(
            result.get("result_perf_constraints_met") and not result.get("early_stopping_met", True)
            for result in results
        ):
            reasons.append("LoadGen: too few requests to be sure of p99: a longer --duration-s")
        reasons += sorted({f"LoadGen: {error}" for result in results for error in result.get("errors", ())})
        return reasons

    @property
    def loadgen_validity(self) -> str:
        """LoadGen's own verdict under the durations that were asked for: VALID, INVALID, or "" if it gave none."""
        verdicts = {str(share.loadgen.get("result_validity", "")) for share in self.shares}
        return "INVALID" if "INVALID" in verdicts else "" if "" in verdicts else "VALID"

    def as_document(self) -> dict[str, Any]:
        """Returns all of it, for report.json."""
        milliseconds = {
            name: {f"p{percentile:g}": self.percentile_ms(percentile, name) for percentile in PERCENTILES}
            | {"mean": self.mean_ms(name), "max": self.percentile_ms(100.0, name)}
            for name, histogram in self.histograms.items()
            if histogram.get_total_count()
        }
        return {
            "contender": self.load.contender,
            "scenario": self.load.scenario,
            "images_per_request": self.load.images_per_request,
            "target_qps": self.load.target_qps or None,
            "elapsed_s": self.elapsed_s,
            "requests_per_s": self.requests_per_s,
            "images_per_s": self.images_per_s,
            "goodput_qps": self.goodput_qps,
            "milliseconds": milliseconds,
            "requests": {
                name: self.count(name) for name in ("correct", "wrong", "lost", "refused", "pending", "within_bound")
            },
            "images": self.count("images"),
            "batch_sizes": self.batch_sizes,
            "faults": self.faults,
            "invalid_because": self.invalid_because,
            "interrupted": self.interrupted,
            "loadgen_validity": self.loadgen_validity,
            "loadgen": [share.loadgen for share in self.shares],
            "generator_cpu_s": sum(share.cpu_s for share in self.shares),
        }


def measured(load: Load, shares: Sequence[Share], *, interrupted: bool = False) -> Measurement:
    """Sums up one run of a load, by the processes that shared it. They have the same monotonic clock."""
    if len(shares) > 1:
        shares = [
            replace(share, faults=[f"process {rank}, {fault}" for fault in share.faults])
            for rank, share in enumerate(shares)
        ]
    began = [share for share in shares if share.started_ns]
    start_ns = min((share.started_ns for share in began), default=0)
    elapsed_s = max((share.ended_ns - start_ns for share in began), default=0) / 1e9
    return Measurement(load=load, shares=tuple(shares), elapsed_s=max(elapsed_s, 0.0), interrupted=interrupted)


def together(runs: Sequence[Measurement]) -> Measurement:
    """Sums up several runs of the same load as one."""
    return Measurement(
        load=runs[0].load,
        shares=tuple(share for run in runs for share in run.shares),
        elapsed_s=sum(run.elapsed_s for run in runs),
        interrupted=any(run.interrupted for run in runs),
    )
