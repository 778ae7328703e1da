"""What the native front end reads messages with, in process: over mutants, and beside Google's library.

`cargo test fuzzing` has mutants of its own, and says how one of them is replayed: native/tests/fuzzing/mod.rs.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError, Message

from tests.fuzz.messages import METHODS, Method, is_lax
from tests.reliability.goals import RESULTS, is_release
from tests.reliability.plugin import Figure

ROOT = Path(__file__).parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / ".cache" / "native"))
SEED = int(os.environ.get("ATELIER_FUZZ_SEED", "1"))
DECODED = [METHODS[0], METHODS[1], METHODS[2]]  # in the order of fuzzing/mod.rs

LONG = re.compile(rb"[\x80-\xff]{5}")  # a varint of six bytes: prost reads even a field's number so

IS_BUILT = any((TARGET / "debug" / "deps").glob("atelier_native-*"))
needs_test_binary = pytest.mark.skipif(
    shutil.which("cargo") is None or not (IS_BUILT or RESULTS in os.environ),  # make reliability builds them
    reason="cargo has not built the tests of native/: make test does",
)


def cargo_test(name: str, *options: str, **variables: object) -> str:
    """Runs one of the native tests, and returns what it printed: as it was built, or optimised for a release's size."""
    profile = ["--release"] if is_release() else []
    command = ["cargo", "test", "--quiet", "--locked", "--lib", *profile, name, "--", "--nocapture", *options]
    environment = os.environ | {"CARGO_TARGET_DIR": str(TARGET), "ATELIER_FUZZ_SEED": str(SEED)}
    environment |= {key: str(value) for key, value in variables.items()}
    subprocess.run([sys.executable, "native/pins.py", "restore"], cwd=ROOT, check=True)
    done = subprocess.run(command, cwd=ROOT / "native", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@needs_test_binary
@pytest.mark.skipif(
    RESULTS not in os.environ, reason="cargo test makes the same executions; make reliability counts them"
)
@pytest.mark.fault("S1", "S2")
@pytest.mark.goal("G8", of="executions of the native decoders", ci=20_000, release=10_000_000)
def test_decoders_read_or_refuse_every_mutant(size: int, figure: Figure) -> None:
    printed = cargo_test("fuzzing_what_reads", ATELIER_FUZZ_EXECUTIONS=size)
    found = re.search(r"(\d+) executions, the slowest in (\d+) us", printed)
    assert found is not None and int(found[1]) == size, printed
    figure(f"{size:,} read or refused, the slowest in {found[2]} us")


@pytest.mark.slow
@needs_test_binary
@pytest.mark.fault("S1", "S2")
@pytest.mark.goal("G8", of="messages, read by prost and by Google's library", ci=10_000, release=500_000)
def test_both_decoders_read_the_same(tmp_path: Path, size: int, figure: Figure) -> None:
    """Where Google's passes a known field over as unknown, prost refuses or reads it: see `is_lax`."""
    mutants = [(number % len(DECODED), number) for number in range(size)]
    path = tmp_path / "messages"
    with path.open("wb") as file:
        for kind, number in mutants:
            message = DECODED[kind].mutant(SEED, number)
            file.write(struct.pack("<BI", kind, len(message)) + message)
    cargo_test("fuzzing_against", "--ignored", ATELIER_FUZZ_MESSAGES=path)
    num_read = num_lax = 0
    for (kind, number), answer in zip(mutants, answers_in(path.with_suffix(".answers")), strict=True):
        difference = difference_of(DECODED[kind], number, answer)
        assert difference in ("", "lax"), f"{DECODED[kind].name}, seed {SEED}, number {number}: {difference}"
        num_read += answer is not None
        num_lax += difference == "lax"
    assert num_read > size / 2
    figure(
        f"0 of {num_read:,} read otherwise, {size - num_read:,} refused; {num_lax:,} in which a field has a wrong type"
    )


def answers_in(path: Path) -> Iterator[bytes | None]:
    """What prost read of each message, written by it again; None of what it refused."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        is_read, length = struct.unpack_from("<BI", data, at)
        at += 5 + length
        yield data[at - length : at] if is_read else None


def difference_of(method: Method, number: int, answer: bytes | None) -> str:
    """How the two differ about a mutant."""
    wire, kind = method.mutant(SEED, number), type(method.corpus[0])
    try:
        expected = kind.FromString(wire)
    except DecodeError:
        return "" if answer is None or LONG.search(wire) else "only prost reads it"
    if answer is not None and _known(kind.FromString(wire)) == _known(kind.FromString(answer)):
        return ""
    return "lax" if is_lax(wire, expected) else "it is read otherwise" if answer else "only Google's library reads it"


def _known(message: Message) -> bytes:
    """The fields that there are, in one order."""
    message.DiscardUnknownFields()
    return message.SerializeToString(deterministic=True)
