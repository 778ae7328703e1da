"""Attacks a server on this machine in every way it knows, with an honest client beside each attack.

make attack                                      every attack on a server of its own
python -m loadtest.attack --only rapid-resets    one of them
python -m loadtest.attack --target localhost:50051 --pid 4711
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from atelier.channel import is_local
from atelier.errors import UsageError
from atelier.settings import names_in, parse_settings
from atelier.tables import aligned
from loadtest.attack import bombs, floods, held, malformed
from loadtest.attack.field import Attack
from loadtest.attack.honest import HonestClient
from loadtest.attack.trial import Attacked, AttackOutcome, Limits, Timing, measure
from loadtest.front_ends import NOT_PROMISED, TrialSettings
from loadtest.server_process import ServerProcess, server_process
from serving.server import choose_front_end

METRICS_PORT = 8002  # of a server at --target
QUIET_S = 0.5  # at the least
FAILED, INVALID = "FAILED", "INVALID"
HEADER = ("attack", "what was sent", "honest calls", "p99, quiet and attacked", "memory before, most, after", "verdict")

# Nothing is sent to the server: what this costs the honest client is the machine's.
CONTROL = Attack("control", floods.control, "pings", 2_000_000, 20_000)
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
    Attack("malformed-megabytes", bombs.malformed_megabytes, "messages", 60, 4),
    Attack("gzip-bombs", bombs.gzip_bombs, "messages", 60, 4),
    Attack("picture-bombs", bombs.picture_bombs, "messages", 2_000, 100),
    Attack("picture-heaps", bombs.picture_heaps, "messages", 2_000, 100),
    Attack("reset-pictures", bombs.reset_pictures, "streams", 10_000, 1_000),
)


@dataclass(frozen=True, kw_only=True)
class AttackSettings(TrialSettings):
    """The command line; `--scale` shortens the least duration of an attack too."""

    target: str = ""
    """HOST:PORT of a server that runs already, on this machine; none starts a server for each attack."""

    pid: int | None = None
    """First process of the server at --target, whose memory and life are watched; None watches neither."""

    only: str = ""
    """Names of attacks, separated by commas; none makes all."""


def main(arguments: list[str]) -> int:
    """Returns 1 if the server did not withstand what its front end promises, 75 if the machine was too busy to say."""
    settings = parse_settings(
        AttackSettings,
        arguments,
        prog="python -m loadtest.attack",
        description=(__doc__ or ""),
        epilog="attacks:\n" + "\n".join(f"  {attack.name:<22} {attack.what}" for attack in ATTACKS),
    )
    by_name = {attack.name: attack for attack in ATTACKS}
    attacks = [by_name[name] for name in names_in(settings.only, by_name, "--only")]
    front_end = "" if settings.target else choose_front_end(settings.front_end)[0]
    share = min(1.0, settings.scale)
    timing = Timing(quiet_s=max(QUIET_S, share * Timing.quiet_s), least_s=max(QUIET_S, share * Timing.least_s))
    outcomes: list[AttackOutcome] = []
    words: list[str] = []
    for attack in [CONTROL, *attacks]:
        with _site(settings, front_end) as site:
            outcomes.append(measure(attack, settings.number(attack.size), site, timing, Limits()))
        words.append(verdict(outcomes[-1], front_end, is_noisy=outcomes[0].is_slow))
        print(f"{attack.name}: {words[-1]}", flush=True)
    print("\n" + aligned([HEADER, *map(row, outcomes, words)]))
    rows = [asdict(outcome) | {"verdict": word} for outcome, word in zip(outcomes, words, strict=True)]
    settings.save("attack.json", front_end=front_end or settings.target, attacks=rows)
    if any(word.startswith(FAILED) for word in words):
        return 1
    return os.EX_TEMPFAIL if any(word.startswith(INVALID) for word in words) else 0


def local_address(target: str) -> tuple[str, int]:
    """Returns host and port. Raises UsageError for a server that is not on this machine: others are not attacked."""
    host, colon, port = target.rpartition(":")
    if not (colon and host and port.isdecimal() and is_local(target)):
        cure = "only servers on this machine are attacked: pass localhost:PORT"
        raise UsageError("NOT_LOCAL", f"--target is {target!r}", cure)
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _site(settings: AttackSettings, front_end: str) -> Iterator[Attacked]:
    """Yields the server at --target, or a new one; and an honest client."""
    if settings.target:
        host, port = local_address(settings.target)
        with HonestClient(settings.target) as honest:
            metrics_address = (host, METRICS_PORT)
            yield Attacked(address=(host, port), metrics_address=metrics_address, pid=settings.pid, honest=honest)
        return
    with started_server(settings.repository, front_end) as server, site_of(server) as site:
        yield site


def started_server(repository: Path, front_end: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """Starts a server of this front end on a port that the system chooses."""
    return server_process("serving", "--repository", str(repository), "--port", "0", "--front-end", front_end)


@contextlib.contextmanager
def site_of(server: ServerProcess) -> Iterator[Attacked]:
    """Puts an honest client beside a server that this program started."""
    with HonestClient(server.target) as honest:
        pid, metrics_address = server.process.pid, server.metrics_address
        yield Attacked(address=server.address, metrics_address=metrics_address, pid=pid, honest=honest)


def verdict(outcome: AttackOutcome, front_end: str, *, is_noisy: bool = False) -> str:
    """Returns it in words. On a noisy machine, a server that was only slow may not be why."""
    if not outcome.faults:
        return "withstood"
    faults = "; ".join(outcome.faults)
    if reason := NOT_PROMISED.get(front_end, {}).get(outcome.name):
        return f"not promised ({reason}): {faults}"
    if is_noisy and outcome.is_only_slow:
        return f"{INVALID} (so is the control, of which the server sees nothing): {faults}"
    return f"{FAILED}: {faults}"


def row(outcome: AttackOutcome, word: str) -> tuple[str, ...]:
    """Returns the outcome's cells in the table."""
    memory = outcome.memory
    return (
        outcome.name,
        f"{outcome.counts.get(outcome.unit, 0):,} {outcome.unit} in {outcome.seconds:.0f} s",
        f"{outcome.num_calls}, {outcome.num_failed} failed",
        f"{outcome.quiet_p99_ms:.1f} and {outcome.p99_ms:.1f} ms ({outcome.ratio:.1f})",
        f"{memory.before_mb:.0f}, {memory.most_mb:.0f}, {memory.after_mb:.0f} MB" if memory else "",
        word,
    )
