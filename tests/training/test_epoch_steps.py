"""Steps as a GPU makes them, captured and replayed; in bf16; and shared between processes."""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.conftest import Train, in_two_processes, printed_by, torchrun, trainer_in
from training.checkpoint import load_checkpoint, save_checkpoint
from training.dataset import load_dataset
from training.device import make_deterministic
from training.epoch import image_order, train_epoch
from training.epoch_steps import Split, Steps, split_on
from training.models import LeNet, initialise, model_for
from training.optimisation import optimizer_for
from training.recipes import RECIPES, Recipe
from training.run_record import load_record

TUTORIAL = dataclasses.replace(RECIPES["tutorial"], num_epochs=2, learning_rate=0.1)
MODERN = dataclasses.replace(RECIPES["modern"], num_epochs=2, learning_rate=0.02, num_validation_images=0)
EVERY_KIND = pytest.mark.parametrize("recipe", [TUTORIAL, MODERN], ids=["tutorial", "modern"])


@pytest.fixture
def split(data_dir: Path) -> Split:
    data = load_dataset(data_dir, verify=False)
    return split_on(torch.device("cpu"), data.train_images, data.train_labels)


def model_of(recipe: Recipe) -> LeNet:
    make_deterministic(1)
    model = model_for(recipe)
    initialise(model, 0)
    return model


def steps_of(recipe: Recipe, split: Split, precision: str = "fp32") -> Steps:
    return Steps(model_of(recipe).to(split.images.device), recipe, split, precision=precision)


def train_two_epochs(steps: Steps) -> list[float]:
    losses = []
    for epoch in (1, 2):
        result = train_epoch(steps, image_order(0, epoch, 600), 0, epoch, title="", before_step=lambda: None)
        losses += result.step_losses
    return losses


def everything_in(steps: Steps) -> dict[str, Tensor]:
    return steps.state() | {f"averaged.{name}": value for name, value in steps.averaged.state_dict().items()}


# --- Captured --------------------------------------------------------------------------------------------------------


def with_steps_for_a_graph(steps: Steps) -> Steps:
    """On the CPU, with the optimiser that a GPU's steps have."""
    steps.optimizer = optimizer_for(steps.model, steps.recipe, is_captured=True)
    return steps


@pytest.mark.slow
@EVERY_KIND
def test_capturing_leaves_no_trace_in_weights_momentum_averages_or_losses(recipe: Recipe, split: Split) -> None:
    """All of the capturing but CUDA's own part: what a graph would replay is called again."""
    runs: list[Callable[[], None]] = []

    def graph_of(run: Callable[[], None]) -> Callable[[], None]:
        runs.append(run)
        return run

    eager, captured = (with_steps_for_a_graph(steps_of(recipe, split)) for _ in range(2))
    captured.is_captured, captured.graph_of = True, graph_of
    assert train_two_epochs(captured) == train_two_epochs(eager)
    theirs = everything_in(eager)
    for name, tensor in everything_in(captured).items():
        assert torch.equal(tensor, theirs[name]), name
    assert len(runs) == 2  # 256 images, and the last 88; once for all epochs and step sizes


@pytest.mark.slow
@EVERY_KIND
def test_step_sizes_in_tensors_give_the_weights_that_numbers_give(recipe: Recipe, split: Split) -> None:
    eager, captured = steps_of(recipe, split), with_steps_for_a_graph(steps_of(recipe, split))
    losses = train_two_epochs(eager)
    assert train_two_epochs(captured) == pytest.approx(losses, rel=1e-3)
    for ours, theirs in zip(captured.averaged.parameters(), eager.averaged.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # fused kernels round otherwise


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """What a graph would hold of the operators that run: their names, numbers, and the memory that they find there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, list[Any]]] = []
        self.found: list[int] = []
        self._made: list[torch.UntypedStorage] = []  # kept, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        if not str(func).startswith("profiler."):  # the optimiser's marks for PyTorch's profiler
            self.calls.append((str(func), [value for value in given if not torch.is_tensor(value)]))
        made = {storage.data_ptr() for storage in self._made}
        here = [value.untyped_storage().data_ptr() for value in given if torch.is_tensor(value)]
        self.found += [address for address in here if address not in made]
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if torch.is_tensor(value) and value.untyped_storage().data_ptr() not in (*made, *here):
                self._made.append(value.untyped_storage())
        return result


def recorded_step(steps: Steps, epoch: int, number: int) -> Recorder:
    steps.begin(image_order(0, epoch, 600), 0, epoch)
    for _ in range(number):
        steps.take(256)
    steps._set_pace()
    recorder = Recorder()
    with recorder:
        steps._run(256)
    return recorder


@EVERY_KIND
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_step_is_the_same_operators_on_the_same_numbers_and_memory(
    precision: str, recipe: Recipe, split: Split
) -> None:
    """What differs from step to step lies in tensors that stay where they are: so one graph serves all steps."""
    steps = with_steps_for_a_graph(steps_of(recipe, split, precision))
    recorded_step(steps, 1, 0)  # which makes the optimiser's memory
    first, later = recorded_step(steps, 1, 0), recorded_step(steps, 2, 1)
    assert len(first.calls) > 50
    assert later.calls == first.calls
    assert later.found == first.found
    asking = {"aten._local_scalar_dense.default", "aten.nonzero.default"}  # the host waits for them
    assert not asking & {name for name, _ in first.calls}


def test_the_recorder_sees_step_sizes_that_are_no_tensors(split: Split) -> None:
    """The check above is worth something only if it fails here."""
    steps = steps_of(MODERN, split)
    recorded_step(steps, 1, 0)
    assert recorded_step(steps, 1, 0).calls != recorded_step(steps, 2, 1).calls
    steps.optimizer = torch.optim.SGD(steps.model.parameters(), lr=torch.tensor(0.1), foreach=False)
    assert "aten._local_scalar_dense.default" in {name for name, _ in recorded_step(steps, 1, 0).calls}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@EVERY_KIND
def test_captured_steps_on_cuda_give_the_eager_ones_weights(recipe: Recipe, data_dir: Path) -> None:
    data, cuda = load_dataset(data_dir, verify=False), torch.device("cuda")
    split = split_on(cuda, data.train_images, data.train_labels)
    results = []
    for is_captured in (False, True):
        steps = steps_of(recipe, split)
        assert steps.is_captured
        steps.is_captured = is_captured
        train_two_epochs(steps)
        results.append(everything_in(steps))
    for name, eager in results[0].items():
        torch.testing.assert_close(results[1][name], eager, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@EVERY_KIND
def test_nothing_within_an_epoch_on_cuda_waits_for_the_device(recipe: Recipe, data_dir: Path) -> None:
    data, cuda = load_dataset(data_dir, verify=False), torch.device("cuda")
    steps = steps_of(recipe, split_on(cuda, data.train_images, data.train_labels))
    train_two_epochs(steps)  # which captures
    steps.begin(image_order(0, 2, 600), 0, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for size in steps.sizes:
            steps.take(size)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_steps_round_and_keep_float32_weights(split: Split) -> None:
    full, rounded = steps_of(TUTORIAL, split), steps_of(TUTORIAL, split, "bf16")
    losses = train_two_epochs(full)
    rounded_losses = train_two_epochs(rounded)
    assert rounded_losses != losses
    assert rounded_losses == pytest.approx(losses, rel=0.02)
    assert {weight.dtype for weight in rounded.model.parameters()} == {torch.float32}


def test_precision_is_recorded_and_part_of_what_a_run_is(
    train: Train, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--precision", "bf16", "--epochs", "1") == 0
    assert load_checkpoint(run_dir).precision == "bf16"
    assert train("--precision", "fp32", "--resume") == os.EX_CONFIG
    assert "CONFIG_MISMATCH" in capsys.readouterr().err


def test_tf32_on_a_cpu_is_refused(train: Train, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--precision", "tf32") == os.EX_UNAVAILABLE
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: NO_SUCH_PRECISION: asked for tf32 on cpu (")
    assert not (run_dir / "checkpoint.json").exists()


# --- Diverged --------------------------------------------------------------------------------------------------------


def spoil_a_gradient(steps: Steps) -> None:
    first = next(steps.model.parameters())
    first.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient.index_fill(0, torch.tensor([2]), math.inf)
    )


def spoil_the_loss_alone(steps: Steps) -> None:
    """A logit of minus infinity: its loss is infinite, and its gradient 1."""
    *_, bias = steps.model.parameters()
    bias.data[3] = -math.inf


@pytest.mark.fault("T10")
@EVERY_KIND
@pytest.mark.parametrize("spoil", [spoil_a_gradient, spoil_the_loss_alone])
@pytest.mark.parametrize("prepare", [lambda steps: steps, with_steps_for_a_graph], ids=["eager", "for a graph"])
def test_step_whose_loss_or_gradient_is_not_finite_is_not_made_and_none_after_it(
    prepare: Callable[[Steps], Steps], spoil: Callable[[Steps], None], recipe: Recipe, split: Split
) -> None:
    steps = prepare(steps_of(recipe, split))
    steps.begin(image_order(0, 1, 600), 0, 1)
    steps.take(256)
    spoil(steps)
    names = {name for name, _ in steps.model.named_parameters()}
    before = {name: value.clone() for name, value in steps.state().items()}
    for size in (256, 88):
        steps.take(size)
    for name, value in steps.state().items():
        if name.removeprefix("model.") in names or name.startswith("optimizer."):  # not the statistics of images
            assert torch.equal(value, before[name]), name
    losses, _ = steps.results()
    assert [math.isfinite(loss) for loss in losses] == [True, False, False]


# --- Several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_end_at_the_weights_of_one(data_dir: Path, finished_run: Path, run_dir: Path) -> None:
    printed = printed_by(torchrun(*trainer_in(data_dir, run_dir, "--epochs", "2")))
    assert printed.count("epoch  1/2:") == 1  # one of them speaks
    together, alone = load_checkpoint(run_dir), load_checkpoint(finished_run)
    assert together.num_processes == 2
    for name, weight in alone.state_dict.items():
        torch.testing.assert_close(together.state_dict[name], weight, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(together.metrics, alone.metrics, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours.train_acc == pytest.approx(theirs.train_acc, abs=2 / 600)


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(data_dir: Path, finished_run: Path, run_dir: Path, split: Split) -> None:
    """The second process has weights of its own until it gets the first one's."""
    alone = load_checkpoint(finished_run)
    steps = Steps(model_of(alone.recipe), alone.recipe, split)
    train_epoch(steps, image_order(0, 1, 600), 0, 1, title="", before_step=lambda: None)
    half_done = dataclasses.replace(load_record(finished_run)[0], completed_epochs=1, metrics=alone.metrics[:1])
    run_dir.mkdir()
    save_checkpoint(run_dir, steps.averaged.state_dict(), half_done)
    assert "has 1 of 2 epochs" in printed_by(
        in_two_processes(trainer_in(data_dir, run_dir, "--epochs", "2", "--resume"))
    )
    for name, weight in alone.state_dict.items():
        torch.testing.assert_close(load_checkpoint(run_dir).state_dict[name], weight, rtol=1e-4, atol=1e-5)
