"""Outcome of an attack, and whether it is what the server's front end promises."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.attack.honest import Call

FEWEST_CALLS = 20  # for a percentile to mean something


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that an honest client beside an attack may expect."""

    most_p99_ratio: float = 2.0  # to the quiet time
    floor_ms: float = 5.0  # a p99 below it is never a fault: a shared machine is no steadier
    most_growth_mb: float = 64.0  # once the attack has been over for `settle_s`
    settle_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that the server's processes held."""

    before_mb: float
    most_mb: float
    after_mb: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attack."""

    name: str
    unit: str
    size: int
    counts: dict[str, int]
    seconds: float
    num_calls: int
    failures: dict[str, int]
    quiet_p99_ms: float
    p99_ms: float
    memory: Memory | None  # not of a server that was started elsewhere
    is_alive: bool
    limits: Limits = field(default_factory=Limits)

    @property
    def num_failed(self) -> int:
        """Honest calls without a right answer."""
        return sum(self.failures.values())

    @property
    def ratio(self) -> float:
        """How much slower the honest client's slow calls were."""
        return self.p99_ms / self.quiet_p99_ms

    @property
    def is_slow(self) -> bool:
        """Whether it was slower than it may be."""
        limits = self.limits
        return self.p99_ms > max(limits.floor_ms, limits.most_p99_ratio * self.quiet_p99_ms)

    @property
    def is_only_slow(self) -> bool:
        """Whether that is its one fault."""
        return self.is_slow and len(self.faults) == 1

    @property
    def faults(self) -> list[str]:
        """What is not as it should be; empty if the server withstood."""
        limits, faults = self.limits, []
        if self.num_failed:
            faults.append(f"{self.num_failed} of {self.num_calls} honest calls failed: {_listed(self.failures)}")
        if self.num_calls < FEWEST_CALLS:
            faults.append(f"only {self.num_calls} honest calls")
        if self.is_slow:
            faults.append(f"p99 {self.p99_ms:.1f} ms instead of {self.quiet_p99_ms:.1f}")
        if not self.is_alive:
            faults.append("a process of the server died")
        if self.memory and (grown := self.memory.after_mb - self.memory.before_mb) > limits.most_growth_mb:
            faults.append(f"{grown:.0f} MB more than before, {limits.settle_s:g} s after")
        if self.counts.get(self.unit, 0) < self.size:
            faults.append(f"the attack got no further than {self.counts.get(self.unit, 0):,} {self.unit}")
        return faults


def failures_of(calls: Sequence[Call]) -> dict[str, int]:
    """Returns how often each thing went wrong, by status; a newcomer's on its own."""
    return dict(
        Counter(call.fault + (", on a new connection" if call.is_newcomer else "") for call in calls if call.fault)
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda item: -item[1]))
