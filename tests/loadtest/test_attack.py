"""An honest client beside an attack notices nothing; and a server on which it would is found out."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from atelier.errors import ResourceUnavailableError, UsageError
from atelier.wire import classifier_pb2 as pb
from loadtest.attack import bombs, run
from loadtest.attack.field import Attack, Counts, Field
from loadtest.attack.http2 import DATA, END_STREAM, Connection, frame, literal, message, opening
from loadtest.attack.run import ATTACKS, CONTROL
from loadtest.attack.trial import Attacked, AttackOutcome, Limits, Memory, Timing, measure
from loadtest.front_ends import FRONT_ENDS, GRPCIO, NATIVE, NOT_PROMISED
from loadtest.processes import EVERY_S, Watch
from loadtest.server_process import server_process
from tests.conftest import command
from tests.loadtest.spoiled_server import TRIGGER
from tests.reliability.goals import is_release
from tests.reliability.plugin import Figure

SHORT = Timing(quiet_s=0.2, least_s=0.5, most_s=10.0)
LIMITS = Limits(floor_ms=100.0)  # the machine that tests is busy; slow or failing servers are far above it

# --- What a front end promises ---------------------------------------------------------------------------------------


# Attacks that are a goal of reliability.
GOALS = {"headers-only": "G9", "slow-bodies": "G9", "rapid-resets": "G10", "resets-after-data": "G10"}


def goals_of(attack: Attack) -> list[pytest.MarkDecorator]:
    """How the attack's goal is counted, if it has one."""
    if attack.name not in GOALS:
        return []
    return [pytest.mark.goal(GOALS[attack.name], of=attack.unit, ci=attack.short_size, release=attack.size)]


@pytest.fixture(scope="module")
def site(front_end: str, small_repository: Path) -> Iterator[Attacked]:
    with run.started_server(small_repository, front_end) as server, run.site_of(server) as site:
        yield site


@pytest.mark.fault("S8", "S10", "S11", "S12", "S13", "S14", "S15", "S16", "S17")
@pytest.mark.timing
@pytest.mark.parametrize("attack", [pytest.param(each, id=each.name, marks=goals_of(each)) for each in ATTACKS])
def test_honest_client_notices_no_attack(front_end: str, attack: Attack, site: Attacked, figure: Figure) -> None:
    if reason := NOT_PROMISED[front_end].get(attack.name):
        pytest.skip(f"{front_end}: {reason}")
    whole = is_release() and attack.name in GOALS
    for _ in range(3):  # what is the server's fault is slow each time
        size, timing, limits = (attack.size, Timing(), Limits()) if whole else (attack.short_size, SHORT, LIMITS)
        outcome = measure(attack, size, site, timing, limits)
        if not outcome.is_only_slow:
            break
    memory, p99 = outcome.memory, f"p99 {outcome.quiet_p99_ms:.1f} ms, then {outcome.p99_ms:.1f}"
    figure(f"{outcome.num_failed} of {outcome.num_calls:,} honest calls failed; {p99}")
    if memory is not None:
        figure(f"{memory.before_mb:.0f} MB before, {memory.most_mb:.0f} at most, {memory.after_mb:.0f} after")
    if outcome.is_only_slow and measure(CONTROL, CONTROL.short_size, site, SHORT, LIMITS).is_slow:
        pytest.skip(f"the machine is too busy to tell: {outcome.faults}")
    assert outcome.faults == []


def test_native_front_end_promises_everything() -> None:
    assert NOT_PROMISED[NATIVE] == {}
    assert NOT_PROMISED[GRPCIO].keys() <= {attack.name for attack in ATTACKS}
    assert set(NOT_PROMISED) == set(FRONT_ENDS)


# --- The harness can fail --------------------------------------------------------------------------------------------


def spoil(field: Field) -> Counts:
    """Sends the one request that spoils a SpoiledServer, and waits."""
    with Connection(field.address) as connection:
        body = message(pb.ClassifyRequest(images=bytes([TRIGGER]) * 784).SerializeToString())
        connection.send(opening(1) + frame(DATA, END_STREAM, 1, body))
        connection.wait_for(1, field.most_s)
    while field.goes_on(1):
        time.sleep(0.05)
    return Counter({"requests": 1})


def give_up(_field: Field) -> Counts:
    """Does not get far."""
    return Counter({"requests": 1})


def outcome_of(attack: Attack, spoils_with: str, limits: Limits = LIMITS) -> AttackOutcome:
    with server_process("tests.loadtest.spoiled_server", spoils_with) as server, run.site_of(server) as site:
        return measure(attack, attack.short_size, site, Timing(quiet_s=0.3, least_s=0.5, most_s=5.0), limits)


SPOIL = Attack(name="spoil", work=spoil, unit="requests", size=1, short_size=1)


@pytest.mark.timing
@pytest.mark.parametrize(
    ("spoils_with", "fault"),
    [
        ("slow", "p99 2"),
        ("refuse", "RESOURCE_EXHAUSTED"),
        ("swap", "WRONG"),
        ("die", "a process of the server died"),
        ("grow", "MB more than before"),
    ],
)
def test_spoiled_server_is_found_out(spoils_with: str, fault: str) -> None:
    limits = Limits(floor_ms=50.0, settle_s=0.5)
    faults = outcome_of(SPOIL, spoils_with, limits).faults
    assert any(fault in each for each in faults), faults


@pytest.mark.timing
def test_control_attacks_nobody() -> None:
    outcome = outcome_of(CONTROL, "none")
    assert outcome.faults == [] or outcome.is_only_slow  # which is the machine's doing
    assert outcome.counts["pings"] > CONTROL.short_size
    assert outcome.num_calls > 30
    assert outcome.memory is not None
    assert outcome.memory.before_mb > 5


@pytest.mark.slow
def test_attack_that_falls_short_is_no_success() -> None:
    weak = Attack(name="weak", work=give_up, unit="requests", size=2, short_size=2)
    assert outcome_of(weak, "none").faults[-1] == "the attack got no further than 1 requests"


def outcome(**fields: object) -> AttackOutcome:
    sound = {
        "name": "rapid-resets",
        "unit": "streams",
        "size": 10,
        "counts": {"streams": 10},
        "seconds": 1.0,
        "num_calls": 100,
        "failures": {},
        "quiet_p99_ms": 4.0,
        "p99_ms": 7.9,
        "memory": Memory(before_mb=100, most_mb=900, after_mb=164),
        "is_alive": True,
    }
    return AttackOutcome(**(sound | fields))  # type: ignore[arg-type]


def test_memory_of_a_process_that_came_later_and_has_ended_is_in_the_most() -> None:
    held = [sys.executable, "-c", "import sys; held = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"]
    with Watch(os.getpid()) as watch:
        with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout and process.stdout.readline()
            time.sleep(4 * EVERY_S)
            process.stdin.close()
        assert watch.now_mb() < watch.before_mb + 40
    assert watch.most_mb > watch.before_mb + 64


def test_verdict_knows_its_limits() -> None:
    assert outcome().faults == []
    assert outcome(quiet_p99_ms=1.0, p99_ms=4.9).faults == []  # below the floor
    assert outcome(quiet_p99_ms=1.0, p99_ms=5.1).is_only_slow
    assert outcome(failures={"CANCELLED": 1}).faults == ["1 of 100 honest calls failed: 1 CANCELLED"]
    assert outcome(is_alive=False).faults == ["a process of the server died"]
    assert outcome(memory=Memory(before_mb=100, most_mb=900, after_mb=165)).faults[0].startswith("65 MB more")
    assert outcome(memory=None).faults == []
    assert outcome(num_calls=19).faults == ["only 19 honest calls"]


def test_what_is_not_promised_is_shown_with_its_reason() -> None:
    reason = NOT_PROMISED[GRPCIO]["rapid-resets"]
    failed = outcome(is_alive=False)
    assert run.verdict(failed, GRPCIO) == f"not promised ({reason}): a process of the server died"
    assert run.verdict(failed, NATIVE) == "FAILED: a process of the server died"
    assert run.verdict(failed, NATIVE, is_noisy=True) == "FAILED: a process of the server died"
    assert run.verdict(outcome(p99_ms=99.0), NATIVE, is_noisy=True).startswith("INVALID")
    assert run.verdict(outcome(), NATIVE) == "withstood"


# --- What is sent ----------------------------------------------------------------------------------------------------


def test_header_strings_of_any_length_are_hpack() -> None:
    assert literal(b"te", b"x" * 126) == b"\0\x02te\x7e" + b"x" * 126
    assert literal(b"te", b"x" * 127) == b"\0\x02te\x7f\x00" + b"x" * 127
    assert literal(b"te", b"x" * 255) == b"\0\x02te\x7f\x80\x01" + b"x" * 255


@pytest.mark.parametrize("make", [bombs.blank_png, bombs.blank_webp])
def test_picture_bombs_are_whole_pictures(make: object) -> None:
    assert callable(make)
    with Image.open(BytesIO(make(64))) as picture:
        assert picture.size == (64, 64)
        assert picture.convert("L").getextrema() == (0, 0)
    assert len(make(bombs.LARGEST_SIDE)) < 40_000


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["192.0.2.1:50051", "example.org:50051", "localhost", "unix:/run/atelier", ":50051"])
def test_other_machines_are_not_attacked(target: str) -> None:
    with pytest.raises(UsageError, match="NOT_LOCAL: --target"):
        run.main(["--target", target])


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1"])
def test_this_machine_may_be_attacked(target: str) -> None:
    assert run.local_address(target)[1] == 1


def test_names_that_there_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"BAD_OPTIONS: --only has siege \(of window-zero-80, "):
        run.main(["--only", "churn,siege"])
    with pytest.raises(SystemExit):
        run.main(["--front-end", "apache"])
    assert "invalid choice: 'apache' (choose from" in capsys.readouterr().err


@pytest.mark.slow
def test_command_prints_a_table_and_fails_with_the_server() -> None:
    with server_process("tests.loadtest.spoiled_server", "none") as server:
        options = ("--target", server.target, "--pid", server.process.pid, "--only", "bad-prefaces", "--scale", 0.01)
        done = command("loadtest.attack", *options)
        assert "| bad-prefaces |" in done.stdout, done.stdout + done.stderr
        assert done.returncode in (0, 1, 75), done.stderr  # a busy machine may be slow


def test_target_that_does_not_answer_is_no_verdict() -> None:
    with pytest.raises(ResourceUnavailableError, match="NO_ANSWER: localhost:1 cannot be asked: UNAVAILABLE"):
        run.main(["--target", "localhost:1", "--only", "churn"])
