"""The arithmetic of training: the layers, the tutorial's way of counting, the order of the images."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from training.dataset import load_dataset
from training.device import make_deterministic
from training.epoch import accuracy, image_order, train_epoch
from training.epoch_steps import Split, Steps, split_on
from training.model_cost import summarize, table_from
from training.models import LeNet5, initialise
from training.recipes import RECIPES

CPU = torch.device("cpu")
SEED, EPOCH = 3, 1


@pytest.fixture
def split(data_dir: Path) -> Split:
    data = load_dataset(data_dir, verify=False)
    return split_on(CPU, data.train_images, data.train_labels)


def test_layers_are_the_tutorials_in_its_order() -> None:
    layers = summarize(LeNet5())
    convolution = ["Conv2d", "Sigmoid", "AvgPool2d", "Conv2d", "AvgPool2d", "Flatten"]
    assert [layer.kind for layer in layers] == [*convolution, *["Linear", "Sigmoid"] * 2, "Linear"]
    shapes = [(1, 6, 28, 28)] * 2 + [(1, 6, 14, 14), (1, 16, 10, 10), (1, 16, 5, 5), (1, 400)]
    assert [layer.output_shape for layer in layers] == [*shapes, (1, 120), (1, 120), (1, 84), (1, 84), (1, 10)]


def test_summary_totals_are_what_the_shapes_imply() -> None:
    layers = summarize(LeNet5())
    assert sum(layer.num_parameters for layer in layers) == sum(p.numel() for p in LeNet5().parameters()) == 61_706
    assert sum(layer.num_multiply_adds for layer in layers) == 416_520
    assert table_from(layers).splitlines()[-1].replace("|", " ").split() == ["total", "61,706", "416,520"]


def test_weights_are_xavier_uniform_and_depend_on_the_seed_alone() -> None:
    torch.rand(7)  # whatever was drawn before
    model, twin, other = LeNet5(), LeNet5(), LeNet5()
    for candidate, seed in ((model, 0), (twin, 0), (other, 1)):
        initialise(candidate, seed)
    for ours, theirs, others in zip(model.parameters(), twin.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, others)
    bound = math.sqrt(6 / (400 + 120))
    weight = model.layers.get_parameter("linear1.weight")
    assert 0.99 * bound < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_order_shows_every_image_once_and_depends_on_seed_and_epoch() -> None:
    order = image_order(0, 1, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, image_order(0, 1, 1000))
    assert not torch.equal(order, image_order(0, 2, 1000))
    assert not torch.equal(order, image_order(1, 1, 1000))
    assert not torch.equal(image_order(1, 2, 1000), image_order(2, 1, 1000))


def train_as_the_tutorial_does(model: nn.Module, split: Split) -> tuple[float, float]:
    """`train_epoch_ch6` and its Accumulator, one image after the other from a list: slow, and plain to see."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
    loss_sum, num_correct, num_images = 0.0, 0, 0
    order = image_order(SEED, EPOCH, len(split.images)).tolist()
    for start in range(0, len(order), 256):
        batch = order[start : start + 256]
        x = torch.stack([split.images[index] for index in batch])  # (B, 1, 28, 28)
        y = torch.stack([split.labels[index] for index in batch])  # (B,)
        optimizer.zero_grad()
        y_hat = model(x)  # (B, 10)
        loss = nn.CrossEntropyLoss()(y_hat, y)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(batch)
        num_correct += sum(int(row.argmax()) == int(label) for row, label in zip(y_hat, y, strict=True))
        num_images += len(batch)
    return loss_sum / num_images, num_correct / num_images


def test_metrics_and_weights_are_those_of_the_tutorials_own_loop(split: Split) -> None:
    make_deterministic(1)
    ours, theirs = LeNet5(), LeNet5()
    initialise(ours, SEED)
    initialise(theirs, SEED)
    order = image_order(SEED, EPOCH, len(split.images))
    steps = Steps(ours, RECIPES["tutorial"], split)
    result = train_epoch(steps, order, SEED, EPOCH, title="", before_step=lambda: None)
    loss, acc = train_as_the_tutorial_does(theirs, split)
    assert len(result.step_losses) == 3  # 256 + 256 + 88 images: the last batch counts by its size
    assert result.loss == pytest.approx(loss, rel=1e-6)  # ours is computed by blocks: other last bits
    assert result.acc == acc
    for weight, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-6)


def test_algorithms_that_may_differ_from_run_to_run_are_ruled_out() -> None:
    torch.use_deterministic_algorithms(False)
    make_deterministic(1)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.get_num_threads() == 1


def test_accuracy_counts_every_image_once_whatever_the_batch_size(split: Split) -> None:
    model = LeNet5()
    initialise(model, SEED)
    labels = model.eval()(split.images).argmax(dim=1)  # (N,): what the model says
    labels[::4] = (labels[::4] + 1) % 10  # wrong for every fourth of the 600
    marked = Split(images=split.images, labels=labels)
    assert [accuracy(model, marked, batch_size) for batch_size in (1, 7, 256, 600, 1000)] == [0.75] * 5
