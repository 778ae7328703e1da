"""What recipes do beyond the tutorial's steps: each means what it says, and survives an interruption."""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atelier.errors import BadDataError, ConfigurationError
from tests.sealed_files import edit_sealed
from tests.training.conftest import WhenPrinted, call_trainer, in_two_processes, printed_by, trainer_in
from training.augmentation import augment, draw_changes
from training.checkpoint import load_checkpoint, load_model, load_training_state
from training.dataset import load_dataset
from training.epoch import accuracy, image_order, train_epoch
from training.epoch_steps import Split, Steps, put_aside, split_on
from training.models import LeNet, initialise, model_for
from training.optimisation import learning_rate_share
from training.recipes import RECIPES, Recipe
from training.run_record import RECORD_NAME, load_record

CPU = torch.device("cpu")
PLAIN = RECIPES["tutorial"]
MODERN = dataclasses.replace(RECIPES["modern"], num_validation_images=0)


def changed(recipe: Recipe, **fields: object) -> Recipe:
    return dataclasses.replace(recipe, **fields)  # type: ignore[arg-type] # of several types


def model_of(recipe: Recipe) -> LeNet:
    model = model_for(recipe)
    initialise(model, seed=0)
    return model


def augmented(images: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as an epoch would show them, and (N,) which are mirrored."""
    changes = draw_changes(recipe, 0, 1, [len(images)])
    return augment(images, recipe, changes), changes[0].bool()


@pytest.fixture
def split(data_dir: Path) -> Split:
    data = load_dataset(data_dir, verify=False)
    return split_on(CPU, data.train_images, data.train_labels)


# --- Images ----------------------------------------------------------------------------------------------------------


def test_nothing_asked_for_leaves_the_images_as_they_are(split: Split) -> None:
    images, is_flipped = augmented(split.images[:50], PLAIN)
    assert torch.equal(images, split.images[:50]) and not is_flipped.any()


def test_half_of_the_images_are_mirrored_and_known(split: Split) -> None:
    images, is_flipped = augmented(split.images, changed(PLAIN, flip=True))
    assert 0.4 < is_flipped.float().mean() < 0.6
    assert torch.equal(images[is_flipped], split.images[is_flipped].flip(3))
    assert torch.equal(images[~is_flipped], split.images[~is_flipped])


def test_images_are_moved_by_every_number_of_pixels_up_to_the_largest(split: Split) -> None:
    bright = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    bright[:, 0, 14, 14] = 255
    images, _ = augmented(bright, changed(PLAIN, max_shift=2))
    assert images.dtype == torch.uint8 and images.shape == bright.shape
    places = {(row, column) for _, _, row, column in images.nonzero().tolist()}
    assert places == {(row, column) for row in range(12, 17) for column in range(12, 17)}
    assert (images.flatten(1).sum(1) == 255).all()


# --- Steps -----------------------------------------------------------------------------------------------------------


def test_schedules_are_what_they_say() -> None:
    classic, cosine = RECIPES["classic"], changed(PLAIN, schedule="cosine", warmup=0.2)
    by_epoch = [learning_rate_share(classic, epoch * 10, 200) for epoch in range(20)]
    assert by_epoch == [1.0] * 2 + [0.4] * 3 + [0.2] * 3 + [0.1] * 4 + [0.02] * 8
    assert learning_rate_share(PLAIN, 7, 10) == 1.0
    shares = [learning_rate_share(cosine, step, 100) for step in range(100)]
    assert shares[:20] == sorted(shares[:20]) and shares[20:] == sorted(shares[20:], reverse=True)
    assert shares[20] == 1.0 and 0 < shares[0] < 0.1 and 0 < shares[-1] < 0.001


def run_steps(recipe: Recipe, split: Split, num_epochs: int = 1, precision: str = "fp32") -> Steps:
    steps = Steps(model_of(recipe), recipe, split, precision=precision)
    for epoch in range(1, num_epochs + 1):
        train_epoch(steps, image_order(0, epoch, len(split.images)), 0, epoch, title="", before_step=lambda: None)
    return steps


@pytest.mark.parametrize(
    "fields",
    [
        *({"momentum": 0.5}, {"weight_decay": 0.1}, {"schedule": "cosine", "warmup": 0.5}),
        *({"schedule": "steps"}, {"label_smoothing": 0.3}, {"flip": True}, {"max_shift": 3}),
        *({"average_decay": 0.9},),
    ],
)
def test_every_setting_changes_the_weights(fields: dict[str, object], split: Split) -> None:
    recipe = changed(PLAIN, num_epochs=1, learning_rate=0.01, momentum=0.1)
    wanted = changed(recipe, **fields)
    states = [run_steps(one, split).averaged.state_dict() for one in (recipe, wanted)]
    assert not torch.equal(states[0]["layers.conv1.weight"], states[1]["layers.conv1.weight"])


def test_average_follows_the_weights_slowly_and_statistics_too(split: Split) -> None:
    recipe = changed(MODERN, average_decay=0.9, num_epochs=1)
    steps = Steps(model_of(recipe), recipe, Split(images=split.images[:256], labels=split.labels[:256]))
    before = {name: tensor.clone() for name, tensor in steps.averaged.state_dict().items()}
    train_epoch(steps, torch.arange(256), 0, 1, title="", before_step=lambda: None)  # one step
    after = steps.model.state_dict()
    for name, mean in steps.averaged.state_dict().items():
        if mean.is_floating_point():
            torch.testing.assert_close(mean, 0.1 * before[name] + 0.9 * after[name])  # the first step forgets most


def test_scales_of_the_modern_ones_normalisations_stay_1(split: Split) -> None:
    model = run_steps(MODERN, split).model
    scales = [layer.weight for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(scales) == 4 and all(bool((scale == 1).all()) for scale in scales)


def test_bf16_rounds_the_forward_pass_and_keeps_weights_and_statistics_in_float32(split: Split) -> None:
    recipe = changed(MODERN, num_epochs=1)
    full, rounded = (run_steps(recipe, split, precision=precision) for precision in ("fp32", "bf16"))
    for name, weight in rounded.model.state_dict().items():
        assert weight.dtype == full.model.state_dict()[name].dtype
        if name.endswith("weight") and weight.dim() == 4:
            assert not torch.equal(weight, full.model.state_dict()[name])
            torch.testing.assert_close(weight, full.model.state_dict()[name], rtol=0.05, atol=0.02)


# --- Runs ------------------------------------------------------------------------------------------------------------


def recipe_call(data_dir: Path, run_dir: Path, *options: str) -> int:
    return call_trainer(data_dir, run_dir, "--recipe", "modern", "--set", "num_validation_images=100", *options)


@pytest.fixture(scope="module")
def modern_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of `modern`; not to be changed."""
    directory = tmp_path_factory.mktemp("modern") / "checkpoint"
    assert recipe_call(data_dir, directory) == 0
    return directory


def test_modern_run_uses_the_test_images_once(modern_run: Path) -> None:
    record = load_record(modern_run)[0]
    assert (record.recipe.name, record.num_train_images) == ("modern", 500)
    for metrics in record.metrics:
        assert metrics.val_acc is not None
        assert (metrics.test_acc is None) == (metrics.epoch == 1)
    model, _ = load_model(modern_run)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 62_000
    assert not list(modern_run.glob("state-*"))  # a finished run has nothing to resume


def test_same_seed_makes_the_same_modern_weights(modern_run: Path, data_dir: Path, run_dir: Path) -> None:
    assert recipe_call(data_dir, run_dir) == 0
    assert load_checkpoint(run_dir).sha256 == load_checkpoint(modern_run).sha256


class StopAtEpochError(Exception):
    """Ends a run in the middle of it."""


@pytest.fixture
def broken_off(data_dir: Path, run_dir: Path, when_printed: WhenPrinted) -> Path:
    """The run, ended between its two epochs."""

    def stop() -> None:
        raise StopAtEpochError

    when_printed("epoch ", stop)
    assert recipe_call(data_dir, run_dir) == os.EX_SOFTWARE
    assert load_record(run_dir)[0].completed_epochs == 1
    return run_dir


def test_interrupted_modern_run_resumes_to_the_weights_of_an_undisturbed_one(
    modern_run: Path, data_dir: Path, broken_off: Path
) -> None:
    assert any(name.startswith("optimizer.") for name in load_training_state(broken_off))
    assert recipe_call(data_dir, broken_off, "--resume") == 0
    assert load_checkpoint(broken_off).sha256 == load_checkpoint(modern_run).sha256


def test_modern_recipe_trains_in_bf16(data_dir: Path, run_dir: Path) -> None:
    assert recipe_call(data_dir, run_dir, "--epochs", "1", "--precision", "bf16") == 0
    assert load_record(run_dir)[0].precision == "bf16"


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_with_everything_that_recipes_do() -> None:
    """Batch normalisation, augmentation, momentum and averages."""
    printed_by(in_two_processes(["tests.training.shared_epoch"]))


@pytest.mark.slow
def test_two_processes_go_on_with_what_the_steps_of_one_remember(
    modern_run: Path, data_dir: Path, broken_off: Path
) -> None:
    """In float32 rounding grows fast on 500 images at these step sizes, so the weights are compared above."""
    printed = printed_by(in_two_processes(trainer_in(data_dir, broken_off, "--resume")))
    assert "has 1 of 2 epochs" in printed and printed.count("epoch  2/2:") == 1
    together, alone = load_record(broken_off)[0], load_record(modern_run)[0]
    assert together.is_complete
    assert together.metrics[0].train_loss == pytest.approx(alone.metrics[0].train_loss, rel=0.01)
    assert together.metrics[-1].train_loss == pytest.approx(alone.metrics[-1].train_loss, rel=0.2)


def test_changed_training_state_is_not_resumed_from(
    modern_run: Path, data_dir: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.checkpoint import save_checkpoint

    record = load_record(modern_run)[0]
    begun = dataclasses.replace(record, completed_epochs=1, metrics=record.metrics[:1])
    run_dir.mkdir()
    save_checkpoint(run_dir, load_checkpoint(modern_run).state_dict, begun, {"model.x": torch.zeros(3)})
    path = next(run_dir.glob("state-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*state-.* has SHA-256"):
        load_training_state(run_dir)
    edit_sealed(run_dir / RECORD_NAME, lambda document: document.update(state_sha256="../" + "0" * 61))
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*state_sha256"):
        load_training_state(run_dir)
    save_checkpoint(run_dir, load_checkpoint(modern_run).state_dict, begun)  # and none at all
    assert recipe_call(data_dir, run_dir, "--resume") == os.EX_DATAERR
    assert "names no training state to resume from" in capsys.readouterr().err


def test_validation_images_are_the_same_for_all_and_none_is_trained_on(split: Split) -> None:
    rest, chosen = put_aside(split, 100)
    again = put_aside(split, 100)[1]
    assert chosen is not None and again is not None
    assert torch.equal(chosen.images, again.images) and len(rest.images) == 500
    both = torch.cat([rest.images, chosen.images]).flatten(1).numpy()
    assert len(np.unique(both, axis=0)) == len(np.unique(split.images.flatten(1).numpy(), axis=0)) == 600
    assert put_aside(split, 0) == (split, None)
    with pytest.raises(ConfigurationError, match="BAD_RECIPE: num_validation_images is 600, of 600"):
        put_aside(split, 600)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"average_decay": math.nan}, "average_decay"),
        ({"weight_decay": math.inf}, "weight_decay"),
        ({"max_shift": 28}, "max_shift .* is 28 .*0 to 27"),
        ({"flip": 1}, "flip"),
        ({"schedule": "linear"}, "schedule .*constant, steps, cosine"),
    ],
)
def test_settings_out_of_bounds_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=f"BAD_RECIPE: {complaint}"):
        changed(PLAIN, **fields)


def test_last_batch_of_one_image_is_refused_where_batches_are_normalised(
    data_dir: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--set", "batch_size=11", "--set", "num_validation_images=104")  # 45 times 11 are 495
    assert call_trainer(data_dir, run_dir, "--recipe", "modern", *sizes) == os.EX_CONFIG
    assert "BAD_RECIPE: batch_size 11 leaves a last batch of 1 of 496 images" in capsys.readouterr().err


@pytest.mark.slow
def test_classic_recipe_trains_on_small_batches_and_learns(
    data_dir: Path, run_dir: Path, train: Callable[..., int]
) -> None:
    assert train("--recipe", "classic", "--epochs", "20") == 0
    model, checkpoint = load_model(run_dir)
    assert checkpoint.recipe.architecture == "classic"
    data = load_dataset(data_dir, verify=False)
    assert accuracy(model, split_on(CPU, data.test_images, data.test_labels), 100) > 0.9
