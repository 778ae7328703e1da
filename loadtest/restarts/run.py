"""Restarts and kills a server under load, and accounts for every request.

SIGTERM and a new start on the same port, under an open loop of requests whose client repeats only what is UNAVAILABLE:
none may be lost, wrong or CANCELLED. Then kill -9 to the process that serves, under the client that comes with the
server: no call may fail, and service is back within half a second. Then newer versions of the model, good and bad,
under load: no call may fail or be repeated, and no answer may be of another version than it says. Each
answer is held against the raw model's.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from atelier.machine import machine_facts
from atelier.settings import parse_settings
from atelier.tables import aligned
from loadtest.front_ends import ENDS, End, chosen_front_end, front_end_flags
from loadtest.restarts.cycles import Command, Cycles, kill, restart
from loadtest.restarts.journal import write_journal
from loadtest.restarts.known import known_answers
from loadtest.restarts.swaps import refuse, swap

PACKAGES = ("grpcio", "onnxruntime", "numpy")
HEADER = ("end", "times", "requests", "right", "wrong", "lost", "failed", "repeated", "back after, median and most", "")


@dataclass(frozen=True, kw_only=True)
class RestartSettings:
    """The command line."""

    repository: Path = Path("artifacts/models")
    """The model repository to serve."""

    front_end: str = "auto"
    """Front end of the server: auto, native or grpcio."""

    restarts: int = 200
    """How often the server is ended by SIGTERM and started anew."""

    kills: int = 200
    """How often the process that serves is killed by SIGKILL."""

    swaps: int = 300
    """How often a newer version of the model takes the place of the one served."""

    bad_versions: int = 100
    """How many newer versions that must be refused are published."""

    rate: float = 500.0
    """Requests a second."""

    report: Path | None = None
    """Also write all figures as JSON."""

    journal_dir: Path | None = None
    """Also write the journals there: a line for every request."""


def main(arguments: list[str]) -> int:
    """Returns 1 if anything was lost, wrong or late."""
    settings = parse_settings(RestartSettings, arguments, prog="python -m loadtest.restarts", description=__doc__ or "")
    front_end = chosen_front_end(settings.front_end)
    reference = known_answers(settings.repository)
    command = Command(
        module="serving",
        arguments=["--repository", str(settings.repository), "--metrics-port", "0", *front_end_flags(front_end)],
    )
    ends = [(restart, settings.restarts), (kill, settings.kills)]
    cycles = [end(command, reference, number=number, rate=settings.rate) for end, number in ends if number]
    changes = [(swap, settings.swaps), (refuse, settings.bad_versions)]
    flags, source = front_end_flags(front_end), settings.repository
    cycles += [to(flags, source, reference, number=number, rate=settings.rate) for to, number in changes if number]
    done = [(each, each.faults(ENDS[front_end].get(each.name, End()))) for each in cycles]
    print(aligned([HEADER, *(_row(cycles, faults) for cycles, faults in done)]))
    for each in cycles:
        if each.spans:
            inside, outside = each.p99_ms(inside=True), each.p99_ms(inside=False)
            print(f"{each.name}: p99 {inside:.1f} ms while it was loaded, {outside:.1f} ms in between")
    if settings.report:
        rows = [_document(cycles, faults) for cycles, faults in done]
        document = {"machine": machine_facts(PACKAGES), "front_end": front_end, "rate": settings.rate, "ends": rows}
        settings.report.write_text(json.dumps(document, indent=1) + "\n")
    if settings.journal_dir:
        settings.journal_dir.mkdir(parents=True, exist_ok=True)
        for each in cycles:
            write_journal(settings.journal_dir / f"{each.name.replace(' ', '')}.jsonl", each.journal)
    return int(any(faults for _, faults in done))


def _document(cycles: Cycles, faults: list[str]) -> dict[str, object]:
    figures: dict[str, object] = {
        "name": cycles.name,
        "took_s": cycles.took_s,
        "exit_codes": cycles.exit_codes,
        "faults": faults,
    }
    if cycles.spans:
        figures |= {"p99_ms": cycles.p99_ms(inside=True), "p99_in_between_ms": cycles.p99_ms(inside=False)}
    return figures | asdict(cycles.account) | {"answered_by_the_servers": cycles.answered}


def _row(cycles: Cycles, faults: list[str]) -> tuple[str, ...]:
    found = cycles.account
    failed = ", ".join(f"{count} {status}" for status, count in found.failed.items()) or "0"
    return (
        cycles.name,
        str(len(cycles.took_s)),
        f"{found.sent:,}",
        f"{found.right:,}",
        str(found.wrong),
        str(found.lost),
        failed,
        f"{found.retried:,}",
        f"{statistics.median(cycles.took_s):.2f} and {max(cycles.took_s):.2f} s" if cycles.took_s else "",
        f"FAILED: {'; '.join(faults)}" if faults else "as promised",
    )
