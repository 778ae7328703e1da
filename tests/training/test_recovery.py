"""A damaged checkpoint of a run that goes on is not the end of it: the one of the epoch before takes its place."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.conftest import WhenPrinted, call_trainer
from training.recovery import restore_previous
from training.run_record import PREVIOUS_NAME, RECORD_NAME, load_record, tensors_name

Capture = pytest.CaptureFixture[str]
MOMENTUM = ("--set", "momentum=0.5")


@pytest.fixture(scope="module")
def unbroken(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken") / "checkpoint"
    assert call_trainer(data_dir, directory, "--epochs", "4", *MOMENTUM) == 0
    return directory


@pytest.fixture
def broken_off(data_dir: Path, run_dir: Path, when_printed: WhenPrinted) -> Path:
    """The same run, ended after the third epoch of four."""

    def machine_goes_off() -> None:
        raise OSError("the machine goes off")

    when_printed("epoch ", machine_goes_off, 3)
    assert call_trainer(data_dir, run_dir, "--epochs", "4", *MOMENTUM) != 0
    return run_dir


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def take_away(path: Path) -> None:
    path.unlink()


def file_of(directory: Path, what: str) -> Path:
    if what == "record":
        return directory / RECORD_NAME
    saved = load_record(directory)
    return directory / (
        tensors_name("weights", saved.sha256) if what == "weights" else f"state-{saved.state_sha256[:12]}.safetensors"
    )


@pytest.mark.fault("T13")
@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("record", flip_a_bit),
        ("record", truncate),
        ("record", make_zero),
        ("weights", flip_a_bit),
        ("weights", truncate),
        ("weights", take_away),
        ("state", make_zero),
        ("state", take_away),
    ],
)
def test_damaged_run_goes_on_from_the_epoch_before_to_the_same_weights(
    data_dir: Path, unbroken: Path, broken_off: Path, capsys: Capture, what: str, damage: Callable[[Path], None]
) -> None:
    assert load_record(broken_off).record.completed_epochs == 3
    damage(file_of(broken_off, what))
    assert call_trainer(data_dir, broken_off, "--epochs", "4", "--resume") == 0
    printed = capsys.readouterr()
    assert "warning: BAD_CHECKPOINT: " in printed.err
    assert "going back to the checkpoint before it, with 2 of 4 epochs" in printed.err
    assert f"resuming: {broken_off} has 2 of 4 epochs" in printed.out
    assert load_record(broken_off).sha256 == load_record(unbroken).sha256
    assert not (broken_off / PREVIOUS_NAME).exists()


def test_whole_checkpoint_is_left_alone(broken_off: Path) -> None:
    before = (broken_off / RECORD_NAME).read_bytes()
    assert restore_previous(broken_off) == ""
    assert (broken_off / RECORD_NAME).read_bytes() == before
    assert restore_previous(broken_off / "nowhere") == ""


@pytest.mark.fault("T13")
def test_run_without_a_good_checkpoint_ends(data_dir: Path, broken_off: Path, capsys: Capture) -> None:
    for name in (RECORD_NAME, PREVIOUS_NAME):
        truncate(broken_off / name)
    assert call_trainer(data_dir, broken_off, "--epochs", "4", "--resume") == os.EX_DATAERR
    assert f"error: BAD_CHECKPOINT: {broken_off / RECORD_NAME} is malformed" in capsys.readouterr().err


def test_two_checkpoints_are_kept_while_a_run_goes_on_and_one_at_its_end(broken_off: Path, unbroken: Path) -> None:
    assert len(list(broken_off.glob("weights-*"))) == len(list(broken_off.glob("state-*"))) == 2
    assert len(list(unbroken.glob("weights-*"))) == 1
    assert not list(unbroken.glob("state-*"))


def test_checkpoint_of_another_run_is_not_gone_back_to(data_dir: Path, broken_off: Path) -> None:
    """The first epoch of a run that was begun --again has none before it."""
    truncate(broken_off / RECORD_NAME)
    assert call_trainer(data_dir, broken_off, "--epochs", "1", "--again", *MOMENTUM) == 0
    assert not (broken_off / PREVIOUS_NAME).exists()
