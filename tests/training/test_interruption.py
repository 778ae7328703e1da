"""Runs that are killed, stopped, or started twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.reliability.plugin import Figure
from tests.training.conftest import call_trainer
from training.checkpoint import load_checkpoint
from training.trainer_process import LOCK_NAME

ROOT = Path(__file__).parents[2]
NUM_EPOCHS = 60


def start_trainer(data_dir: Path, run_dir: Path, *options: str) -> "subprocess.Popen[str]":
    """The trainer as a process of its own, for far more epochs than it will be left in peace for."""
    command = [sys.executable, "-m", "training", "--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir)]
    fixed = ["--unverified-data", "--device", "cpu", "--threads", "1", "--epochs", str(NUM_EPOCHS), *options]
    return subprocess.Popen([*command, *fixed], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_epochs(trainer: "subprocess.Popen[str]", num_epochs: int) -> None:
    """Returns once the trainer has completed that many more."""
    assert trainer.stdout is not None
    epochs = (line for line in trainer.stdout if line.startswith("epoch"))
    for _ in range(num_epochs):
        next(epochs)


def weights_digest(run_dir: Path) -> str:
    return load_checkpoint(run_dir).sha256


@pytest.mark.fault("T1")
@pytest.mark.slow
@pytest.mark.goal("G19", of="kill -9 of a training", ci=2, release=200)
def test_run_killed_at_any_moment_resumes_to_the_weights_of_an_undisturbed_one(
    data_dir: Path, tmp_path: Path, size: int, figure: Figure
) -> None:
    assert call_trainer(data_dir, tmp_path / "undisturbed", "--epochs", str(NUM_EPOCHS)) == 0
    moments, completed = random.Random(0), 0
    for kill in range(size):
        run_dir = tmp_path / str(kill // 3)  # three kills to a run
        with start_trainer(data_dir, run_dir, "--resume") as trainer:
            wait_for_epochs(trainer, 2)
            time.sleep(moments.uniform(0, 0.05))
            trainer.kill()
        before, completed = completed, len(load_checkpoint(run_dir).metrics)
        assert before + 2 <= completed < NUM_EPOCHS
        if kill % 3 == 2 or kill == size - 1:
            assert call_trainer(data_dir, run_dir, "--epochs", str(NUM_EPOCHS), "--resume") == 0
            assert weights_digest(run_dir) == weights_digest(tmp_path / "undisturbed")
            completed = 0
    figure(f"the same weights, bit for bit, after each of {size} kills")


@pytest.mark.slow
@pytest.mark.fault("T3", "T15")
def test_signal_stops_the_run_with_exit_code_75_and_leaves_the_last_whole_checkpoint(
    data_dir: Path, run_dir: Path
) -> None:
    """SIGTERM; SIGINT is that of test_resume.py."""
    with start_trainer(data_dir, run_dir) as trainer:
        wait_for_epochs(trainer, 1)
        assert psutil.Process(trainer.pid).children() == []  # none loads data, so none can hang
        trainer.send_signal(signal.SIGTERM)
        _, error = trainer.communicate(timeout=60)
    assert trainer.returncode == 75
    found = re.search(r"^error: INTERRUPTED: SIGTERM in .*has (\d+) of \d+ epochs \(.*--resume", error, re.M)
    assert found and len(load_checkpoint(run_dir).metrics) == int(found[1])
    assert error.count("\n") == 2  # the warning that the data are unverified, and the error


@pytest.mark.fault("T3")
def test_second_signal_ends_the_process_at_once() -> None:
    code = """
import os, signal
from training.trainer_process import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")


@pytest.mark.slow
@pytest.mark.fault("T2", "T4")
@pytest.mark.goal(
    "G18", of="system calls of a checkpoint's save at which it is killed, or the disk full", ci=0, release=0
)
@pytest.mark.parametrize("how", ["died", "full"])
def test_save_that_fails_at_any_system_call_leaves_the_old_checkpoint_or_the_new(
    how: str, trained_dir: Path, figure: Figure
) -> None:
    command = [sys.executable, "-m", "tests.training.crash_points", str(trained_dir), how]
    lines = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    num_old = lines.count(f"{how} old 1")
    assert num_old >= 8  # opening, writing and syncing the weights, then the record, and both renames
    assert lines[:num_old] == [f"{how} old 1"] * num_old
    assert set(lines[num_old:-1]) == {f"{how} new 1"}
    assert lines[-1] == "finished new 1"
    figure(f"{how} at {len(lines) - 1}: the old one {num_old} times, else the new")


OUT_OF_MEMORY = """
import resource, sys
from atelier.program import run_program
from training.run import train_seeds  # what is imported needs most of the memory
from training.train import main
num_pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (num_pages * resource.getpagesize() + (4 << 20),) * 2)
sys.exit(run_program(main, sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.fault("T18")
def test_host_without_memory_ends_the_run_with_exit_code_70_and_keeps_the_checkpoint(
    data_dir: Path, trained_dir: Path
) -> None:
    before = weights_digest(trained_dir)
    options = ["--data-dir", str(data_dir), "--checkpoint-dir", str(trained_dir), "--unverified-data", "--resume"]
    command = [sys.executable, "-c", OUT_OF_MEMORY, *options, "--epochs", "4", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == os.EX_SOFTWARE
    assert done.stderr.splitlines()[-1].startswith("error: OUT_OF_MEMORY: the host has no memory left for this (")
    assert "Traceback" not in done.stderr
    assert weights_digest(trained_dir) == before


@pytest.fixture
def other_trainer(run_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the run's directory."""
    code = f"""
import time
from pathlib import Path
from training.trainer_process import lock_directory
with lock_directory(Path({str(run_dir)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.mark.fault("T12")
def test_second_trainer_is_told_who_has_the_directory_and_a_dead_one_has_it_no_more(
    run_dir: Path,
    train: Callable[..., int],
    other_trainer: "subprocess.Popen[str]",
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == os.EX_UNAVAILABLE
    error = capsys.readouterr().err
    assert error.startswith(f"error: RUN_LOCKED: {run_dir} is being trained into by process {other_trainer.pid} ")
    assert [path.name for path in run_dir.iterdir()] == [LOCK_NAME]
    other_trainer.kill()
    other_trainer.wait()
    assert train() == 0


def test_checkpoint_directory_that_is_a_file_is_an_error(
    run_dir: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.write_text("a file")
    assert train() == os.EX_IOERR
    assert capsys.readouterr().err.startswith(f"error: NOT_A_DIRECTORY: cannot make the directory {run_dir}")
