"""A server under load goes through one fault after the other; and a soak finds out a server that does not."""

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from loadtest.front_ends import FRONT_ENDS, GRPCIO, NATIVE, NOT_SOAKED
from loadtest.load.protocols import Classify
from loadtest.reference import known_answers
from loadtest.restarts.shelf import Shelf
from loadtest.restarts.steady_load import OURS, Entry, SteadyLoad, account
from loadtest.server_process import free_port, server_process
from loadtest.soak.faults import FAULTS
from loadtest.soak.outcome import Counts, Done, Held, SoakOutcome, SoakPlan
from loadtest.soak.run import soak, summary
from loadtest.soak.site import Site
from tests.loadtest.null_server import reference
from tests.reliability.goals import is_release
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from training.dataset import FashionMNIST

SIZES: Any = {"ci": 20, "release": 28_800}
HELD = Held(rss_bytes=60 << 20, num_files=12, num_threads=1)


@pytest.fixture
def plan(data: FashionMNIST, small_repository: Path) -> SoakPlan:
    reference = known_answers(small_repository)
    flags = ["--front-end", NATIVE]
    return SoakPlan(front_end_flags=flags, source=small_repository, reference=reference, seed=1, num_faults=len(FAULTS))


@pytest.mark.timing
@needs_native
@pytest.mark.goal("G16", of="faults of 17 kinds, one a second", **SIZES)
@pytest.mark.goal("G24", of="faults of 17 kinds, one a second", **SIZES)
def test_server_goes_through_a_fault_every_second(plan: SoakPlan, size: int, figure: Figure, tmp_path: Path) -> None:
    seed = secrets.randbelow(1 << 31) if is_release() else plan.seed
    outcome = soak(dataclasses.replace(plan, seed=seed, num_faults=size), tmp_path)
    figure(f"seed {seed}: {summary(outcome)}")
    assert outcome.total("wrong") == outcome.total("lost") == 0
    assert outcome.faults == []
    assert outcome.total("right") >= 0.9 * size * plan.rate
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) == size
    assert set(Counter(fault.kind for fault in outcome.done)) == set(FAULTS)


def test_native_front_end_promises_it() -> None:
    assert NOT_SOAKED.keys() == set(FRONT_ENDS) - {NATIVE} == {GRPCIO}


# --- The harness can fail --------------------------------------------------------------------------------------------


def test_seed_is_the_same_soak_and_another_is_another(plan: SoakPlan) -> None:
    def drawn(seed: int) -> list[tuple[str, float]]:
        faults = dataclasses.replace(plan, seed=seed).faults()
        return [(kind, random.random()) for kind, random in (next(faults) for _ in range(2 * len(FAULTS)))]

    assert drawn(1) == drawn(1) != drawn(2)
    assert Counter(kind for kind, _ in drawn(3)) == dict.fromkeys(FAULTS, 2)


def entry(number: int = 0, outcome: str = "right", took_s: float | None = 0.1, **fields: Any) -> Entry:
    ended_s = None if took_s is None else 10.0 + took_s
    return Entry(number=number, image=0, due_s=10.0, ended_s=ended_s, outcome=outcome, **fields)


def outcome_of(*journal: Entry, **fields: Any) -> SoakOutcome:
    done = [Done(number=6, kind="churn", began_s=8.0), Done(number=7, kind="kill -9", began_s=9.5)]
    done += [Done(number=8, kind="garbage", began_s=10.5)]
    sound: dict[str, Any] = {"seed": 5, "done": done, "held": [HELD, HELD], "exit_code": 0}
    outcome = SoakOutcome(**(sound | fields))
    outcome.note_requests(journal)
    outcome.accounts.append(account(journal))
    return outcome


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (entry(outcome="", took_s=None), "lost"),
        (entry(outcome="WRONG: 3 at 0.7"), "WRONG: 3 at 0.7 after 0.10 s, attempts 1"),
        (entry(outcome="INTERNAL: x"), "INTERNAL: x after 0.10 s, attempts 1"),
        (entry(took_s=5.1), "right after 5.10 s, attempts 1"),
        (entry(retried=3), "right after 0.10 s, attempts 4"),
    ],
)
def test_request_that_is_not_as_promised_is_named_with_the_fault_before_it_and_the_seed(bad: Entry, fault: str) -> None:
    others = [entry(number) for number in range(1, 100)]
    assert outcome_of(bad, *others).faults == [f"seed 5: request 0, due 0.50 s after fault 7, kill -9: {fault}"]


def test_what_is_as_promised_is_no_fault() -> None:
    assert outcome_of(entry(retried=2), *(entry(number) for number in range(1, 30))).faults == []


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"exit_code": 70}, "the server ended with exit code 70"),
        ({"held": [HELD, dataclasses.replace(HELD, rss_bytes=77 << 20)]}, "the supervisor grew by 17.0 MiB"),
        (
            {"held": [HELD, dataclasses.replace(HELD, num_files=13)]},
            "the supervisor has 13 files and 1 threads instead of 12 and 1",
        ),
        ({"done": [Done(number=3, kind="churn", began_s=1.0, failure="NO")]}, "fault 3, churn: NO"),
    ],
)
def test_server_that_is_not_as_promised_is_found_out(fields: dict[str, Any], fault: str) -> None:
    assert outcome_of(entry(), **fields).faults == [f"seed 5: {fault}"]


def test_attempts_over_a_tenth_more_than_requests_are_found_out() -> None:
    assert outcome_of(*(entry(number, retried=int(number < 2)) for number in range(10))).faults == [
        "seed 5: 1.20 attempts a request"
    ]


@pytest.mark.slow
def test_attempts_of_our_client_are_counted() -> None:
    cancelling = partial(server_process, "tests.loadtest.null_server", "--fault", "cancel", "--fault-at", "20")
    port = free_port()
    protocol = Classify(target=f"127.0.0.1:{port}", reference=reference())
    with cancelling("--port", str(port)), SteadyLoad(protocol, client=OURS, rate=200.0) as load:
        time.sleep(0.5)
        journal = load.ended()
    assert {each.number: each.retried for each in journal if each.retried} == {19: 1}
    assert {each.outcome for each in journal} == {"right"}


class CountedServer:
    """A server that has answered so many Classify calls, and ended so."""

    def __init__(self, answered: int, output: str = "") -> None:
        self.num_answered, self.output = answered, output

    def metric(self, _name: str, **labels: str) -> float:
        return self.num_answered if labels == {"method": "Classify", "code": "OK"} else 0


def counts_of(answered: int, *kills: tuple[float, float], output: str = "") -> Counts:
    server: Any = CountedServer(answered, output)
    nothing: Any = None
    return Counts(Site(server=server, shelf=nothing, credentials=nothing, kills=list(kills)))


def test_counts_of_the_server_are_held_against_the_journal_to_the_unit() -> None:
    journal = [entry(number) for number in range(10)]
    assert counts_of(10).faults(journal) == []
    for answered in (9, 11):
        words = f"the last process has answered {answered} by its count, by the journal 10 to 10"
        assert counts_of(answered).faults(journal) == [words]


def test_counts_begin_anew_with_a_kill_and_those_under_way_then_may_be_of_either() -> None:
    before, under_way = entry(0, took_s=-1.0), entry(1, took_s=2.0)
    after = dataclasses.replace(entry(2), due_s=12.0, ended_s=12.1)
    for answered, is_fine in ((0, False), (1, True), (2, True), (3, False)):
        found = counts_of(answered, (9.5, 10.5)).faults([before, under_way, after])
        assert (found == []) == is_fine


def test_process_that_ended_by_itself_is_found_out() -> None:
    output = "the serving process ended with exit code 137: starting another\n"
    counts = counts_of(0, (9.0, 9.1), output=output)
    assert counts.faults([]) + counts.faults_at_the_end() == []
    counts = counts_of(0, output=output.replace("137", "139"))
    assert counts.faults([]) + counts.faults_at_the_end() == ["processes ended with exit codes 139"]


@pytest.mark.slow
@needs_native
def test_fault_that_shows_no_effect_is_found_out(plan: SoakPlan) -> None:
    class ForgetfulShelf(Shelf):
        def publish_bad(self, number: int, kind: str, random: Random) -> str:
            self.publish(number)
            return "LOST"

    def forget(site: Site, random: Random) -> str:
        shelf = ForgetfulShelf(repository=site.shelf.repository, source=site.shelf.source)
        return bad_version(dataclasses.replace(site, shelf=shelf), random)

    bad_version: Callable[[Site, Random], str] = FAULTS["bad version"]
    with patch.dict(FAULTS, {"bad version": forget}, clear=True):
        outcome = soak(dataclasses.replace(plan, num_faults=1, every_s=0.2))
    (fault,) = outcome.faults
    assert "fault 0, bad version: NO_EFFECT: the server says 'atelier: serving lenet5 version 2" in fault
