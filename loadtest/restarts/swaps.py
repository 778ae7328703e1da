"""Swaps versions of the model under load, and publishes bad ones, which must be refused while the old one serves on."""

import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from loadtest.load.protocols import Reference
from loadtest.restarts.bad_versions import BAD_KINDS
from loadtest.restarts.cycles import BETWEEN_S, STOP_S, Cycles
from loadtest.restarts.shelf import NamedVersion, Shelf, shifted
from loadtest.restarts.steady_load import PLAIN, SteadyLoad
from loadtest.server_process import ServerProcess, comes_true, free_port, server_process

SWAP, BAD_VERSION = "swap", "bad version"
LONGEST_S = 60.0  # for one version


def swap(
    front_end_flags: list[str],
    source: Path,
    reference: Reference,
    *,
    number: int,
    rate: float,
    longest_s: float = LONGEST_S,
) -> Cycles:
    """Publishes good versions, one after the other, and has the server take each: no call may fail or mix two."""
    pause, spans, faults = random.Random(number), [], []  # noqa: S311 - the same pauses each time
    with served_shelf(front_end_flags, source) as (server, shelf), _load(server, reference, rate) as load:
        for version in range(2, number + 2):
            time.sleep(pause.uniform(*BETWEEN_S))
            shelf.publish(version)
            began_s = time.monotonic()
            server.process.send_signal(signal.SIGHUP)
            if not comes_true(partial(_has_swapped, server, version - 1), longest_s):
                faults.append(f"version {version} was not served")
                break
            spans.append((began_s, time.monotonic()))
        return _cycles(SWAP, server, load, spans, faults)


def refuse(front_end_flags: list[str], source: Path, reference: Reference, *, number: int, rate: float) -> Cycles:
    """Publishes versions that are bad, each in its way: each must be refused with its word, and no call may notice."""
    pause, spans, faults = random.Random(number), [], []  # noqa: S311 - the same each time
    with served_shelf(front_end_flags, source) as (server, shelf), _load(server, reference, rate) as load:
        counts = dict.fromkeys((spoil.word for spoil in BAD_KINDS.values()), 0)
        for turn in range(number):
            time.sleep(pause.uniform(*BETWEEN_S) / 2)
            kind = list(BAD_KINDS)[turn % len(BAD_KINDS)]
            word = shelf.publish_bad(2, kind, pause)
            counts[word] += 1
            began_s = time.monotonic()
            server.process.send_signal(signal.SIGHUP)
            if not comes_true(lambda: _refused(server, counts) == counts, LONGEST_S):
                faults.append(f"{kind}: {_refused(server, counts)} were refused instead of {counts}")
                break
            spans.append((began_s, time.monotonic()))
            shelf.withdraw(2)
        if server.metric("atelier_version_swaps_total"):
            faults.append("a bad version was served")
        num_lines = server.output.count(" is refused: ")
        faults += [f"{num_lines} lines of the log say what was refused"] if num_lines != number else []
        return _cycles(BAD_VERSION, server, load, spans, faults)


@contextmanager
def served_shelf(flags: list[str], source: Path) -> Iterator[tuple[ServerProcess, Shelf]]:
    """Runs a server of a repository of its own, which has version 1."""
    with tempfile.TemporaryDirectory(prefix="atelier-swaps-") as directory:
        shelf = Shelf(repository=Path(directory), source=source)
        shelf.publish(1)
        options = ["--repository", directory, "--backend", "onnxruntime", "--metrics-port", str(free_port())]
        with server_process("serving", *options, *flags, "--port", str(free_port())) as server:
            yield server, shelf


def _load(server: ServerProcess, reference: Reference, rate: float) -> SteadyLoad:
    protocol = NamedVersion(target=server.target, reference=reference, shifted=shifted(reference))
    return SteadyLoad(protocol, client=PLAIN, rate=rate)


def _has_swapped(server: ServerProcess, times: int) -> bool:
    return server.metric("atelier_version_swaps_total") == times


def _refused(server: ServerProcess, words: dict[str, int]) -> dict[str, int]:
    return {word: int(server.metric("atelier_versions_refused_total", reason=word)) for word in words}


def _cycles(
    name: str,
    server: ServerProcess,
    load: SteadyLoad,
    spans: list[tuple[float, float]],
    faults: list[str],
) -> Cycles:
    time.sleep(BETWEEN_S[0])
    journal = load.ended()
    exit_codes = [server.stop(timeout_s=STOP_S)]
    repeated = sum(entry.retried for entry in journal)
    faults += [f"{repeated} calls had to be repeated"] if repeated else []
    took_s, answered = [ended_s - began_s for began_s, ended_s in spans], server.num_answered
    return Cycles(
        name=name, journal=journal, took_s=took_s, exit_codes=exit_codes, answered=answered, spans=spans, others=faults
    )
