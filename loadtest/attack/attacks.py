"""The attacks, by name, and their sizes."""

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.attack import bombs, floods, held, malformed
from loadtest.attack.field import Counts, Field


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to attack: `work` runs in a process of its own, until it has counted `size` of `unit`."""

    name: str
    work: Callable[[Field], Counts]
    unit: str
    size: int
    short_size: int  # in the gate

    @property
    def what(self) -> str:
        """One sentence."""
        return (self.work.__doc__ or "").partition("\n")[0]


def _attack(name: str, work: Callable[[Field], Counts], unit: str, size: int, short_size: int) -> Attack:
    return Attack(name=name, work=work, unit=unit, size=size, short_size=short_size)


# Nothing is sent to the server: what this costs the honest client is the machine's.
CONTROL = _attack("control", floods.control, "pings", 2_000_000, 20_000)

ATTACKS = (
    _attack("window-zero-80", held.window_zero, "connections", 80, 10),
    _attack("window-zero-500", held.window_zero, "connections", 500, 40),
    _attack("ping-flood", floods.pings, "pings", 2_000_000, 20_000),
    _attack("settings-flood", floods.settings, "settings", 2_000_000, 20_000),
    _attack("frame-flood", floods.frames, "frames", 2_000_000, 20_000),
    _attack("continuation-flood", floods.continuations, "frames", 1_000_000, 10_000),
    _attack("rapid-resets", floods.rapid_resets, "streams", 1_000_000, 20_000),
    _attack("resets-after-data", floods.resets_after_data, "streams", 100_000, 2_000),
    _attack("unknown-paths", floods.unknown_paths, "streams", 100_000, 2_000),
    _attack("churn", floods.churn, "connections", 20_000, 500),
    _attack("headers-only", held.headers_only, "streams", 10_000, 500),
    _attack("slow-bodies", held.slow_bodies, "streams", 2_000, 200),
    _attack("silent-connections", held.silent_connections, "connections", 2_000, 200),
    _attack("half-open-connections", held.half_open_connections, "connections", 2_000, 200),
    _attack("slow-scrapers", held.slow_scrapers, "connections", 40, 40),
    _attack("not-utf8", malformed.not_utf8, "connections", 2_000, 44),
    _attack("bad-prefaces", malformed.bad_prefaces, "connections", 2_000, 52),
    _attack("wrong-framing", malformed.wrong_framing, "connections", 2_000, 48),
    _attack("large-headers", malformed.large_headers, "calls", 1_000, 20),
    _attack("hpack-bombs", malformed.hpack_bombs, "calls", 2_000, 40),
    _attack("malformed-megabytes", malformed.malformed_megabytes, "messages", 60, 4),
    _attack("gzip-bombs", bombs.gzip_bombs, "messages", 60, 4),
    _attack("picture-bombs", bombs.picture_bombs, "messages", 60, 8),
    _attack("picture-heaps", bombs.picture_heaps, "messages", 20, 4),
    _attack("reset-pictures", bombs.reset_pictures, "streams", 10_000, 1_000),
)
