"""A small data set, a trainer to call, and a finished run to look at."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atelier.program import run_program
from loadtest.server_process import free_port
from tests.idx_files import write_idx_files
from training.train import main

Train = Callable[..., int]
WhenPrinted = Callable[..., None]
ROOT = Path(__file__).parents[2]
Ended = subprocess.CompletedProcess[str]
ONE_CPU = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # of this machine: Gloo speaks on the loopback


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 training and 100 test images: three steps an epoch."""
    directory = tmp_path_factory.mktemp("data")
    write_idx_files(directory)
    return directory


def call_trainer(data_dir: Path, run_dir: Path, *options: str, draws: bool = False) -> int:
    """Runs the trainer in this process, for two epochs unless told otherwise; returns its exit code.

    Drawing figures takes four times as long as all the rest.
    """
    fixed = ["--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir), "--unverified-data"]
    fixed += [] if draws else ["--no-figures"]
    return run_program(main, [*fixed, "--device", "cpu", "--threads", "1", "--epochs", "2", *options])


def torchrun(*command: str) -> list[Ended]:
    """The launcher, which starts `python -m <command>` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *command]
    environment = os.environ | ONE_CPU
    return [subprocess.run(launcher, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)]


def in_two_processes(first: Sequence[str], second: Sequence[str] = (), *, num_machines: int = 1) -> list[Ended]:
    """`python -m <first>`, and the same or `second`, told their places as torchrun tells them, without its launcher.

    That one imports torch too, which takes longer than what they do.
    """
    size = 2 // num_machines  # on each machine
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | ONE_CPU | group | {"RANK": str(rank), "LOCAL_RANK": str(rank % size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate((first, second or first))
    ]
    try:
        with ThreadPoolExecutor(len(processes)) as pool:
            printed = list(pool.map(lambda process: process.communicate(timeout=200), processes))
    finally:
        for process in processes:
            process.kill()  # one that waits for another that has failed
    return [
        subprocess.CompletedProcess(each.args, each.returncode, *text)
        for each, text in zip(processes, printed, strict=True)
    ]


def trainer_in(data_dir: Path, run_dir: Path, *options: str) -> list[str]:
    """The trainer's module and flags."""
    fixed = ["--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir), "--unverified-data", "--device", "cpu"]
    return ["training", *fixed, "--no-figures", "--threads", "1", *options]


def printed_by(ended: Sequence[Ended]) -> str:
    """What all of them printed, once none has failed."""
    assert [each.returncode for each in ended] == [0] * len(ended), [each.stderr for each in ended]
    return "".join(each.stdout for each in ended)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def train(data_dir: Path, run_dir: Path) -> Train:
    """`train("--option", ...)` trains into `run_dir`."""
    return lambda *options, **how: call_trainer(data_dir, run_dir, *options, **how)


@pytest.fixture
def when_printed(monkeypatch: pytest.MonkeyPatch) -> WhenPrinted:
    """`when_printed("epoch ", act, 2)`: calls `act` at the second line from now on that begins so, as who reads it."""

    def watch(start: str, act: Callable[[], object], number: int = 1) -> None:
        write, seen = sys.stdout.write, itertools.count(1)

        def watched(text: str) -> int:
            written = write(text)
            if text.startswith(start) and next(seen) == number:
                act()
            return written

        monkeypatch.setattr(sys.stdout, "write", watched)

    return watch


@pytest.fixture(scope="session")
def finished_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of seed 0, with its figures; not to be changed."""
    directory = tmp_path_factory.mktemp("finished") / "checkpoint"
    assert call_trainer(data_dir, directory, draws=True) == 0
    return directory


@pytest.fixture
def trained_dir(finished_run: Path, run_dir: Path) -> Path:
    """A copy of the finished run, at `run_dir`, to be changed at will."""
    shutil.copytree(finished_run, run_dir)
    return run_dir
