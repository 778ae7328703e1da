"""One attack beside an honest client: quiet, under attack, and after."""

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field

from atelier.errors import ResourceUnavailableError
from loadtest.attack.attacker import run_attack
from loadtest.attack.attacks import Attack
from loadtest.attack.field import Field
from loadtest.attack.honest import Call, HonestClient, p99_ms
from loadtest.attack.verdict import Limits, Memory, Outcome, failures_of
from loadtest.attack.watch import Watch

START_S = 0.15  # for the attack's process


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that each part takes, and tries."""

    quiet_s: float = 5.0
    least_s: float = 15.0  # an attack that has reached its size goes on until then
    most_s: float = 180.0
    tries: int = 3  # of an attack that only made calls slow: what is the server's fault is slow each time


@dataclass(frozen=True, kw_only=True)
class Site:
    """A server that is attacked, and the honest client beside it."""

    address: tuple[str, int]
    metrics_address: tuple[str, int]
    pid: int | None  # of its first process; None if it was started elsewhere
    honest: HonestClient
    quiet: deque[Call] = field(default_factory=lambda: deque(maxlen=2000))  # the latest calls without an attack


def measure(attack: Attack, size: int, site: Site, timing: Timing, limits: Limits) -> Outcome:
    """Returns the outcome of the attack; of several tries the first that was not slow.

    Raises ResourceUnavailableError NOT_QUIET if honest calls fail without any attack.
    """
    _keep_quiet(site, timing.quiet_s)  # once: a server that an attack has slowed for good is held to what it was
    with contextlib.ExitStack() as stack:
        watch = None if site.pid is None else stack.enter_context(Watch(site.pid))
        for _ in range(timing.tries):
            outcome = _measure_once(attack, size, site, watch, timing, limits)
            if not outcome.is_only_slow:
                break
    return outcome


def _measure_once(
    attack: Attack, size: int, site: Site, watch: Watch | None, timing: Timing, limits: Limits
) -> Outcome:
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
    return Outcome(
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


def _keep_quiet(site: Site, seconds: float) -> None:
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
