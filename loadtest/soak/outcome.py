"""The plan of a soak, a fault every so often, and its outcome: the account of every request and every fault."""

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from loadtest.load.protocols import Reference
from loadtest.restarts.steady_load import RIGHT, Account, Entry
from loadtest.soak.faults import FAULTS
from loadtest.soak.site import Site, wait_until

DEADLINE_S = 5.0
MOST_ATTEMPTS, MOST_ATTEMPTS_A_REQUEST = 3, 1.10  # of one request; of all, on average
MOST_GROWTH_MIB = 16
NUM_NAMED = 5  # requests, of those that failed
KILLED = str(128 + signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class SoakPlan:
    """Says what is done to which server."""

    front_end_flags: list[str]
    source: Path  # repository of the model
    reference: Reference
    seed: int
    num_faults: int
    every_s: float = 1.0
    rate: float = 100.0  # requests a second

    def faults(self) -> Iterator[tuple[str, Random]]:
        """Draws the faults: all kinds in some order, over and over; each with random numbers of its own."""
        random = Random(self.seed)  # noqa: S311 - each seed is one soak
        while True:
            kinds = list(FAULTS)
            random.shuffle(kinds)
            for kind in kinds:
                yield kind, Random(random.random())  # noqa: S311


@dataclass(kw_only=True)
class Done:
    """One fault that was done; times are on the monotonic clock, as the journal's."""

    number: int
    kind: str
    began_s: float
    ended_s: float | None = None
    said: str = ""
    tries: int = 0  # more than one if another fault cut it off
    failure: str = ""  # why it had not the effect that it must have


@dataclass(frozen=True, kw_only=True)
class Held:
    """Memory, files and threads of the supervisor."""

    rss_bytes: int
    num_files: int
    num_threads: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        """Looks at a process."""
        process = psutil.Process(pid)
        rss_bytes = process.memory_info().rss
        return cls(rss_bytes=rss_bytes, num_files=process.num_fds(), num_threads=process.num_threads())


@dataclass(kw_only=True)
class SoakOutcome:
    """Outcome of a soak, so far."""

    seed: int
    accounts: list[Account] = field(default_factory=list)  # of the rounds
    done: list[Done] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)  # before the first fault, and after each round
    failures: list[str] = field(default_factory=list)  # of requests, and of the server's counts
    exit_code: int | None = None

    def total(self, name: str) -> int:
        """Sums up a number of the rounds' accounts."""
        return sum(getattr(each, name) for each in self.accounts)

    @property
    def attempts_a_request(self) -> float:
        """On average."""
        return 1 + self.total("retried") / max(1, self.total("sent"))

    @property
    def longest_s(self) -> float:
        """Longest time that a request took, from when it was due."""
        return max((each.longest_s for each in self.accounts), default=0.0)

    @property
    def growth_mib(self) -> float:
        """What the supervisor's memory grew by."""
        return (self.held[-1].rss_bytes - self.held[0].rss_bytes) / (1 << 20)

    def note_requests(self, journal: Sequence[Entry]) -> None:
        """Names the requests that were not answered rightly, in time and within the attempts."""
        bad = [entry for entry in journal if _what_is_wrong(entry)]
        self.failures += [self._named(entry) for entry in bad[:NUM_NAMED]]
        self.failures += [f"{len(bad) - NUM_NAMED} requests more"] if len(bad) > NUM_NAMED else []

    def _named(self, entry: Entry) -> str:
        before = [fault for fault in self.done if fault.began_s <= entry.due_s]
        after = f"{entry.due_s - before[-1].began_s:.2f} s after {_name(before[-1])}" if before else "before any fault"
        return f"request {entry.number}, due {after}: {_what_is_wrong(entry)}"

    @property
    def faults(self) -> list[str]:
        """Lists what is not as it was promised; empty if the server went through it."""
        first, last = self.held[0], self.held[-1]
        faults = [*self.failures]
        faults += [f"{_name(fault)}: {fault.failure}" for fault in self.done if fault.failure]
        if self.attempts_a_request > MOST_ATTEMPTS_A_REQUEST:
            faults.append(f"{self.attempts_a_request:.2f} attempts a request")
        if self.growth_mib > MOST_GROWTH_MIB:
            faults.append(f"the supervisor grew by {self.growth_mib:.1f} MiB")
        if (last.num_files, last.num_threads) != (first.num_files, first.num_threads):
            faults.append(
                f"the supervisor has {last.num_files} files and {last.num_threads} threads instead of "
                f"{first.num_files} and {first.num_threads}"
            )
        if self.exit_code != 0:
            faults.append(f"the server ended with exit code {self.exit_code}")
        return [f"seed {self.seed}: {fault}" for fault in faults]


def _what_is_wrong(entry: Entry) -> str:
    """Returns why a request is not as promised; empty if it is."""
    if entry.ended_s is None:
        return "lost"
    took_s, attempts = entry.ended_s - entry.due_s, 1 + entry.retried
    if entry.outcome == RIGHT and took_s <= DEADLINE_S and attempts <= MOST_ATTEMPTS:
        return ""
    return f"{entry.outcome} after {took_s:.2f} s, attempts {attempts}"


def _name(fault: Done) -> str:
    return f"fault {fault.number}, {fault.kind}"


class Counts:
    """Holds the server's counts against the journals, to the unit.

    A process that is killed takes its counts with it; those of the last one are known but for the requests that were
    under way when the one before it was killed, which either may have answered.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._fewest = self._most = 0  # answers of the last process
        self._num_kills = 0
        self._answered = 0  # by its own count, all methods

    def faults(self, journal: Sequence[Entry]) -> list[str]:
        """Adds a round, after which nothing is under way; returns what is not as it must be."""
        right = [(entry.due_s, entry.ended_s or 0.0) for entry in journal if entry.outcome == RIGHT]
        kills = self._site.kills[self._num_kills :]
        if kills:
            killed_s, dead_s = max(kills)
            self._fewest, self._most = 0, 0
            right = [(due_s, ended_s) for due_s, ended_s in right if ended_s > killed_s]
            self._fewest -= sum(due_s <= dead_s for due_s, _ in right)
            self._num_kills += len(kills)
        self._fewest, self._most = self._fewest + len(right), self._most + len(right)
        wait_until(self._is_read, "the metrics page cannot be read")
        faults = []
        if not self._fewest <= self._classified <= self._most:
            expected = f"{self._fewest} to {self._most}"
            faults.append(f"the last process has answered {self._classified} by its count, by the journal {expected}")
        return faults + [f"{number} calls ended as {code}" for code, number in self._bad.items() if number]

    def _is_read(self) -> bool:
        """Reads the page; false if there is none now, or scrapers that stall have all its places."""

        def calls(**labels: str) -> int:
            return int(self._site.server.metric("atelier_requests_total", **labels))

        try:
            self._classified = calls(method="Classify", code="OK")
            self._answered = self._classified + calls(method="ModelInfer", code="OK")
            self._bad = {code: calls(code=code) for code in ("UNKNOWN", "INTERNAL")}
        except OSError:
            return False
        return True

    def faults_at_the_end(self) -> list[str]:
        """Holds the server's last words against them, and how its processes ended against the kills."""
        server, faults = self._site.server, []
        if server.num_answered != self._answered:
            faults.append(f"the server says {server.num_answered} answered requests, its page {self._answered}")
        codes = re.findall(r"the serving process ended with exit code (-?\d+)", server.output)
        if (killed := codes.count(KILLED)) != self._num_kills:
            faults.append(f"{killed} processes were killed, not {self._num_kills}")
        if others := {*codes} - {KILLED}:
            faults.append(f"processes ended with exit codes {', '.join(sorted(others))}")
        return faults
