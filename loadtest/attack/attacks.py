"""The attacks, by name, and their sizes."""

from collections.abc import Callable
from typing import NamedTuple

from loadtest.attack import bombs, floods, held, malformed
from loadtest.attack.field import Counts, Field


class Attack(NamedTuple):
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


# Nothing is sent to the server: what this costs the honest client is the machine's.
CONTROL = Attack("control", floods.control, "pings", 2_000_000, 20_000)
# No attack, but as many callers as the attacks by pictures have: the yardstick of those.
CROWD = Attack("crowd", bombs.ordinary_crowd, "messages", 2_000, 100)

ATTACKS = (
    Attack("window-zero-80", held.window_zero, "connections", 80, 10),
    Attack("window-zero-500", held.window_zero, "connections", 500, 40),
    Attack("ping-flood", floods.pings, "pings", 2_000_000, 20_000),
    Attack("settings-flood", floods.settings, "settings", 2_000_000, 20_000),
    Attack("frame-flood", floods.frames, "frames", 2_000_000, 20_000),
    Attack("continuation-flood", floods.continuations, "frames", 1_000_000, 10_000),
    Attack("rapid-resets", floods.rapid_resets, "streams", 1_000_000, 20_000),
    Attack("resets-after-data", floods.resets_after_data, "streams", 100_000, 2_000),
    Attack("unknown-paths", floods.unknown_paths, "streams", 100_000, 2_000),
    Attack("churn", floods.churn, "connections", 20_000, 500),
    Attack("headers-only", held.headers_only, "streams", 10_000, 500),
    Attack("slow-bodies", held.slow_bodies, "streams", 2_000, 200),
    Attack("silent-connections", held.silent_connections, "connections", 2_000, 200),
    Attack("half-open-connections", held.half_open_connections, "connections", 2_000, 200),
    Attack("slow-scrapers", held.slow_scrapers, "connections", 40, 40),
    Attack("not-utf8", malformed.not_utf8, "connections", 2_000, 44),
    Attack("bad-prefaces", malformed.bad_prefaces, "connections", 2_000, 52),
    Attack("wrong-framing", malformed.wrong_framing, "connections", 2_000, 48),
    Attack("large-headers", malformed.large_headers, "calls", 1_000, 20),
    Attack("hpack-bombs", malformed.hpack_bombs, "calls", 2_000, 40),
    Attack("malformed-megabytes", malformed.malformed_megabytes, "messages", 60, 4),
    Attack("gzip-bombs", bombs.gzip_bombs, "messages", 60, 4),
    Attack("picture-bombs", bombs.picture_bombs, "messages", 2_000, 100),
    Attack("picture-heaps", bombs.picture_heaps, "messages", 2_000, 100),
    Attack("reset-pictures", bombs.reset_pictures, "streams", 10_000, 1_000),
)
