"""Puts a server under a steady load and a fault every second, and accounts for every request and every fault.

The server has TLS and tokens; its client is the one that comes with it. Faults are drawn from a seed: kill -9 and
SIGSTOP of the process that serves, new versions and bad ones, new certificates and tokens and broken ones, cancelled
calls, malformed messages, bombs, clients that never read or never go on, connection churn, noise, stalled scrapers.
Nothing is excused: every request is answered rightly within 5 s and three attempts.

make soak                                             ten minutes
python -m loadtest.soak --scale 48 --seed 7           eight hours
"""

import secrets
from collections import Counter
from dataclasses import asdict, dataclass

from atelier.settings import parse_settings
from atelier.tables import aligned
from loadtest.front_ends import NOT_SOAKED, TrialSettings
from loadtest.reference import known_answers
from loadtest.soak.faults import FAULTS
from loadtest.soak.outcome import Outcome, Plan
from loadtest.soak.soak import soak
from serving.server import choose_front_end

FAULTS_AT_ALL = 600  # one a second


@dataclass(frozen=True, kw_only=True)
class SoakSettings(TrialSettings):
    """The command line; the full size are 600 faults, one a second."""

    seed: int | None = None
    """Which faults, and what they draw; none draws a seed, and prints it."""


def main(arguments: list[str]) -> int:
    """Returns 1 if anything was not as the front end promises."""
    settings = parse_settings(SoakSettings, arguments, prog="python -m loadtest.soak", description=__doc__ or "")
    front_end, _ = choose_front_end(settings.front_end)
    plan = Plan(
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


def summary(outcome: Outcome) -> str:
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


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind in FAULTS:
        done = [fault for fault in outcome.done if fault.kind == kind]
        took_s = [fault.ended_s - fault.began_s for fault in done if fault.ended_s is not None]
        again = sum(fault.tries - 1 for fault in done)
        rows.append((kind, str(len(done)), str(again), f"{max(took_s):.2f} s" if took_s else ""))
    return rows
