"""What recipes do beyond the tutorial's steps: each means what it says, and survives an interruption."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atelier.errors import BadDataError, ConfigurationError
from tests.training.conftest import call_trainer, torchrun, train_in_two_processes
from training.augmentation import augment, draw_changes
from training.checkpoint import load_checkpoint, load_model, load_training_state
from training.dataset import load_dataset
from training.epoch import Split, accuracy, all_logits, image_order, split_on, train_epoch
from training.model import LeNet, initialise, model_for
from training.optimisation import distillation_loss, learning_rate_share
from training.recipes import RECIPES, Recipe
from training.record import RECORD_NAME, load_record
from training.steps import Steps
from training.validation import put_aside

CPU = torch.device("cpu")
PLAIN = RECIPES["tutorial"]
MODERN = dataclasses.replace(RECIPES["modern"], num_validation_images=0)
TAUGHT = ("--set", "teacher=teacher", "--set", "teacher_epochs=2", "--set", "distillation_weight=0.9")


def changed(recipe: Recipe, **fields: object) -> Recipe:
    return dataclasses.replace(recipe, **fields)  # type: ignore[arg-type] # of several types


def model_of(recipe: Recipe) -> LeNet:
    model = model_for(recipe)
    initialise(model, seed=0)
    return model


def augmented(images: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as an epoch would show them, and (N,) which are mirrored."""
    changes = draw_changes(recipe, 0, 1, [len(images)], 28)
    return augment(images, recipe, changes), changes.is_flipped


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


def test_cutout_puts_one_square_of_background_on_each_image() -> None:
    white = torch.full((500, 1, 28, 28), 255, dtype=torch.uint8)
    images, _ = augmented(white, changed(PLAIN, cutout=8))
    areas = (images == 0).flatten(1).sum(1)  # (500,): smaller where the square hangs over the border
    assert areas.max() == 64 and areas.min() >= 16
    rows, columns = (images == 0).any(3).flatten(1).sum(1), (images == 0).any(2).flatten(1).sum(1)
    assert torch.equal(rows * columns, areas)  # a rectangle


# --- Steps -----------------------------------------------------------------------------------------------------------


def test_schedules_are_what_they_say() -> None:
    classic, cosine = RECIPES["classic"], changed(PLAIN, schedule="cosine", warmup=0.2)
    by_epoch = [learning_rate_share(classic, epoch * 10, 200) for epoch in range(20)]
    assert by_epoch == [1.0] * 2 + [0.4] * 3 + [0.2] * 3 + [0.1] * 4 + [0.02] * 8
    assert learning_rate_share(PLAIN, 7, 10) == 1.0
    shares = [learning_rate_share(cosine, step, 100) for step in range(100)]
    assert shares[:20] == sorted(shares[:20]) and shares[20:] == sorted(shares[20:], reverse=True)
    assert shares[20] == 1.0 and 0 < shares[0] < 0.1 and 0 < shares[-1] < 0.001


def test_a_teacher_is_learnt_from_where_its_answers_differ() -> None:
    logits = torch.randn(8, 10, requires_grad=True)
    assert distillation_loss(logits, logits.detach(), 3.0, 8).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(8, 10)
    loss = distillation_loss(logits, other, 2.0, 8)
    ours, theirs = (logits / 2).log_softmax(1), (other / 2).softmax(1)
    assert loss.item() == pytest.approx((4 * theirs * (theirs.log() - ours)).sum(1).mean().item(), rel=1e-4)


def run_steps(
    recipe: Recipe, split: Split, num_epochs: int = 1, logits: torch.Tensor | None = None, precision: str = "fp32"
) -> Steps:
    steps = Steps(model_of(recipe), recipe, split, logits, precision=precision)
    for epoch in range(1, num_epochs + 1):
        train_epoch(steps, image_order(0, epoch, len(split.images)), 0, epoch, title="", before_step=lambda: None)
    return steps


@pytest.mark.parametrize(
    "fields",
    [
        *({"optimizer": "adamw"}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"schedule": "cosine", "warmup": 0.5}),
        *({"schedule": "steps"}, {"label_smoothing": 0.3}, {"flip": True}, {"max_shift": 3}, {"cutout": 9}),
        *({"average_decay": 0.9},),
    ],
)
def test_every_setting_changes_the_weights(fields: dict[str, object], split: Split) -> None:
    recipe = changed(PLAIN, num_epochs=1, learning_rate=0.01, momentum=0.1)
    wanted = changed(recipe, **fields)
    states = [run_steps(one, split).averaged.state_dict() for one in (recipe, wanted)]
    assert not torch.equal(states[0]["layers.conv1.weight"], states[1]["layers.conv1.weight"])


def test_mirrored_images_are_taught_by_the_answers_to_mirrored_images(split: Split) -> None:
    """A teacher that says class 0 of images as they are, and class 1 of mirrored ones."""
    recipe = changed(
        MODERN,
        num_epochs=20,
        learning_rate=0.1,
        flip=True,
        max_shift=0,
        teacher="teacher",
        teacher_epochs=1,
        distillation_weight=0.99,
    )
    logits = torch.zeros(2, len(split.images), 10)
    logits[0, :, 0] = logits[1, :, 1] = 20.0
    one_sided = split.images.clone()
    one_sided[..., 14:] = 0  # so that which is which can be seen
    learnt = run_steps(recipe, Split(images=one_sided, labels=split.labels), 20, logits).model
    assert (all_logits(learnt, one_sided).argmax(1) == 0).float().mean() > 0.9
    assert (all_logits(learnt, one_sided.flip(3)).argmax(1) == 1).float().mean() > 0.9


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
    return call_trainer(data_dir, run_dir, "--recipe", "modern", *TAUGHT, "--validation-images", "100", *options)


@pytest.fixture(scope="module")
def modern_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of `modern`, teacher and all; not to be changed."""
    directory = tmp_path_factory.mktemp("modern") / "checkpoint"
    assert recipe_call(data_dir, directory) == 0
    return directory


def test_modern_run_trains_a_teacher_first_and_uses_the_test_images_once(modern_run: Path) -> None:
    record, teacher = load_record(modern_run)[0], load_record(modern_run / "teacher")[0]
    assert (record.recipe.name, record.num_train_images) == ("modern", 500)
    assert (teacher.recipe.name, teacher.recipe.num_epochs, teacher.num_train_images) == ("teacher", 2, 500)
    for metrics in (*record.metrics, *teacher.metrics):
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


def stop_before_the_second_epoch(patch: pytest.MonkeyPatch) -> None:
    """Of `modern`; its teacher is trained to the end."""
    original = Steps.begin

    def stop_in_second_epoch(self: Steps, order: torch.Tensor, seed: int, epoch: int) -> None:
        if epoch == 2 and self.recipe.name == "modern":
            raise StopAtEpochError
        original(self, order, seed, epoch)

    patch.setattr(Steps, "begin", stop_in_second_epoch)


def test_interrupted_modern_run_resumes_to_the_weights_of_an_undisturbed_one(
    modern_run: Path, data_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before_the_second_epoch(patch)
        assert recipe_call(data_dir, run_dir) == os.EX_SOFTWARE
    assert load_record(run_dir)[0].completed_epochs == 1
    assert any(name.startswith("optimizer.") for name in load_training_state(run_dir))
    assert recipe_call(data_dir, run_dir, "--resume") == 0
    assert load_checkpoint(run_dir).sha256 == load_checkpoint(modern_run).sha256


def test_modern_recipe_trains_in_bf16_its_teacher_too(data_dir: Path, run_dir: Path) -> None:
    assert recipe_call(data_dir, run_dir, "--epochs", "1", "--precision", "bf16") == 0
    assert {load_record(directory)[0].precision for directory in (run_dir, run_dir / "teacher")} == {"bf16"}


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_with_everything_that_recipes_do() -> None:
    """Batch normalisation, augmentation, a teacher, momentum and averages."""
    done = torchrun("tests.training.shared_epoch")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_train_a_teacher_and_go_on_where_one_stopped(
    modern_run: Path, data_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 rounding grows fast on 500 images at these step sizes, so the weights are compared above."""
    with monkeypatch.context() as patch:
        stop_before_the_second_epoch(patch)
        assert recipe_call(data_dir, run_dir) == os.EX_SOFTWARE
    shutil.rmtree(run_dir / "teacher")
    recipe = ("--recipe", "modern", *TAUGHT, "--validation-images", "100", "--epochs", "2")
    both = train_in_two_processes(data_dir, run_dir, *recipe, "--resume")
    assert both.returncode == 0, both.stderr
    assert "first the teacher" in both.stdout and "has 1 of 2 epochs" in both.stdout
    assert both.stdout.count("epoch  2/2:") == 2  # the teacher's and the model's: one of the processes speaks
    for directory in ("teacher", "."):
        together, alone = load_record(run_dir / directory)[0], load_record(modern_run / directory)[0]
        assert (together.num_processes, together.is_complete) == (2 if directory == "teacher" else 1, True)
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
    document = json.loads((run_dir / RECORD_NAME).read_bytes())
    (run_dir / RECORD_NAME).write_text(json.dumps(document | {"state_sha256": "../" + "0" * 61}))
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*state_sha256"):
        load_training_state(run_dir)
    save_checkpoint(run_dir, load_checkpoint(modern_run).state_dict, begun)  # and none at all
    (run_dir / "teacher").mkdir()
    for file in (modern_run / "teacher").iterdir():
        if file.is_file():
            (run_dir / "teacher" / file.name).write_bytes(file.read_bytes())
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
        ({"cutout": -1}, "cutout"),
        ({"flip": 1}, "flip"),
        ({"schedule": "linear"}, "schedule .*constant, steps, cosine"),
        ({"teacher": "teacher"}, "teacher_epochs .* above 0 with a teacher"),
        ({"distillation_weight": 0.5}, "distillation_weight .* above 0 with a teacher, 0 without"),
    ],
)
def test_settings_out_of_bounds_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=f"BAD_RECIPE: {complaint}"):
        changed(PLAIN, **fields)


def test_last_batch_of_one_image_is_refused_where_batches_are_normalised(
    data_dir: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch_size = ("--set", "batch_size=11")  # 45 times 11 are 495, and one image is left
    assert (
        call_trainer(data_dir, run_dir, "--recipe", "modern", "--validation-images", "104", *batch_size) == os.EX_CONFIG
    )
    assert "BAD_RECIPE: batch_size 11 leaves a last batch of 1 of 496 images" in capsys.readouterr().err


def test_classic_recipe_trains_on_small_batches_and_learns(
    data_dir: Path, run_dir: Path, train: Callable[..., int]
) -> None:
    assert train("--recipe", "classic", "--epochs", "20") == 0
    model, checkpoint = load_model(run_dir)
    assert checkpoint.architecture == "classic"
    data = load_dataset(data_dir, verify=False)
    assert accuracy(model, split_on(CPU, data.test_images, data.test_labels), 100) > 0.9
