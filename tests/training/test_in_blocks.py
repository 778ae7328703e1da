"""LeNet-5 by blocks of pixels is LeNet-5: logits, gradients, and what it may stand in for."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from training.models import ClassicLeNet5, LeNet5, initialise
from training.models.in_blocks import LeNet5InBlocks, fastest_form

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, 10, (5,), generator=GENERATOR)


@pytest.mark.parametrize("activation", ["sigmoid", "scaled_tanh", "gelu"])
def test_logits_and_gradients_are_the_models_own(activation: str) -> None:
    model = LeNet5(activation)
    initialise(model, 0)
    twin = copy.deepcopy(model).double()
    model.double()
    wanted, found = model(IMAGES), LeNet5InBlocks(twin)(IMAGES)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    cross_entropy(wanted, LABELS).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    cross_entropy(found, LABELS).backward()  # type: ignore[no-untyped-call]
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 28, 28), torch.full((1, 1, 28, 28), 255)])
def test_borders_of_empty_and_of_full_images_are_the_models_own(image: torch.Tensor) -> None:
    model = LeNet5()
    initialise(model, 1)
    torch.testing.assert_close(LeNet5InBlocks(model)(image), model(image), rtol=1e-5, atol=1e-5)


def test_it_stands_in_for_averages_over_a_border_of_zeros_alone() -> None:
    assert LeNet5InBlocks.can_compute(LeNet5(activation="relu"))
    assert not LeNet5InBlocks.can_compute(LeNet5(pooling="max"))
    assert not LeNet5InBlocks.can_compute(LeNet5(padding_mode="replicate"))
    assert not LeNet5InBlocks.can_compute(ClassicLeNet5())


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "tf32")])
def test_steps_are_computed_in_blocks_where_that_was_measured_to_be_faster(device: str, precision: str) -> None:
    assert isinstance(fastest_form(LeNet5(), torch.device(device), precision), LeNet5InBlocks)


@pytest.mark.parametrize(("pooling", "precision"), [("avg", "fp32"), ("avg", "bf16"), ("max", "tf32")])
def test_a_gpu_keeps_the_model_itself_otherwise(pooling: str, precision: str) -> None:
    model = LeNet5(pooling=pooling)
    assert fastest_form(model, torch.device("cuda"), precision) is model
