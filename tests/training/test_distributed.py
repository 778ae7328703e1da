"""Batch normalisation of a shared batch, where one process has all of it. Two processes: see test_optimisation.py."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.distributed import SharedBatchNorm


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm2d(5), (7, 5, 3, 4)), (nn.BatchNorm1d(5), (7, 5))])
def test_alone_it_is_batch_normalisation(norm: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...]) -> None:
    ours = nn.Sequential(SharedBatchNorm(copy.deepcopy(norm)))
    torch.manual_seed(0)
    inputs = [torch.randn(shape) * 3 + 10 for _ in range(3)]
    for is_training in (True, False):
        for x in inputs:
            found = [outcome_of(module.train(is_training), x) for module in (ours, norm)]
            for mine, theirs in zip(*found, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for name, theirs in norm.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[f"0.{name}"], theirs)


def outcome_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and the weights."""
    x = x.clone().requires_grad_()
    output = module(x)
    weights = list(module.parameters())
    return [
        output,
        *torch.autograd.grad((output * torch.linspace(0, 1, output.numel()).view_as(x)).sum(), [x, *weights]),
    ]


def test_rounded_values_are_normalised_in_float32_and_stay_rounded() -> None:
    norm = SharedBatchNorm(nn.BatchNorm1d(2))
    x = torch.randn(64, 2).bfloat16() + 100
    output = norm(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, nn.BatchNorm1d(2)(x.float()).bfloat16())


def test_no_other_module_asks_how_many_processes_there_are() -> None:
    folder = Path(__file__).parents[2] / "training"
    sources = {path.name: path.read_text() for path in folder.rglob("*.py")}
    assert [name for name, text in sources.items() if "import torch.distributed" in text] == ["distributed.py"]
    assert not [name for name, text in sources.items() if "peers" in text or "from torch import distributed" in text]
