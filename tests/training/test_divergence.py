"""Runs that learn nothing: named at the end of the epoch, and ended when it stays so."""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from atelier.errors import BadDataError
from tests.conftest import Job
from tests.training.conftest import Train
from training.dataset import FashionMNIST
from training.divergence import CHANCE, check_epochs, warn_if_near_dead
from training.recipes import RECIPES
from training.run_record import EpochMetrics, RunRecord, load_record
from training.train import main

Capture = pytest.CaptureFixture[str]
ENOUGH_STEPS = ("--set", "batch_size=5")  # 120 an epoch
EXPLODING = (*ENOUGH_STEPS, "--set", "activation=tanh", "--learning-rate", "50")
STUCK = (*ENOUGH_STEPS, "--learning-rate", "1e-5")


def told(capsys: Capture) -> list[str]:
    """Returns the lines on stderr but the one about the data set, which is a small one."""
    return [line for line in capsys.readouterr().err.splitlines() if "UNVERIFIED_DATA" not in line]


def record_of(*metrics: tuple[float, float | None], num_epochs: int = 10) -> RunRecord:
    """A run on all of Fashion-MNIST, with these losses and test accuracies."""
    epochs = tuple(
        EpochMetrics(epoch=number, train_loss=loss, train_acc=0.1, test_acc=acc, step_seconds=1.0, seconds=1.0)
        for number, (loss, acc) in enumerate(metrics, 1)
    )
    return RunRecord(
        recipe=dataclasses.replace(RECIPES["tutorial"], num_epochs=num_epochs),
        seed=0,
        completed_epochs=len(epochs),
        metrics=epochs,
        dataset_digests={},
        dataset_verified=True,
        num_train_images=60_000,
        versions={},
        hardware="none",
        device="cpu",
        num_threads=1,
        created="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
    )


@pytest.mark.slow
def test_run_that_explodes_is_warned_about_at_once_and_ended_after_three_epochs_for_good(
    train: Train, run_dir: Path, capsys: Capture
) -> None:
    assert train("--epochs", "9", *EXPLODING) == os.EX_DATAERR
    *warnings, error = told(capsys)
    assert len(warnings) == 3
    assert warnings[0].startswith("warning: NEAR_DEAD: seed 0, epoch 1/9: the loss is ")
    assert "set a lower --learning-rate than 50" in warnings[0] and "after 3 such epochs the run ends" in warnings[0]
    assert error.startswith("error: DIVERGED: seed 0, the last 3 epochs of 3: ")
    assert "train it --again: set a lower --learning-rate than 50" in error
    assert load_record(run_dir)[0].completed_epochs == 3
    for option, num_more in (("--resume", 0), ("--again", 3)):  # it is not trained on, but may begin again
        assert train("--epochs", "9", *EXPLODING, option) == os.EX_DATAERR
        printed = capsys.readouterr()
        assert printed.out.count("\nepoch ") == num_more
        assert "error: DIVERGED: " in printed.err


@pytest.mark.slow
def test_dead_run_that_was_trained_to_its_end_stays_an_error(train: Train, capsys: Capture) -> None:
    for _ in range(2):
        assert train("--epochs", "3", *EXPLODING) == os.EX_DATAERR
        assert "error: DIVERGED: seed 0, the last 3 epochs of 3: " in capsys.readouterr().err


@pytest.mark.slow
def test_run_that_sits_at_chance_is_warned_about_for_longer(train: Train, capsys: Capture) -> None:
    assert train("--epochs", "5", *STUCK) == 0
    warnings = told(capsys)
    assert len(warnings) == 5
    assert warnings[0].startswith("warning: NEAR_DEAD: seed 0, epoch 1/5: the accuracy is 0.")
    assert "for sigmoids and tanh perhaps a higher one" in warnings[0]
    assert train("--epochs", "9", "--resume", *STUCK) == os.EX_DATAERR
    assert "error: DIVERGED: seed 0, the last 6 epochs of 6: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_few_steps_are_too_few_to_judge_by(train: Train, capsys: Capture) -> None:
    assert train("--epochs", "8", "--learning-rate", "1e-5") == 0
    assert told(capsys) == []


def test_slow_beginning_is_forgiven_once_the_run_moves(capsys: Capture) -> None:
    slow = [(2.305, CHANCE)] * 5
    check_epochs(record_of(*slow))
    check_epochs(record_of(*slow, (2.1, 0.4), *slow))
    warn_if_near_dead(record_of(*slow, (2.1, 0.4)))
    assert capsys.readouterr().err == ""
    with pytest.raises(BadDataError, match=r"DIVERGED: seed 0, the last 6 epochs of 6: the accuracy is 0\.100"):
        check_epochs(record_of(*slow, slow[0]))


def test_epoch_whose_test_images_are_kept_for_the_end_is_judged_by_what_is_known(capsys: Capture) -> None:
    warn_if_near_dead(record_of((2.3, None)))
    assert "the accuracy is 0.100, and guessing gives 0.1" in capsys.readouterr().err


@pytest.mark.slow
def test_tutorials_own_exercise_is_named_and_its_recipe_is_not(
    job: Job, data: FashionMNIST, run_dir: Path, capsys: Capture
) -> None:
    """The job's is an epoch of the recipe."""
    assert job.warned == ""
    assert data.verified
    options = ["--epochs", "1", "--checkpoint-dir", str(run_dir), "--device", "cpu", "--no-figures"]
    assert main([*options, "--set", "activation=relu"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: NEAR_DEAD: seed 0, epoch 1/1: the loss is ")
    assert re.search(r"train loss \d\.\d+e\+\d+, ", printed.out)  # not twenty-three digits
