"""Mutants of all that programs of ours read: each is read, or refused by an error of ours, and takes no time.

A failure names a seed and a number: `KINDS[name](directory).mutant(Random(seed << 40 | number))` in tests/fuzz/files.py
makes that mutant again. `ATELIER_FUZZ_SEED=7` has other mutants than the gate's.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.files import KINDS, Kind
from tests.reliability.plugin import Figure
from tests.tensorrt.bindings import NotToBeHadError, pip_install

SEED = int(os.environ.get("ATELIER_FUZZ_SEED", "1"))
HANG_S = 0.1  # of CPU
NUM_LOOKS = 3
ATHERIS = "atheris==3.0.0"
CACHE = Path(__file__).parents[1] / ".cache" / "atheris"
REQUIRED = "ATELIER_REQUIRE_ATHERIS"  # the gate sets it: there, that atheris is not to be had is a failure


@pytest.mark.fault("T7", "E1", "E2", "E7", "S7")
@pytest.mark.goal("G8", of="mutants of a file", ci=100, release=20_000)
@pytest.mark.parametrize("name", KINDS)
def test_mutant_of_a_file_is_read_or_refused(name: str, tmp_path: Path, size: int, figure: Figure) -> None:
    kind = KINDS[name](tmp_path)
    assert kind.is_read(kind.seeds[0])
    num_read, slowest_s = 0, 0.0
    for number in range(size):
        mutant = kind.mutant(Random(SEED << 40 | number))
        try:
            spent_s, is_read = timed(kind, mutant)
        except Exception as error:
            raise AssertionError(f"{name}, seed {SEED}, number {number}") from error
        if spent_s > HANG_S:  # the first of its kind, or a busy machine
            spent_s = min(timed(kind, mutant)[0] for _ in range(NUM_LOOKS))
        assert spent_s < HANG_S, f"{name}, seed {SEED}, number {number}: took {spent_s:.3f} s"
        num_read, slowest_s = num_read + is_read, max(slowest_s, spent_s)
    assert num_read < size
    figure(f"{num_read:,} read, {size - num_read:,} refused, the slowest in {slowest_s * 1e3:.0f} ms")


def timed(kind: Kind, data: bytes) -> tuple[float, bool]:
    """The CPU time it takes, and whether it is read."""
    began_s = time.process_time()
    is_read = kind.is_read(data)
    return time.process_time() - began_s, is_read


@pytest.mark.slow
@pytest.mark.fault("T7", "E1", "E7", "S7")
@pytest.mark.goal("G8", of="inputs of each kind of file, chosen by coverage", ci=100, release=100_000)
def test_inputs_that_coverage_chooses_are_read_or_refused(tmp_path: Path, size: int, figure: Figure) -> None:
    command = [sys.executable, "-m", "tests.fuzz.guided", ",".join(KINDS), str(tmp_path / "corpora")]
    command += [f"-runs={size}", f"-seed={SEED}", "-timeout=10", "-verbosity=1", f"-artifact_prefix={tmp_path}/"]
    environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}:{atheris_directory()}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    num_done = [int(number) for number in re.findall(r"^Done (\d+) runs", done.stderr, re.MULTILINE)]
    assert len(num_done) == len(KINDS) and min(num_done) >= size, done.stderr[-3000:]
    edges = re.findall(r"DONE +cov: (\d+)", done.stderr)
    figure(f"{sum(num_done):,} read or refused, over {', '.join(edges)} edges")


def atheris_directory() -> Path:
    """Where atheris is; it is fetched at the first call."""
    try:
        if not CACHE.exists():
            building = CACHE.with_name(f".atheris.{os.getpid()}")
            pip_install(building, ATHERIS)
            building.rename(CACHE)
    except NotToBeHadError as error:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(str(error))
    return CACHE
