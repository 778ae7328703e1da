"""Every request is accounted for while servers are stopped and killed; and a server that loses one is found out."""

import dataclasses
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import ProgramError, UsageError
from atelier.wire import classifier_pb2 as pb
from loadtest.front_ends import ENDS, FRONT_ENDS, KILL, NATIVE, SIGTERM, End
from loadtest.load.protocols import Classify, Reference
from loadtest.reference import known_answers
from loadtest.restarts.bad_versions import BAD_KINDS
from loadtest.restarts.cycles import Cycles, Starter, kill, restart, seconds_until_answered
from loadtest.restarts.run import main
from loadtest.restarts.shelf import NamedVersion, shifted
from loadtest.restarts.steady_load import OURS, PLAIN, Connect, Entry, account, write_journal
from loadtest.restarts.swaps import refuse, swap
from loadtest.server_process import free_port, server_process
from tests.conftest import import_s
from tests.loadtest.null_server import reference
from tests.reliability.goals import is_release
from tests.reliability.plugin import Figure
from training.dataset import FashionMNIST

RATE = 200.0
LONGEST_END_S = 1.5  # what waits is answered, then clients have a second to go elsewhere

# --- What a front end promises ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(data: FashionMNIST, small_repository: Path) -> Reference:
    return known_answers(small_repository)


@pytest.fixture
def serving(front_end: str, small_repository: Path) -> Starter:
    options = ["--repository", str(small_repository), "--metrics-port", "0", "--front-end", front_end]
    return partial(server_process, "serving", *options)


@pytest.mark.fault("S36")
@pytest.mark.slow
@pytest.mark.goal("G1", of="SIGTERM restarts", ci=3, release=50)
@pytest.mark.goal("G2", of="SIGTERM restarts", ci=3, release=50)
@pytest.mark.goal("G3", of="SIGTERM restarts", ci=3, release=50)
@pytest.mark.goal("G4", of="SIGTERM restarts", ci=3, release=50)
# Where a start takes 6 s, as on busy machines, our client's calls fail too often for it to go on: see atelier/calls.py.
@pytest.mark.parametrize(
    "client", [pytest.param(PLAIN, id="plain"), pytest.param(OURS, marks=pytest.mark.timing, id="ours")]
)
def test_restarts_under_load_lose_nothing(
    front_end: str, client: Connect, serving: Starter, known: Reference, size: int, figure: Figure
) -> None:
    load: Any = {"rate": RATE}
    if is_release():  # our client gives up where 2,000 more calls failed than succeeded: see atelier/calls.py
        slow, fast = {"rate": 500.0, "between_s": (8.9, 9.1)}, {"rate": 1000.0, "between_s": (4.9, 5.1)}
        load = slow if client == OURS else fast
    cycles = restart(serving, known, number=size, client=client, **load)
    found, slack = cycles.account, 2 * import_s()  # on a machine that is not busy, nothing
    starts_s = [took_s - ended_s for took_s, ended_s in zip(cycles.took_s, cycles.ended_s, strict=True)]
    figure(f"of {found.sent:,} requests {found.lost} lost, {found.wrong} wrong, {found.failed or 0} failed", "G1")
    figure(f"{cycles.answered:,} executed and answered, {found.right:,} answers came", "G2")
    figure(f"ended after {statistics.median(cycles.ended_s):.2f} s, at most {max(cycles.ended_s):.2f}", "G3")
    figure(f"ready after {statistics.median(starts_s):.2f} s, at most {max(starts_s):.2f}", "G4")
    assert cycles.faults(ENDS[front_end][SIGTERM]) == []
    assert found.right >= (200_000 if is_release() else RATE)
    assert cycles.answered == found.right
    assert max(cycles.ended_s) <= LONGEST_END_S + slack
    assert sorted(starts_s)[int(0.99 * len(starts_s))] <= max(2.0, 3 * slack)


@pytest.mark.fault("S29", "S39")
@pytest.mark.timing
@pytest.mark.goal("G4", of="kill -9 of the process that serves", ci=3, release=200)
@pytest.mark.goal("G2", of="kill -9 of the process that serves", ci=3, release=200)
def test_kills_under_load_fail_no_call_of_our_client(
    front_end: str, serving: Starter, known: Reference, size: int, figure: Figure
) -> None:
    cycles, promise = kill(serving, known, number=size, rate=RATE), ENDS[front_end][KILL]
    found = cycles.account
    figure(f"service back after {statistics.median(cycles.took_s):.2f} s, at most {max(cycles.took_s):.2f}", "G4")
    figure(f"of {found.sent:,} requests {found.right:,} were answered, each once; {found.failed or 0} failed", "G2")
    if promise.longest_s is not None:  # on a machine that is not busy
        promise = dataclasses.replace(promise, longest_s=max(promise.longest_s, 2 * import_s()))
    assert cycles.faults(promise) == []
    assert cycles.account.right > RATE


def test_native_front_end_promises_everything() -> None:
    assert ENDS[NATIVE] == {SIGTERM: End(), KILL: End(longest_s=0.5)}
    assert ENDS.keys() == set(FRONT_ENDS)


# --- The harness can fail --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_answer_is_found_out() -> None:
    wrong = partial(server_process, "tests.loadtest.null_server", "--fault", "swap", "--fault-at", "20")
    cycles = restart(wrong, reference(), number=1, rate=RATE)
    assert "2 wrong answers" in cycles.faults(End())  # of each of the two servers, its 20th
    assert next(entry for entry in cycles.journal if entry.outcome.startswith("WRONG")).number == 19


@pytest.mark.slow
def test_call_that_fails_is_found_out() -> None:
    refusing = partial(server_process, "tests.loadtest.null_server", "--fault", "refuse", "--fault-at", "20")
    cycles = restart(refusing, reference(), number=0, rate=RATE)
    assert cycles.faults(End()) == ["1 calls ended as RESOURCE_EXHAUSTED"]
    assert cycles.account.sent == cycles.account.right + 1


def entry(number: int, outcome: str = "right") -> Entry:
    return Entry(number=number, image=0, due_s=10.0, ended_s=11.5 if outcome else None, outcome=outcome)


def test_account_counts_every_request_once() -> None:
    outcomes = ["right", "WRONG: label 3", "CANCELLED", "", "right", "CANCELLED"]
    found = account([entry(number, outcome) for number, outcome in enumerate(outcomes)])
    assert (found.sent, found.right, found.wrong, found.lost, found.answered) == (6, 2, 1, 1, 3)
    assert found.failed == {"CANCELLED": 2}
    assert found.longest_s == 1.5


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 2], [1, 0]])
def test_journal_with_a_gap_or_a_copy_is_no_journal(numbers: list[int]) -> None:
    with pytest.raises(ProgramError, match="BAD_JOURNAL"):
        account([entry(number) for number in numbers])


def cycles(**fields: object) -> Cycles:
    sound = {"name": "SIGTERM", "journal": [entry(0)], "took_s": [0.2], "exit_codes": [0, 0], "answered": 1}
    return Cycles(**(sound | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_share_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="BAD_OPTIONS: --scale is"):
        main([f"--scale={scale}"])


def test_kind_of_end_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"BAD_OPTIONS: --only has siege \(of sigterm, kill, swap, bad-version\)"):
        main(["--only", "siege"])


def test_faults_of_an_end_are_named() -> None:
    assert cycles().faults(End(longest_s=0.5)) == []
    assert cycles(journal=[entry(0, "")], answered=0).faults(End()) == ["1 requests lost"]
    assert cycles(exit_codes=[0, 70]).faults(End()) == ["1 servers ended with exit codes [70]"]
    assert cycles(took_s=[0.2, 0.61]).faults(End(longest_s=0.5)) == ["1 of 2 took more than 0.5 s, up to 0.61"]
    assert cycles(answered=2).faults(End()) == ["the servers answered 2 requests, and 1 answers came"]
    cancelled = cycles(journal=[entry(0), entry(1, "CANCELLED")])
    assert cancelled.faults(End()) == ["1 calls ended as CANCELLED"]
    assert cancelled.faults(End(excused=("CANCELLED",))) == []


def test_probe_tells_when_service_is_back() -> None:
    port = free_port()
    protocol = Classify(target=f"127.0.0.1:{port}", reference=reference())
    assert seconds_until_answered(("127.0.0.1", port), protocol, 0.2) >= 0.2
    with server_process("tests.loadtest.null_server", "--port", str(port), "--pause-at", "1", "--pause-ms", "300"):
        began_s = time.monotonic()
        assert 0.3 <= seconds_until_answered(("127.0.0.1", port), protocol, 10.0) <= time.monotonic() - began_s


def test_journal_is_written_a_line_for_every_request(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal.jsonl", [entry(0), entry(1)])
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]


# --- New versions ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("S33")
@pytest.mark.slow
@pytest.mark.goal("G5", of="new versions under load", ci=5, release=1000)
def test_swaps_under_load_fail_no_call_and_mix_no_versions(
    front_end: str, small_repository: Path, known: Reference, size: int, figure: Figure
) -> None:
    cycles = swap(["--front-end", front_end], small_repository, known, number=size, rate=RATE)
    found, inside_ms, outside_ms = cycles.account, cycles.p99_ms(inside=True), cycles.p99_ms(inside=False)
    figure(f"of {found.sent:,} requests {found.wrong} wrong, {found.failed or 0} failed, {found.retried} repeated")
    figure(f"p99 {inside_ms:.1f} ms while a version was loaded, {outside_ms:.1f} ms in between")
    assert cycles.faults(End()) == []
    assert len(cycles.took_s) == size
    assert found.right > RATE
    floor_ms = 10.0 if is_release() else 100.0 + 1e3 * import_s()  # of few requests, on a busy machine
    assert inside_ms <= max(floor_ms, 2 * outside_ms)


@pytest.mark.fault("S34")
@pytest.mark.slow
@pytest.mark.goal("G5", of="bad versions under load", ci=len(BAD_KINDS), release=100)
def test_bad_versions_under_load_are_all_refused(
    front_end: str, small_repository: Path, known: Reference, size: int, figure: Figure
) -> None:
    cycles = refuse(["--front-end", front_end], small_repository, known, number=size, rate=RATE)
    found = cycles.account
    figure(f"{len(cycles.took_s)} refused; of {found.sent:,} requests {found.wrong} wrong, {found.failed or 0} failed")
    assert cycles.faults(End()) == []
    assert len(cycles.took_s) == size
    assert found.right > RATE


def test_answer_of_another_version_than_it_names_is_wrong() -> None:
    plain = reference()
    protocol = NamedVersion(target="", reference=plain, shifted=shifted(plain))
    best = int(plain.logits[0].argmax())
    probability = plain.rows[0][best]

    def fault(version: str, label: int) -> str:
        prediction = pb.Prediction(label=label, probability=probability)
        classification = pb.Classification(predictions=[prediction])
        reply = pb.ClassifyResponse(classifications=[classification], model_version=version)
        return protocol.check(reply.SerializeToString(), [0]).fault

    assert fault("1", best) == fault("3", best) == fault("2", (best + 1) % 10) == ""
    assert fault("1", (best + 1) % 10).startswith("version 1: image 0: label")
    assert fault("2", best).startswith("version 2: image 0: label")


@pytest.mark.slow
def test_swap_that_never_comes_is_found_out(small_repository: Path, known: Reference) -> None:
    cycles = swap(["--model-version", "1"], small_repository, known, number=1, rate=RATE, longest_s=2.0)
    assert cycles.faults(End()) == ["version 2 was not served"]
