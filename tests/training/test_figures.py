"""What a run leaves to look at: pictures, accuracy per class, and event files for TensorBoard."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.checkpoint import load_model
from training.dataset import CLASSES, load_dataset
from training.epoch import accuracy
from training.epoch_steps import split_on
from training.figures import CLASSES_NAME, CONFUSION_NAME, CURVES_NAME, KERNELS_NAME, MISTAKES_NAME, confusion_matrix
from training.run_log import EVENTS_NAME
from training.run_record import load_record

Train = Callable[..., int]


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / EVENTS_NAME))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_confusion_counts_labels_in_rows_and_answers_in_columns() -> None:
    counts = confusion_matrix(torch.tensor([3, 3, 9, 0]), torch.tensor([3, 4, 4, 0]))
    assert counts.shape == (10, 10) and counts.sum() == 4
    assert counts[[3, 4, 4, 0], [3, 3, 9, 0]].tolist() == [1, 1, 1, 1]


def test_accuracies_per_class_add_up_to_the_whole(finished_run: Path, data_dir: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((finished_run / CLASSES_NAME).read_text())))
    assert [row["name"] for row in rows] == list(CLASSES)
    model, _ = load_model(finished_run)
    data = load_dataset(data_dir, verify=False)
    test = split_on(torch.device("cpu"), data.test_images, data.test_labels)
    num_right, num_images = sum(int(row["right"]) for row in rows), sum(int(row["images"]) for row in rows)
    assert num_images == 100 and num_right / num_images == accuracy(model, test, 256)
    for row in rows:
        assert float(row["accuracy"]) == pytest.approx(int(row["right"]) / int(row["images"]))


def test_run_prints_the_accuracy_of_every_class(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test acc per class: "))
    assert all(name in line for name in CLASSES)


def test_without_figures_all_the_rest_is_there(finished_run: Path, run_dir: Path, train: Train) -> None:
    assert train() == 0  # --no-figures
    left_out = {path.name for path in finished_run.iterdir()} - {path.name for path in run_dir.iterdir()}
    assert left_out == {CONFUSION_NAME, MISTAKES_NAME, KERNELS_NAME, CURVES_NAME}


@pytest.mark.parametrize("name", [CONFUSION_NAME, MISTAKES_NAME, KERNELS_NAME])
def test_pictures_show_something_at_a_readable_size(finished_run: Path, name: str) -> None:
    with Image.open(finished_run / name) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] >= 800 and pixels.shape[0] >= 150
    assert len(np.unique(pixels)) > 20 and pixels.std() > 10


def test_event_files_hold_the_history_and_every_step(finished_run: Path) -> None:
    metrics = load_record(finished_run)[0].metrics
    for name in ("train_loss", "train_acc", "test_acc"):
        found = scalars(finished_run, f"epoch/{name}")
        assert [epoch for epoch, _ in found] == [epoch.epoch for epoch in metrics]
        assert [value for _, value in found] == pytest.approx([getattr(epoch, name) for epoch in metrics])
    steps = scalars(finished_run, "step/train_loss")
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]  # of 600 images, in two epochs


def test_new_run_in_the_place_of_another_shows_no_curves_of_that_one(trained_dir: Path, train: Train) -> None:
    assert len(scalars(trained_dir, "epoch/train_loss")) == 2
    assert train("--again", "--epochs", "1") == 0
    assert [epoch for epoch, _ in scalars(trained_dir, "epoch/train_loss")] == [1]
    assert len(list((trained_dir / EVENTS_NAME).iterdir())) == 1


@pytest.mark.fault("T17")
def test_event_files_that_cannot_be_written_cost_a_warning_and_not_the_run(
    run_dir: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.mkdir()
    (run_dir / EVENTS_NAME).write_text("a file")
    assert train() == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "NOT_WRITTEN" in line]
    assert len(warnings) == 1 and EVENTS_NAME in warnings[0]
    assert load_record(run_dir)[0].is_complete
