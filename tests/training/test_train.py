"""The command: what it leaves behind, what it says, and what it refuses."""

import csv
import dataclasses
import itertools
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atelier.errors import BadDataError, ConfigurationError, UsageError
from atelier.program import run_program
from tests.idx_files import write_idx_files
from tests.sealed_files import edit_sealed
from tests.training.conftest import call_trainer
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.dataset import load_dataset
from training.device import choose_device
from training.epoch import image_order, train_epoch
from training.epoch_steps import Steps, split_on
from training.figures import CURVES_NAME, KERNELS_NAME
from training.idx_files import FILES
from training.models import LeNet5, initialise
from training.recipes import RECIPES, Recipe
from training.run import train_seeds
from training.run_log import HISTORY_NAME
from training.run_record import RECORD_NAME, differences, load_record
from training.train import main
from training.trainer_process import StopRequest

Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished_four(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights after four epochs."""
    directory = tmp_path_factory.mktemp("four") / "checkpoint"
    assert call_trainer(data_dir, directory, "--epochs", "4") == 0
    return digest_of(directory)


@pytest.fixture
def interrupted_dir(trained_dir: Path) -> Path:
    """The finished run, as if it had been stopped after two epochs of four."""
    path = trained_dir / RECORD_NAME
    edit_sealed(path, lambda document: document["recipe"].update(num_epochs=4))
    return trained_dir


def digest_of(directory: Path) -> str:
    return load_record(directory)[1]


# --- What a run leaves behind ----------------------------------------------------------------------------------------


def test_run_ends_with_the_tutorials_lines(train: Train, capsys: Capture) -> None:
    assert train() == 0
    captured = capsys.readouterr()
    *_, result, step_rate, wall_rate = captured.out.splitlines()
    assert [words.rsplit(" ", 1)[0] for words in result.split(", ")] == ["train loss", "train acc", "test acc"]
    assert all(len(words.rsplit(".", 1)[1]) == 3 for words in result.split(", "))
    assert step_rate.endswith(" examples/sec on cpu (training steps alone, as the tutorial counts)")
    assert wall_rate.endswith(" examples/sec on cpu (wall clock, with data loading and evaluation)")
    assert float(step_rate.split()[0]) > float(wall_rate.split()[0]) > 0
    assert "epoch  1/2: train loss" in captured.out and "epoch  2/2: train loss" in captured.out
    assert captured.err.startswith("warning: UNVERIFIED_DATA") and captured.err.count("\n") == 1  # no bar: no terminal


def test_same_seed_makes_the_same_weights_and_another_seed_others(
    finished_run: Path, train: Train, run_dir: Path
) -> None:
    assert train() == 0
    assert digest_of(run_dir) == digest_of(finished_run)
    assert train("--seed", "1") == 0
    assert digest_of(run_dir) != digest_of(finished_run)


def test_run_is_one_epoch_after_another_each_in_its_own_order(finished_run: Path, data_dir: Path) -> None:
    data = load_dataset(data_dir, verify=False)
    split = split_on(torch.device("cpu"), data.train_images, data.train_labels)
    model = LeNet5()
    initialise(model, seed=0)
    steps = Steps(model, RECIPES["tutorial"], split)
    for epoch in (1, 2):
        train_epoch(steps, image_order(0, epoch, 600), 0, epoch, title="", before_step=lambda: None)
    weights = load_checkpoint(finished_run).state_dict
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_record_says_what_was_trained_on_what(finished_run: Path, data_dir: Path) -> None:
    record = load_record(finished_run).record
    assert record.recipe == dataclasses.replace(RECIPES["tutorial"], num_epochs=2)
    assert (record.seed, record.device, record.num_threads, record.num_train_images) == (0, "cpu", 1, 600)
    assert record.dataset_digests == load_dataset(data_dir, verify=False).digests and not record.dataset_verified
    assert [metrics.epoch for metrics in record.metrics] == [1, 2]
    assert record.versions["torch"] == torch.__version__.split("+")[0]
    assert record.created.endswith("+00:00") and record.hardware
    assert record.wall_seconds > sum(metrics.seconds for metrics in record.metrics)
    assert all(metrics.seconds > metrics.step_seconds > 0 for metrics in record.metrics)


def test_history_holds_one_line_per_epoch(finished_run: Path) -> None:
    with (finished_run / HISTORY_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, metrics in zip(rows, load_record(finished_run)[0].metrics, strict=True):
        assert list(row) == ["epoch", "train_loss", "train_acc", "val_acc", "test_acc", "seconds"]
        assert row["val_acc"] == ""
        assert int(row["epoch"]) == metrics.epoch
        for name in ("train_loss", "train_acc", "test_acc"):
            assert float(row[name]) == getattr(metrics, name)


def test_curves_are_a_picture_of_readable_size(finished_run: Path) -> None:
    png = (finished_run / CURVES_NAME).read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (840, 504)  # width, height


@pytest.mark.fault("T17")
@pytest.mark.parametrize("name", [HISTORY_NAME, CURVES_NAME, KERNELS_NAME])
def test_history_that_cannot_be_written_costs_one_warning_and_not_the_run(
    finished_run: Path, run_dir: Path, train: Train, capsys: Capture, name: str
) -> None:
    (run_dir / name).mkdir(parents=True)
    assert train(draws=name != HISTORY_NAME) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == ["UNVERIFIED_DATA", "NOT_WRITTEN"]
    assert digest_of(run_dir) == digest_of(finished_run)


def test_several_seeds_report_their_spread_and_keep_the_first_as_the_result(
    finished_run: Path, run_dir: Path, train: Train, capsys: Capture
) -> None:
    assert train("--seeds", "2") == 0
    assert digest_of(run_dir) == digest_of(finished_run)
    records = [load_record(directory)[0] for directory in (run_dir, run_dir / "seed-1")]
    assert [record.seed for record in records] == [0, 1]
    losses = [record.metrics[-1].train_loss for record in records]
    document = json.loads((run_dir / "seeds.json").read_bytes())
    assert document["mean"]["train_loss"] == pytest.approx(sum(losses) / 2)
    assert document["standard_deviation"]["train_loss"] == pytest.approx(statistics.stdev(losses))
    lines = capsys.readouterr().out.splitlines()
    table = [line.replace("|", " ").split() for line in (lines[-10], *lines[-8:-3])]
    assert [row[0] for row in table] == ["seed", "0", "1", "mean", "95", "tutorial"]
    assert table[-1][1:] == ["0.347", "0.872", "0.852"]
    assert f"{sum(losses) / 2:.4f} ± {statistics.stdev(losses):.4f}" in lines[-6]
    half = 12.706 * statistics.stdev(losses) / math.sqrt(2)  # Student's t for two runs
    low, high = document["interval_95"]["train_loss"]
    assert (low, high) == pytest.approx((sum(losses) / 2 - half, sum(losses) / 2 + half))
    assert f"{low:.4f} to {high:.4f}" in lines[-5]


# --- A run that is there already -------------------------------------------------------------------------------------


def test_finished_run_is_not_trained_again_unless_asked(trained_dir: Path, train: Train, capsys: Capture) -> None:
    before = (trained_dir / RECORD_NAME).read_bytes()
    assert train() == 0
    assert "seed 0 is trained already" in capsys.readouterr().out
    assert train("--resume") == 0
    assert (trained_dir / RECORD_NAME).read_bytes() == before
    assert train("--again") == 0
    assert (trained_dir / RECORD_NAME).read_bytes() != before  # other times
    assert json.loads(before)["sha256"] == digest_of(trained_dir)


def test_finished_run_on_the_real_data_is_recognised_without_data_or_torch(
    trained_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)  # which would be looked at
    path = trained_dir / RECORD_NAME
    digests = {file.name: file.sha256 for file in FILES}
    edit_sealed(path, lambda document: document.update(dataset_digests=digests))
    options = ["--epochs", "2", "--checkpoint-dir", str(trained_dir)]
    code = f"import sys; from training.train import main; sys.exit(main({options!r}) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is trained already (--again trains it anew)" in done.stdout and "train loss" in done.stdout
    assert run_program(main, [*options, "--data-dir", "/nowhere"]) == os.EX_NOINPUT
    if not torch.cuda.is_available():
        assert run_program(main, [*options, "--device", "cuda"]) == os.EX_UNAVAILABLE


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    interrupted_dir: Path, data_dir: Path, tmp_path: Path, train: Train, capsys: Capture
) -> None:
    assert train("--epochs", "4", "--resume") == 0
    assert "has 2 of 4 epochs" in capsys.readouterr().out
    assert call_trainer(data_dir, tmp_path / "uninterrupted", "--epochs", "4") == 0
    assert digest_of(interrupted_dir) == digest_of(tmp_path / "uninterrupted")
    assert [metrics.epoch for metrics in load_record(interrupted_dir)[0].metrics] == [1, 2, 3, 4]


@pytest.mark.fault("T16")
@pytest.mark.parametrize("days", [-1, 1, 3650])
def test_clock_that_jumps_changes_no_weight_and_no_choice_of_a_checkpoint(
    interrupted_dir: Path, train: Train, finished_four: str, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    real, jumps = time.time, itertools.cycle((0, days * 86_400))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    for number, path in enumerate(sorted(interrupted_dir.iterdir())):
        os.utime(path, times=(real() + days * 86_400 + number,) * 2)
    assert train("--epochs", "4", "--resume") == 0
    assert digest_of(interrupted_dir) == finished_four


def test_interrupted_run_starts_anew_without_resume_and_says_that_it_could_go_on(
    interrupted_dir: Path, train: Train, capsys: Capture
) -> None:
    assert train("--epochs", "4") == 0
    captured = capsys.readouterr().out
    assert "starting anew" in captured and "--resume would go on from there" in captured
    assert "epoch  1/4" in captured
    assert load_record(interrupted_dir)[0].is_complete


@pytest.mark.fault("T11")
@pytest.mark.parametrize(
    ("options", "difference"),
    [(["--seed", "1"], "seed 1 != 0"), (["--epochs", "1"], "num_epochs 1 != 4, and 2 epochs are done already")],
)
def test_run_of_another_configuration_is_not_resumed(
    interrupted_dir: Path, train: Train, capsys: Capture, options: list[str], difference: str
) -> None:
    before = (interrupted_dir / RECORD_NAME).read_bytes()
    assert train("--epochs", "4", *options, "--resume") == os.EX_CONFIG
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: CONFIG_MISMATCH: cannot resume") and difference in error
    assert (interrupted_dir / RECORD_NAME).read_bytes() == before


@pytest.mark.fault("T11")
def test_run_on_other_data_is_not_resumed(interrupted_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    write_idx_files(tmp_path / "other", seed=1)
    assert call_trainer(tmp_path / "other", interrupted_dir, "--epochs", "4", "--resume") == os.EX_CONFIG
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


OTHER_VALUES: dict[str, object] = {
    **{"name": "other", "architecture": "classic", "activation": "gelu", "pooling": "max"},
    **{"padding_mode": "replicate", "num_epochs": 9, "batch_size": 128, "learning_rate": 0.1},
    **{"momentum": 0.9, "weight_decay": 1e-3, "schedule": "cosine", "warmup": 0.1},
    **{"label_smoothing": 0.1, "flip": True, "max_shift": 2, "average_decay": 0.9},
    "num_validation_images": 100,
}


def test_no_field_of_the_recipe_is_forgotten_here() -> None:
    assert OTHER_VALUES.keys() == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.fault("T11")
@pytest.mark.parametrize(("field", "value"), OTHER_VALUES.items())
def test_every_field_of_the_recipe_is_part_of_the_configuration(finished_run: Path, field: str, value: object) -> None:
    record = load_record(finished_run).record
    changed = dataclasses.replace(record.recipe, **{field: value})  # type: ignore[arg-type] # of several types
    found = differences(record, changed, record.seed, record.dataset_digests)
    assert found == [f"{field} {value} != {getattr(record.recipe, field)}"]


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.fault("T10")
def test_run_that_diverges_names_the_step_and_keeps_the_last_good_checkpoint(trained_dir: Path, data_dir: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained_dir.iterdir() if path.is_file()}
    recipe = dataclasses.replace(RECIPES["tutorial"], learning_rate=1e38)
    config = TrainConfig(recipe=recipe, device="cpu", threads=1, again=True, checkpoint_dir=trained_dir)
    complaint = r"DIVERGED: seed 0, epoch 1/10, step \d of 3: .* at learning rate 1e\+38"
    with StopRequest() as stop, pytest.raises(BadDataError, match=complaint):
        train_seeds(config, load_dataset(data_dir, verify=False), stop, started=0.0)
    assert {path.name: path.read_bytes() for path in trained_dir.iterdir() if path.is_file()} == before


@pytest.mark.fault("O3")
def test_gpu_that_is_not_there_is_an_error_and_not_replaced(train: Train, run_dir: Path, capsys: Capture) -> None:
    assert train("--device", "cuda:99") == os.EX_UNAVAILABLE
    assert "error: NO_GPU: asked for cuda:99, but torch" in capsys.readouterr().err
    assert not (run_dir / RECORD_NAME).exists()


@pytest.mark.parametrize(("wanted", "local_rank", "index"), [("cuda:1", 0, 1), ("auto", 1, 1), ("cuda", 0, 0)])
def test_the_chosen_gpu_is_where_streams_and_graphs_are_made(
    wanted: str, local_rank: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    assert choose_device(wanted, local_rank) == torch.device("cuda", index)
    assert used == [index]


@pytest.mark.fault("T5")
def test_bad_data_end_the_command_with_exit_code_65_before_any_training(
    data_dir: Path, run_dir: Path, capsys: Capture
) -> None:
    options = ["--data-dir", str(data_dir), "--checkpoint-dir", str(run_dir)]
    assert run_program(main, options) == os.EX_DATAERR
    assert capsys.readouterr().err.startswith(f"error: BAD_DATASET: {data_dir}/train-images-idx3-ubyte")


@pytest.mark.parametrize(
    "settings",
    [
        {"resume": True, "again": True},
        {"device": "gpu"},
        {"device": "cuda:-1"},
        {"seed": -1},
        {"seeds": 0},
        {"threads": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="BAD_OPTIONS"):
        TrainConfig(recipe=RECIPES["tutorial"], **settings)  # type: ignore[arg-type] # of several types


@pytest.mark.parametrize("field", ["num_epochs", "batch_size", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_recipe_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"BAD_RECIPE: {field} of recipe 'tutorial' is {value}"):
        dataclasses.replace(RECIPES["tutorial"], **{field: value})  # type: ignore[arg-type] # of several types


def test_any_field_of_the_recipe_can_be_set_and_is_recorded(train: Train, run_dir: Path) -> None:
    settings = ("flip=true", "max_shift=1", "weight_decay=1e-3", "learning_rate=0.01")
    assert train(*(part for setting in settings for part in ("--set", setting))) == 0
    recipe = load_record(run_dir)[0].recipe
    assert (recipe.flip, recipe.max_shift, recipe.weight_decay, recipe.learning_rate) == (True, 1, 1e-3, 0.01)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("depth=3", "a recipe has no 'depth' (it has architecture, activation"),
        ("name=mine", "a recipe has no 'name'"),
        ("max_shift=8.5", "'8.5' is no value of max_shift (give a whole number)"),
        ("flip=yes", "'yes' is no value of flip (give true or false)"),
        ("momentum", "'' is no value of momentum (give a number)"),
    ],
)
def test_setting_that_no_recipe_has_is_refused(train: Train, capsys: Capture, setting: str, complaint: str) -> None:
    assert train("--set", setting) == 2
    assert f"error: BAD_OPTIONS: --set {setting}: {complaint}" in capsys.readouterr().err


def test_summary_needs_neither_data_nor_a_run(capsys: Capture) -> None:
    assert run_program(main, ["--summary"]) == 0
    assert "61,706" in capsys.readouterr().out


# --- On a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_same_seed_makes_the_same_weights_on_a_gpu(train: Train, run_dir: Path) -> None:
    assert train("--device", "cuda") == 0
    first = digest_of(run_dir)
    assert load_record(run_dir)[0].device == "cuda:0"
    assert train("--device", "cuda", "--again") == 0
    assert digest_of(run_dir) == first
