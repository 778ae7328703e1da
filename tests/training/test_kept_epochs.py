"""The weights after every epoch, for those who ask for them."""

from pathlib import Path

import pytest
import torch

from atelier.errors import BadDataError
from tests.training.conftest import Train
from training.checkpoint import load_epochs, load_model
from training.models import initialise, model_for
from training.run_record import load_record


def names_in(run_dir: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in run_dir.glob("epoch-*"))


def test_epochs_are_kept_from_the_first_weights_to_the_last(train: Train, run_dir: Path) -> None:
    assert train("--keep-epochs") == 0
    model, checkpoint = load_model(run_dir)
    epochs = load_epochs(run_dir, checkpoint)
    assert list(epochs) == [0, 1, 2] and names_in(run_dir) == ["epoch-0", "epoch-1", "epoch-2"]
    begun_with = model_for(checkpoint.recipe)
    initialise(begun_with, 0)
    for number, wanted in ((0, begun_with.state_dict()), (2, model.state_dict())):
        assert all(torch.equal(epochs[number][name], weight) for name, weight in wanted.items())
    assert not torch.equal(epochs[1]["layers.conv1.weight"], epochs[2]["layers.conv1.weight"])


def test_keeping_epochs_changes_no_weight_and_is_not_the_default(train: Train, run_dir: Path) -> None:
    assert train() == 0
    assert names_in(run_dir) == [] and load_record(run_dir).record.kept_epochs == {}
    plain = load_record(run_dir).sha256
    assert train("--keep-epochs", "--again") == 0
    assert load_record(run_dir).sha256 == plain
    assert train("--again") == 0
    assert names_in(run_dir) == []  # of a run that is no more


def test_longer_run_goes_on_keeping_without_being_told(train: Train, run_dir: Path) -> None:
    assert train("--keep-epochs") == 0
    assert train("--resume", "--epochs", "3") == 0
    assert list(load_epochs(run_dir, load_record(run_dir).record)) == [0, 1, 2, 3]


def test_epochs_of_a_finished_run_that_were_not_kept_are_an_error(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    assert train("--keep-epochs") == 78
    assert "error: EPOCHS_NOT_KEPT: " in capsys.readouterr().err


def test_damaged_epoch_is_refused(train: Train, run_dir: Path) -> None:
    assert train("--keep-epochs") == 0
    [kept] = run_dir.glob("epoch-1-*")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(BadDataError, match=r"^BAD_CHECKPOINT: .*epoch-1-"):
        load_epochs(run_dir, load_record(run_dir).record)
