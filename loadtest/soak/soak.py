"""Runs a soak: a server under a steady load of our client, a fault every so often, and then the account."""

import contextlib
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import psutil

from atelier.client import ClassifyError
from atelier.errors import ProgramError
from loadtest.restarts.cycles import STOP_S
from loadtest.restarts.shelf import NamedVersion, shifted
from loadtest.restarts.steady_load import OURS, RIGHT, Entry, Login, SteadyLoad, account, write_journal
from loadtest.restarts.swaps import served_shelf
from loadtest.soak.faults import FAULTS
from loadtest.soak.outcome import DEADLINE_S, Done, Held, Outcome, Plan
from loadtest.soak.site import Credentials, Site, wait_until

ROUND = 300  # faults; between rounds the load pauses, and the server's counts are held against the journal
MOST_AT_ONCE = 32  # faults
KILLED = str(128 + signal.SIGKILL)
MOST_TRIES, PAUSE_S = 20, 0.5  # of a fault that another one cuts off


def soak(plan: Plan, journal_dir: Path | None = None) -> Outcome:
    """Returns what came of it; writes requests-<round>.jsonl and faults.jsonl, a line each."""
    outcome, drawn = Outcome(seed=plan.seed), plan.faults()
    with _served(plan) as site, ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        counts = Counts(site)
        for first in range(0, plan.num_faults, ROUND):
            chosen = [next(drawn) for _ in range(first, min(first + ROUND, plan.num_faults))]
            journal = _round(plan, site, outcome, pool, chosen)
            outcome.held.append(Held.by(site.server.process.pid))
            outcome.accounts.append(account(journal))
            outcome.note_requests(journal)
            outcome.failures += counts.faults(journal)
            if journal_dir:
                write_journal(journal_dir / f"requests-{first // ROUND}.jsonl", journal)
                outcome.write_faults(journal_dir / "faults.jsonl")
        outcome.exit_code = site.server.stop(timeout_s=STOP_S)
        outcome.failures += counts.faults_at_the_end()
    return outcome


@contextlib.contextmanager
def _served(plan: Plan) -> Iterator[Site]:
    """Runs a server with TLS and tokens, of a repository of its own that has version 1."""
    with tempfile.TemporaryDirectory(prefix="atelier-soak-") as directory:
        credentials = Credentials(Path(directory))
        flags = ["--playground-port", "0", *plan.front_end_flags, *credentials.server_flags]
        with served_shelf(flags, plan.source) as (server, shelf):
            yield Site(server=server, shelf=shelf, credentials=credentials)


def _round(
    plan: Plan, site: Site, outcome: Outcome, pool: ThreadPoolExecutor, chosen: Sequence[tuple[str, Random]]
) -> list[Entry]:
    """Does these faults under load; returns the journal."""
    plain = plan.reference
    protocol = NamedVersion(target=site.server.target, reference=plain, shifted=shifted(plain))
    login = Login(tls=site.credentials.authority, token=site.credentials.token)
    with SteadyLoad(protocol, client=OURS, rate=plan.rate, deadline_s=DEADLINE_S, login=login) as load:
        time.sleep(plan.every_s)
        if not outcome.held:
            outcome.held.append(Held.by(site.server.process.pid))
        due_s, doing = time.monotonic(), []
        for kind, random in chosen:
            time.sleep(max(0.0, due_s - time.monotonic()))
            fault = Done(number=len(outcome.done), kind=kind, began_s=time.monotonic())
            outcome.done.append(fault)
            doing.append(pool.submit(_do, site, fault, random))
            due_s += plan.every_s
        for each in doing:
            each.result()
        time.sleep(plan.every_s)
        return load.ended()


def _do(site: Site, fault: Done, random: Random) -> None:
    """Does a fault; once more if another one, such as kill -9, has cut it off."""
    for fault.tries in range(1, MOST_TRIES + 1):
        try:
            fault.said, fault.failure = FAULTS[fault.kind](site, random), ""
            break
        except (OSError, psutil.Error) as error:
            fault.failure = f"{type(error).__name__}: {error}"
            time.sleep(PAUSE_S)
        except (ProgramError, ClassifyError) as error:
            fault.failure = str(error)
            break
    fault.ended_s = time.monotonic()


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
