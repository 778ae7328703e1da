"""Restarts and kills a server under load, and accounts for every request.

SIGTERM and a new start on the same port, under an open loop of requests whose client repeats only what is UNAVAILABLE:
none may be lost, wrong or CANCELLED. Then kill -9 to the process that serves, under the client that comes with the
server: no call may fail, and service is back within half a second. Then newer versions of the model, good and bad,
under load: no call may fail or be repeated, and no answer may be of another version than it says. Each
answer is held against the raw model's.
"""

import statistics
from dataclasses import asdict, dataclass
from functools import partial

from atelier.settings import names_in, parse_settings
from atelier.tables import aligned
from loadtest.front_ends import ENDS, End, TrialSettings
from loadtest.reference import known_answers
from loadtest.restarts.cycles import Cycles, kill, restart
from loadtest.restarts.steady_load import write_journal
from loadtest.restarts.swaps import refuse, swap
from loadtest.server_process import server_process
from serving.server import choose_front_end

RATE = 500.0  # requests a second
HEADER = ("end", "times", "requests", "right", "wrong", "lost", "failed", "repeated", "back after, median and most", "")


# What is done to a server, and how often.
ENDED = {"sigterm": (restart, 200), "kill": (kill, 200)}
CHANGED = {"swap": (swap, 300), "bad-version": (refuse, 100)}


@dataclass(frozen=True, kw_only=True)
class RestartSettings(TrialSettings):
    """The command line."""

    only: str = ""
    """Some of sigterm (ended and started anew, 200 times), kill (kill -9 of the process that serves, 200), swap (a
    newer version is served, 300) and bad-version (a newer version must be refused, 100), separated by commas; none does
    all."""


def main(arguments: list[str]) -> int:
    """Returns 1 if anything was lost, wrong or late."""
    settings = parse_settings(RestartSettings, arguments, prog="python -m loadtest.restarts", description=__doc__ or "")
    names = names_in(settings.only, [*ENDED, *CHANGED], "--only")
    (front_end, _), source = choose_front_end(settings.front_end), settings.repository
    flags, reference = ["--front-end", front_end], known_answers(source)
    start = partial(server_process, "serving", "--repository", str(source), "--metrics-port", "0", *flags)
    ends = [ENDED[name] for name in ENDED if name in names]
    cycles = [end(start, reference, number=settings.number(whole), rate=RATE) for end, whole in ends]
    changes = [CHANGED[name] for name in CHANGED if name in names]
    cycles += [change(flags, source, reference, number=settings.number(whole), rate=RATE) for change, whole in changes]
    done = [(each, each.faults(ENDS[front_end].get(each.name, End()))) for each in cycles]
    print(aligned([HEADER, *(_row(cycles, faults) for cycles, faults in done)]))
    for each in cycles:
        if each.spans:
            inside, outside = each.p99_ms(inside=True), each.p99_ms(inside=False)
            print(f"{each.name}: p99 {inside:.1f} ms while it was loaded, {outside:.1f} ms in between")
    rows = [_document(cycles, faults) for cycles, faults in done]
    settings.save("restarts.json", front_end=front_end, rate=RATE, ends=rows)
    if settings.report_dir:
        for each in cycles:
            write_journal(settings.report_dir / f"{each.name.replace(' ', '')}.jsonl", each.journal)
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
