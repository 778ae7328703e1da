"""Steps as a GPU makes them, captured and replayed; in bf16; and shared between processes."""

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.conftest import Train, train_in_two_processes
from training.checkpoint import load_checkpoint, save_checkpoint
from training.dataset import load_dataset
from training.device import make_deterministic
from training.epoch import image_order, split_on, train_epoch
from training.model import LeNet5, initialise
from training.record import load_record
from training.split import Split
from training.steps import WARM_UP_STEPS, Steps


@pytest.fixture
def split(data_dir: Path) -> Split:
    data = load_dataset(data_dir, verify=False)
    return split_on(torch.device("cpu"), data.train_images, data.train_labels)


@pytest.fixture
def model() -> LeNet5:
    make_deterministic(1)
    model = LeNet5()
    initialise(model, 0)
    return model


def train_two_epochs(model: nn.Module, optimizer: torch.optim.Optimizer, split: Split, steps: Steps) -> list[float]:
    losses = []
    for epoch in (1, 2):
        order = image_order(0, epoch, 600)
        result = train_epoch(model, optimizer, split, order, 256, title="", before_step=lambda: None, steps=steps)
        losses += result.step_losses
    return losses


class CapturedSteps(Steps):
    """All of the capturing but CUDA's own part: what a graph would replay is called again."""

    is_captured = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, split: Split) -> None:
        super().__init__(model, optimizer, split, 256)
        self.is_captured = True
        self.num_captures = 0

    def _warm_up(self, size: int) -> None:
        for _ in range(WARM_UP_STEPS):
            self._step.zero_()
            self._run(size)

    def _graph_of(self, size: int) -> Callable[[], None]:
        self.num_captures += 1
        return lambda: self._run(size)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_capturing_leaves_no_trace_in_weights_momentum_or_losses(momentum: float, split: Split, model: LeNet5) -> None:
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=momentum) for each in (model, twin)]
    eager = Steps(model, optimizers[0], split, 256)
    captured = CapturedSteps(twin, optimizers[1], split)
    wanted = train_two_epochs(model, optimizers[0], split, eager)
    assert train_two_epochs(twin, optimizers[1], split, captured) == pytest.approx(wanted, abs=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert captured.num_captures == 2  # 256 images, and the last 88; once for all epochs


def test_another_step_size_is_captured_anew(split: Split, model: LeNet5) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = CapturedSteps(model, optimizer, split)
    train_two_epochs(model, optimizer, split, steps)
    optimizer.param_groups[0]["lr"] = 0.01
    train_two_epochs(model, optimizer, split, steps)
    assert steps.num_captures == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_captured_steps_on_cuda_give_the_eager_ones_weights(data_dir: Path, model: LeNet5) -> None:
    data, cuda = load_dataset(data_dir, verify=False), torch.device("cuda")
    split = split_on(cuda, data.train_images, data.train_labels)
    results = []
    for is_captured in (False, True):
        twin = copy.deepcopy(model).to(cuda)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.9)
        steps = Steps(twin, optimizer, split, 256)
        steps.is_captured = is_captured
        train_two_epochs(twin, optimizer, split, steps)
        results.append(list(twin.parameters()))
    for eager, captured in zip(*results, strict=True):
        torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-6)


def test_bf16_steps_round_and_keep_float32_weights(split: Split, model: LeNet5) -> None:
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]
    full = train_two_epochs(model, optimizers[0], split, Steps(model, optimizers[0], split, 256))
    steps = Steps(twin, optimizers[1], split, 256, precision="bf16")
    rounded = train_two_epochs(twin, optimizers[1], split, steps)
    assert rounded != full
    assert rounded == pytest.approx(full, rel=0.02)
    assert {weight.dtype for weight in twin.parameters()} == {torch.float32}


def test_precision_is_recorded_and_part_of_what_a_run_is(
    train: Train, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--precision", "bf16", "--epochs", "1") == 0
    assert load_checkpoint(run_dir).precision == "bf16"
    assert train("--resume") == os.EX_CONFIG
    assert "CONFIG_MISMATCH" in capsys.readouterr().err


def test_tf32_on_a_cpu_is_refused(train: Train, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--precision", "tf32") == os.EX_UNAVAILABLE
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: NO_SUCH_PRECISION: asked for tf32 on cpu (")
    assert not (run_dir / "checkpoint.json").exists()


# --- Several processes ------------------------------------------------------------------------------------------------


def test_two_processes_end_at_the_weights_of_one(data_dir: Path, finished_run: Path, run_dir: Path) -> None:
    both = train_in_two_processes(data_dir, run_dir, "--epochs", "2")
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("epoch  1/2:") == 1  # one of them speaks
    together, alone = load_checkpoint(run_dir), load_checkpoint(finished_run)
    assert together.num_processes == 2
    for name, weight in alone.state_dict.items():
        torch.testing.assert_close(together.state_dict[name], weight, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(together.metrics, alone.metrics, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours.train_acc == pytest.approx(theirs.train_acc, abs=2 / 600)


def test_two_processes_go_on_where_one_stopped(
    data_dir: Path, finished_run: Path, run_dir: Path, split: Split, model: LeNet5
) -> None:
    """The second process has weights of its own until it gets the first one's."""
    alone = load_checkpoint(finished_run)
    optimizer = torch.optim.SGD(model.parameters(), lr=alone.recipe.learning_rate)
    train_epoch(model, optimizer, split, image_order(0, 1, 600), 256, title="", before_step=lambda: None)
    half_done = dataclasses.replace(load_record(finished_run)[0], completed_epochs=1, metrics=alone.metrics[:1])
    run_dir.mkdir()
    save_checkpoint(run_dir, model.state_dict(), half_done)
    done = train_in_two_processes(data_dir, run_dir, "--epochs", "2", "--resume")
    assert done.returncode == 0, done.stderr
    assert "has 1 of 2 epochs" in done.stdout
    for name, weight in alone.state_dict.items():
        torch.testing.assert_close(load_checkpoint(run_dir).state_dict[name], weight, rtol=1e-4, atol=1e-5)
