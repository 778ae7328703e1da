"""Lives of grpcio's server in virtual time: its batcher, engines and versions as they are, over a simulated device.

Arrivals, deadlines, cancellations, versions, a device with its faults, a drain and restarts are drawn from a seed, and
whenever all that is due has run, the rules of batching must hold (tests/serving/simulation/).

`ATELIER_SIMULATION_SEED=7 pytest tests/serving/test_simulation.py` replays one life, of either core.
"""

import gc
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.goals import RESULTS, is_release
from tests.reliability.plugin import Figure
from tests.serving.simulation.life import Life
from tests.serving.simulation.mutants import MUTANTS, Mutant
from tests.serving.simulation.rules import Broken
from tests.serving.simulation.scenario import Random, Scenario

ROOT = Path(__file__).parents[2]
ENDS = {"answered", "refused", "expired", "cancelled", "failed", "given up"}
SHARE = 100  # lives that a process goes through before it takes the next ones
MOST_FOR_A_MUTANT = 400  # lives
DRAWN = [  # by the native core
    (1, 3, False, 34, None, 0),
    (2, 4, False, 75, 41, 59),
    (4, 48, False, 82, None, None),
]


class Lived(NamedTuple):
    """Holds what came of some lives."""

    ends: "Counter[str]"
    num_promises: int
    lived_s: float

    def with_more(self, other: "Lived") -> "Lived":
        """Adds those of others."""
        return Lived(self.ends + other.ends, self.num_promises + other.num_promises, self.lived_s + other.lived_s)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the server's log and Python's collector out of it: a life leaves much, and most of it in circles."""
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    logging.disable(logging.NOTSET)


def lived(seed: int) -> Life:
    life = Life(seed)
    try:
        life.live()
    except BaseException:
        life = Life(seed, is_traced=True)
        try:
            life.live()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            last = "\n".join((life.trace or [])[-40:])
            raise AssertionError(f"{last}\n{error}\nATELIER_SIMULATION_SEED={seed}") from error
        raise AssertionError(f"seed {seed} has not the same life twice") from None
    return life


def lived_all(seeds: range) -> Lived:
    result = Lived(Counter(), 0, 0.0)
    for seed in seeds:
        life = lived(seed)
        result = result.with_more(Lived(life.ends, life.num_promises, life.lived_s))
    gc.collect()
    return result


@pytest.mark.slow
@pytest.mark.fault("S18", "S19", "S20", "S21", "S32")
@pytest.mark.goal("G15", of="simulated lives of grpcio's core", ci=200, release=100_000)
def test_simulation_of_many_lives_breaks_no_rule(size: int, figure: Figure) -> None:
    if "ATELIER_SIMULATION_SEED" in os.environ:
        lived(int(os.environ["ATELIER_SIMULATION_SEED"]))
        return
    shares = [range(begin, min(size, begin + SHARE)) for begin in range(0, size, SHARE)]
    if is_release():
        with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
            all_lived = reduce(Lived.with_more, pool.map(lived_all, shares))
    else:
        all_lived = reduce(Lived.with_more, map(lived_all, shares))
    hours, ends = all_lived.lived_s / 3600, dict(all_lived.ends)
    figure(f"0 violations in {size:,} lives, {hours:,.1f} simulated hours; {ends}; {all_lived.num_promises:,} in time")
    assert set(ends) == ENDS
    assert all_lived.num_promises > 0


def test_seed_has_the_same_life_again() -> None:
    traces = []
    for seed in [*range(20), *range(20)]:
        life = Life(seed, is_traced=True)
        life.live()
        traces.append(life.trace)
    assert traces[:20] == traces[20:]
    text = "\n".join(line for trace in traces for line in trace or [])
    assert all(word in text for word in ("swapped to version 3", "BACKEND_", "process 2", "drain"))


def test_seed_that_breaks_a_rule_is_told_with_what_happened_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MUTANTS[0].owner, MUTANTS[0].method, MUTANTS[0].made())
    with pytest.raises(AssertionError, match=rf"(?s)process 1.*{MUTANTS[0].found}: .*\nATELIER_SIMULATION_SEED=0$"):
        lived(0)


def test_seed_is_the_scenario_of_the_native_core() -> None:
    """As scenario.rs draws it."""
    scenarios = [Scenario.draw(Random(seed)) for seed in range(3)]
    assert [
        (each.max_batch_size, each.max_queue_size, each.is_calm, each.num_requests, each.drain, each.swap)
        for each in scenarios
    ] == DRAWN


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_simulation_finds_what_is_broken(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutant.owner, mutant.method, mutant.made())
    for seed in range(MOST_FOR_A_MUTANT):
        try:
            Life(seed).live()
        except Broken as broken:
            if str(broken).startswith(mutant.found):
                return
    pytest.fail(f"{MOST_FOR_A_MUTANT} lives did not find that {mutant.found}")


@pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo: rustup, or apt-get install cargo")
@pytest.mark.skipif(RESULTS not in os.environ, reason="cargo test lives the same lives; make reliability counts them")
@pytest.mark.slow
@pytest.mark.goal("G15", of="simulated lives of the native core", ci=300, release=1_000_000)
def test_simulation_of_the_native_core_breaks_no_rule(size: int, figure: Figure) -> None:
    command = [
        "cargo",
        "test",
        "--locked",
        "--lib",
        "simulation",
        *(["--release"] if is_release() else []),
        "--",
        "--nocapture",
    ]
    environment = {"CARGO_TARGET_DIR": str(ROOT / ".cache/native"), **os.environ, "ATELIER_SIMULATION_SEEDS": str(size)}
    subprocess.run([sys.executable, ROOT / "native/pins.py", "restore"], check=True)
    done = subprocess.run(command, cwd=ROOT / "native", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = next(line for line in done.stdout.splitlines() if "simulated hours" in line)
    figure(f"0 violations in {told.strip()}")
