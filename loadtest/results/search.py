"""Search for the highest rate that holds a bound on latency.

LoadGen has a search too (FindPeakPerformance), for one process and its own rules; here a rate holds if every answer
was right, p99 is within the bound and the generator kept its schedule, over all processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from atelier.errors import ProgramError
from loadtest.results.measurement import Measurement

GROWTH = 1.5
PRECISION = 1.05  # the search ends when the rate that failed is at most this times the one that held
NUM_CONFIRMATIONS = 5
STEP_DOWN = 0.95
LOWEST_QPS = 1.0
MAX_CONFIRMATION_ROUNDS = 8

Probe = Callable[[float], Measurement]


@dataclass(kw_only=True)
class MaxSearch:
    """The search so far; `confirmations` are of `qps`, which is 0 until it is confirmed."""

    latency_p99_ms: float
    qps: float = 0.0
    probes: list[Measurement] = field(default_factory=list)
    confirmations: list[Measurement] = field(default_factory=list)

    @property
    def limit(self) -> str:
        """What failed at the lowest rate that did not hold."""
        failed = [probe for probe in self.probes if not holds(probe, self.latency_p99_ms)]
        if not failed:
            return ""
        first = min(failed, key=lambda probe: probe.load.target_qps)
        return f"{first.load.target_qps:,.0f} requests/s: {why_not(first, self.latency_p99_ms)}"


def why_not(measurement: Measurement, latency_p99_ms: float) -> str:
    """Reports why a rate does not hold; "" if it does."""
    failed = {name: measurement.count(name) for name in ("wrong", "lost", "refused") if measurement.count(name)}
    if failed:
        return ", ".join(f"{count:,} {name}" for name, count in failed.items())
    if measurement.invalid_because:
        return f"INVALID, {measurement.invalid_because[0]}"
    p99_ms = measurement.percentile_ms(99.0)
    return "" if p99_ms <= latency_p99_ms else f"p99 {p99_ms:.1f} ms, over {latency_p99_ms:g} ms"


def holds(measurement: Measurement, latency_p99_ms: float) -> bool:
    """Says whether every answer was right and in time, and offered on schedule."""
    return not why_not(measurement, latency_p99_ms)


def find_max(search: MaxSearch, probe: Probe, start_qps: float) -> None:
    """Fills `search` in: first up or down by factors, then between the last that held and the first that did not.

    Raises ProgramError if no rate holds.
    """

    def tried(qps: float) -> Measurement:
        search.probes.append(probe(qps))
        return search.probes[-1]

    low, high, qps = 0.0, math.inf, start_qps
    while low == 0.0 or high / low > PRECISION:
        if holds(tried(qps), search.latency_p99_ms):
            low = qps
        else:
            high = qps
        qps = low * GROWTH if high == math.inf else high / 2 if low == 0.0 else math.sqrt(low * high)
        if qps < LOWEST_QPS:
            raise _nothing_holds(search)
    _confirm(search, tried, low)


def _confirm(search: MaxSearch, tried: Probe, qps: float) -> None:
    """Confirms a rate that holds five times in a row; each time one does not, the rate goes down a little."""
    for _ in range(MAX_CONFIRMATION_ROUNDS):
        search.confirmations.clear()
        while len(search.confirmations) < NUM_CONFIRMATIONS:
            search.confirmations.append(tried(qps))
            if not holds(search.confirmations[-1], search.latency_p99_ms):
                break
        else:
            search.qps = qps
            return
        qps *= STEP_DOWN
    search.confirmations.clear()
    raise _nothing_holds(search)


def _nothing_holds(search: MaxSearch) -> ProgramError:
    what = f"no rate held p99 within {search.latency_p99_ms:g} ms five times; {search.limit}"
    return ProgramError("NO_RATE_HOLDS", what, "raise --latency-p99-ms, or use a quieter machine")
