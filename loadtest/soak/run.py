"""Puts a server under a steady load and a fault every second, and accounts for every request and every fault.

The server has TLS and tokens; its client is the one that comes with it. Faults are drawn from a seed: kill -9 and
SIGSTOP of the process that serves, new versions and bad ones, new certificates and tokens and broken ones, cancelled
calls, malformed messages, bombs, clients that never read or never go on, connection churn, noise, stalled scrapers.
Nothing is excused: every request is answered rightly within 5 s and three attempts.

make soak                                             ten minutes
python -m loadtest.soak --scale 48 --seed 7           eight hours
"""

import contextlib
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

import psutil

from atelier.client import ClassifyError
from atelier.errors import ProgramError
from atelier.settings import parse_settings
from atelier.tables import aligned
from loadtest.front_ends import NOT_SOAKED, TrialSettings
from loadtest.reference import known_answers
from loadtest.restarts.cycles import STOP_S
from loadtest.restarts.shelf import NamedVersion, shifted
from loadtest.restarts.steady_load import Entry, SteadyLoad, account, our_client, write_journal
from loadtest.restarts.swaps import served_shelf
from loadtest.soak.faults import FAULTS
from loadtest.soak.outcome import DEADLINE_S, Counts, Done, Held, SoakOutcome, SoakPlan
from loadtest.soak.site import Credentials, Site
from serving.server import choose_front_end

FAULTS_AT_ALL = 600  # one a second
ROUND = 300  # faults; between rounds the load pauses, and the server's counts are held against the journal
MOST_AT_ONCE = 32  # faults
MOST_TRIES, PAUSE_S = 20, 0.5  # of a fault that another one cuts off


@dataclass(frozen=True, kw_only=True)
class SoakSettings(TrialSettings):
    """The command line; the full size are 600 faults, one a second."""

    seed: int | None = None
    """Which faults, and what they draw; none draws a seed, and prints it."""


def main(arguments: list[str]) -> int:
    """Returns 1 if anything was not as the front end promises."""
    settings = parse_settings(SoakSettings, arguments, prog="python -m loadtest.soak", description=__doc__ or "")
    front_end, _ = choose_front_end(settings.front_end)
    plan = SoakPlan(
        front_end_flags=["--front-end", front_end],
        source=settings.repository,
        reference=known_answers(settings.repository),
        seed=secrets.randbelow(1 << 31) if settings.seed is None else settings.seed,
        num_faults=settings.number(FAULTS_AT_ALL),
    )
    print(f"seed {plan.seed}: {plan.num_faults} faults, one a second", flush=True)
    if settings.report_dir:
        settings.report_dir.mkdir(parents=True, exist_ok=True)
    outcome = soak(plan, settings.report_dir)
    print(aligned([("fault", "times", "again", "longest"), *_rows(outcome)]))
    print(summary(outcome))
    reason = NOT_SOAKED.get(front_end, "")
    word = f"not promised ({reason})" if reason else "FAILED"
    print("\n".join(f"{word}: {fault}" for fault in outcome.faults) or "as promised")
    settings.save(
        "soak.json",
        front_end=front_end,
        seed=plan.seed,
        rate=plan.rate,
        rounds=[asdict(each) for each in outcome.accounts],
        held=[asdict(each) for each in outcome.held],
        faults=outcome.faults,
    )
    return int(bool(outcome.faults) and not reason)


def soak(plan: SoakPlan, journal_dir: Path | None = None) -> SoakOutcome:
    """Returns what came of it; writes requests-<round>.jsonl and faults.jsonl, a line each."""
    outcome, drawn = SoakOutcome(seed=plan.seed), plan.faults()
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
                write_journal(journal_dir / "faults.jsonl", outcome.done)
        outcome.exit_code = site.server.stop(timeout_s=STOP_S)
        outcome.failures += counts.faults_at_the_end()
    return outcome


@contextlib.contextmanager
def _served(plan: SoakPlan) -> Iterator[Site]:
    """Runs a server with TLS and tokens, of a repository of its own that has version 1."""
    with tempfile.TemporaryDirectory(prefix="atelier-soak-") as directory:
        credentials = Credentials(Path(directory))
        flags = ["--playground-port", "0", *plan.front_end_flags, *credentials.server_flags]
        with served_shelf(flags, plan.source) as (server, shelf):
            yield Site(server=server, shelf=shelf, credentials=credentials)


def _round(
    plan: SoakPlan, site: Site, outcome: SoakOutcome, pool: ThreadPoolExecutor, chosen: Sequence[tuple[str, Random]]
) -> list[Entry]:
    """Does these faults under load; returns the journal."""
    plain = plan.reference
    protocol = NamedVersion(target=site.server.target, reference=plain, shifted=shifted(plain))
    credentials = site.credentials
    client = partial(our_client, deadline_s=DEADLINE_S, tls=credentials.authority, token=credentials.token)
    with SteadyLoad(protocol, client=client, rate=plan.rate) as load:
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


def summary(outcome: SoakOutcome) -> str:
    """Returns the account in one line."""
    failed: Counter[str] = Counter()
    for each in outcome.accounts:
        failed.update(each.failed)
    words = ", ".join(f"{count} {status}" for status, count in failed.items()) or "0"
    requests = f"{outcome.total('sent'):,} requests: {outcome.total('right'):,} right, {outcome.total('wrong')} wrong"
    return (
        f"{requests}, {outcome.total('lost')} lost, {words} failed; {outcome.attempts_a_request:.4f} attempts a "
        f"request, the longest took {outcome.longest_s:.2f} s; the supervisor grew by {outcome.growth_mib:.1f} MiB"
    )


def _rows(outcome: SoakOutcome) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind in FAULTS:
        done = [fault for fault in outcome.done if fault.kind == kind]
        took_s = [fault.ended_s - fault.began_s for fault in done if fault.ended_s is not None]
        again = sum(fault.tries - 1 for fault in done)
        rows.append((kind, str(len(done)), str(again), f"{max(took_s):.2f} s" if took_s else ""))
    return rows
