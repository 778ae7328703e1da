"""One attack beside an honest client: quiet, under attack, and after."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from atelier.errors import ResourceUnavailableError
from loadtest.attack.field import Attack, Field, run_attack
from loadtest.attack.honest import Call, HonestClient, p99_ms
from loadtest.processes import Watch

START_S = 0.15  # for the attack's process
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
class AttackOutcome:
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


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that each part takes, and tries."""

    quiet_s: float = 5.0
    least_s: float = 15.0  # an attack that has reached its size goes on until then
    most_s: float = 180.0
    tries: int = 3  # of an attack that only made calls slow: what is the server's fault is slow each time


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A server that is attacked, and the honest client beside it."""

    address: tuple[str, int]
    metrics_address: tuple[str, int]
    pid: int | None  # of its first process; None if it was started elsewhere
    honest: HonestClient
    quiet: deque[Call] = field(default_factory=lambda: deque(maxlen=2000))  # the latest calls without an attack


def measure(attack: Attack, size: int, site: Attacked, timing: Timing, limits: Limits) -> AttackOutcome:
    """Returns the outcome of the attack; of several tries the first that was not slow.

    Raises ResourceUnavailableError NOT_QUIET if honest calls fail without any attack.
    """
    with contextlib.ExitStack() as stack:
        watch = None if site.pid is None else stack.enter_context(Watch(site.pid))
        _keep_quiet(site, timing.quiet_s)  # once: a server that an attack has slowed for good is held to what it was
        for _ in range(timing.tries):
            outcome = _measure_once(attack, size, site, watch, timing, limits)
            if not outcome.is_only_slow:
                break
    return outcome


def _measure_once(
    attack: Attack, size: int, site: Attacked, watch: Watch | None, timing: Timing, limits: Limits
) -> AttackOutcome:
    began_s = time.monotonic()
    field = Field(
        address=site.address,
        metrics_address=site.metrics_address,
        size=size,
        least_s=began_s + START_S + timing.least_s,
        most_s=began_s + START_S + timing.most_s,
    )
    counts = run_attack(attack.work, field)
    ended_s = time.monotonic()
    calls = site.honest.calls(began_s, ended_s)
    return AttackOutcome(
        name=attack.name,
        unit=attack.unit,
        size=size,
        counts=dict(counts),
        seconds=ended_s - began_s,
        num_calls=len(calls),
        failures=failures_of(calls),
        quiet_p99_ms=p99_ms(site.quiet),
        p99_ms=p99_ms(calls),
        memory=_memory(watch, limits),
        is_alive=watch is None or watch.is_whole,
        limits=limits,
    )


def _keep_quiet(site: Attacked, seconds: float) -> None:
    """Adds to the calls without an attack."""
    began_s = time.monotonic()
    calls = site.honest.calls(began_s, began_s + seconds)
    if failures := failures_of(calls):
        what = f"of {len(calls)} honest calls without an attack some failed: {failures}"
        raise ResourceUnavailableError("NOT_QUIET", what, "the server is broken, or others load it")
    site.quiet.extend(calls)


def _memory(watch: Watch | None, limits: Limits) -> Memory | None:
    if watch is None:
        return None
    after_mb = watch.settled_mb(watch.before_mb + limits.most_growth_mb, limits.settle_s)
    return Memory(before_mb=watch.before_mb, most_mb=max(watch.most_mb, after_mb), after_mb=after_mb)
