"""One real training and export for all tests that need one, and a small version for those that ask for any."""

import atexit
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atelier.errors import MissingInputError
from training.dataset import FashionMNIST, load_dataset

pytest_plugins = ["tests.reliability.plugin"]
SHARED = "ATELIER_TESTS_SHARED"  # a directory of this run, for what is made while tests are still collected


def pytest_configure(config: pytest.Config) -> None:
    """Makes the directory; the processes that test get it from the one that started them.

    While tests are collected nothing becomes garbage, and afterwards the million objects of what they import are never
    searched for any.
    """
    gc.disable()
    if SHARED not in os.environ:
        os.environ[SHARED] = tempfile.mkdtemp(prefix="atelier-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(SHARED)))


def pytest_collection_finish() -> None:
    """Searches for garbage again, but not in what is there by now."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # or libraries that count their objects speak of leaks


@dataclass(frozen=True)
class Job:
    """What the commands left behind, and what they printed."""

    checkpoint_dir: Path
    repository: Path
    printed: str
    warned: str  # by the trainer

    @property
    def version_dir(self) -> Path:
        return self.repository / "lenet5" / "1"


def command(module: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert "Traceback" not in done.stderr or "--debug" in arguments, done.stderr
    return done


def import_s() -> float:
    """How long a Python takes that only imports what a server imports: a yardstick, for the machine may be busy."""
    started_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import grpc.aio, numpy, onnxruntime"], check=True)
    return time.monotonic() - started_s


@pytest.fixture(scope="session")
def data() -> FashionMNIST:
    try:
        return load_dataset(fetch=False)
    except MissingInputError as error:
        pytest.skip(f"needs the real data set, which `make data` finds or fetches: {error}")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that the first of several processes that test makes, for all of them; not to be changed."""
    base = factory.getbasetemp()
    return made_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name, make)


def made_in(root: Path, make: Callable[[Path], None]) -> Path:
    """The directory, which the first process that asks for it makes."""
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "made").exists():
            make(root)
            (root / "made").touch()
    return root


@pytest.fixture(scope="session")
def job(data: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One epoch on the 60,000 images, exported through the gate on all 10,000; not to be changed."""

    def make(root: Path) -> None:
        trained = command("training", "--epochs", 1, "--checkpoint-dir", root / "checkpoint")
        assert trained.returncode == 0, trained.stderr
        exported = command("export", "--checkpoint-dir", root / "checkpoint", "--repository", root / "models")
        assert exported.returncode == 0, exported.stderr
        (root / "printed").write_text(trained.stdout + exported.stdout)
        (root / "warned").write_text(trained.stderr)

    root = made_once(tmp_path_factory, "job", make)
    said = [(root / name).read_text() for name in ("printed", "warned")]
    return Job(root / "checkpoint", root / "models", *said)


@pytest.fixture(scope="session")
def tutorial_checkpoint(data: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make train` makes of the 60,000 images: what lies in artifacts/, if it was called; not to be changed."""
    from training.checkpoint import load_checkpoint  # imports torch
    from training.recipes import RECIPES

    def make(root: Path) -> None:
        trained = command("training", "--checkpoint-dir", root / "checkpoint")
        assert trained.returncode == 0, trained.stderr

    made = Path("artifacts/checkpoint")
    if (made / "checkpoint.json").exists():
        found = load_checkpoint(made)
        if found.recipe == RECIPES["tutorial"] and len(found.metrics) == found.recipe.num_epochs:
            return made
    return made_once(tmp_path_factory, "tutorial", make) / "checkpoint"


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of lenet5, untrained and unproven but whole, and made in seconds; not to be changed."""

    def make(root: Path) -> None:
        from export.repository import publish  # imports torch, which few of the fast tests need
        from tests.export.small_model import version_for_servers

        publish(root / "models" / "lenet5", *version_for_servers())

    return made_once(tmp_path_factory, "small", make) / "models"
