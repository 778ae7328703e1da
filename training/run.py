"""Runs: from a data set in memory to one checkpoint per seed."""

import dataclasses
import importlib.metadata
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from serving.errors import BadDataError, ConfigurationError, InterruptedRunError
from training.checkpoint import load_model, save_checkpoint
from training.config import TrainConfig
from training.curves import save_curves, save_history
from training.dataset import FashionMNIST
from training.device import choose_device, hardware_of, make_deterministic, set_precision
from training.epoch import Split, TrainResult, accuracy, image_order, split_on, train_epoch
from training.model import ARCHITECTURES, initialise
from training.peers import Peers, local_rank, peers_on
from training.process import StopRequest, StopRequestedError
from training.recipes import Recipe
from training.record import (
    EpochMetrics,
    RunRecord,
    differences,
    find_finished,
    find_record,
    record_bytes,
    record_from_bytes,
)
from training.report import SEEDS_NAME, epoch_line, seeds_json
from training.steps import Steps
from training.storage import write_atomically


@dataclass(frozen=True, kw_only=True, eq=False)
class Workplace:
    """What all runs of one call share."""

    config: TrainConfig
    dataset: FashionMNIST
    device: torch.device
    train: Split
    test: Split
    stop: StopRequest
    peers: Peers


def train_seeds(config: TrainConfig, dataset: FashionMNIST, stop: StopRequest, started: float) -> list[RunRecord]:
    """One finished run per seed; `started` is when (`time.perf_counter()`) the work on the first began.

    Raises ResourceUnavailableError NO_GPU, ConfigurationError CONFIG_MISMATCH, BadDataError DIVERGED,
    InterruptedRunError INTERRUPTED, and OSError where the disk fails.
    """
    device = choose_device(config.device, local_rank())
    make_deterministic(config.num_threads)
    set_precision(config.precision, device)
    with peers_on(device) as peers:
        return _train_seeds(config, dataset, stop, started, device, peers)


def _train_seeds(
    config: TrainConfig,
    dataset: FashionMNIST,
    stop: StopRequest,
    started: float,
    device: torch.device,
    peers: Peers,
) -> list[RunRecord]:
    if peers.is_first:
        together = f", {peers.size} processes" if peers.size > 1 else ""
        print(f"training on {device} ({hardware_of(device)}{together}), data from {dataset.source}", flush=True)
    train = split_on(device, dataset.train_images, dataset.train_labels)
    test = split_on(device, dataset.test_images, dataset.test_labels)
    workplace = Workplace(config=config, dataset=dataset, device=device, train=train, test=test, stop=stop, peers=peers)
    records = []
    for seed, directory in config.run_dirs.items():
        record = _finished(workplace, seed, directory)
        if record and peers.is_first:
            print(f"seed {seed} is trained already, in {directory} (--again trains it anew)", flush=True)
        records.append(record or train_run(workplace, seed, directory, started))
        started = time.perf_counter()
    if len(records) > 1 and peers.is_first:
        write_atomically(config.checkpoint_dir / SEEDS_NAME, seeds_json(records))
    return records


def train_run(workplace: Workplace, seed: int, directory: Path, started: float) -> RunRecord:
    """Trains one seed to its last epoch, with a whole checkpoint in `directory` after each."""
    model, record = _begin(workplace, seed, directory)
    earlier_seconds = record.wall_seconds
    model.to(workplace.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=record.recipe.learning_rate)
    peers, precision = workplace.peers, workplace.config.precision
    steps = Steps(model, optimizer, workplace.train, record.recipe.batch_size, precision=precision, peers=peers)
    can_write = True
    while not record.is_complete:
        metrics = _run_epoch(workplace, steps, record, directory)
        record = dataclasses.replace(
            record,
            completed_epochs=metrics.epoch,
            metrics=(*record.metrics, metrics),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=earlier_seconds + time.perf_counter() - started,
        )
        if not peers.is_first:
            continue
        save_checkpoint(directory, model.state_dict(), record)
        print(epoch_line(record), flush=True)
        can_write = can_write and save_history(directory, record.metrics)  # one warning is enough
    if can_write and peers.is_first:
        save_curves(directory, record)
    return record


def _run_epoch(workplace: Workplace, steps: Steps, record: RunRecord, directory: Path) -> EpochMetrics:
    model, optimizer = steps.model, steps.optimizer
    recipe, epoch, started = record.recipe, record.completed_epochs + 1, time.perf_counter()
    order = image_order(record.seed, epoch, record.num_train_images)  # (N,)
    title = f"seed {record.seed}, epoch {epoch}/{recipe.num_epochs}"
    try:
        result = train_epoch(
            model,
            optimizer,
            workplace.train,
            order,
            recipe.batch_size,
            title=title,
            before_step=workplace.stop.check,
            steps=steps,
        )
    except StopRequestedError as signal:
        what = f"{signal} in {title}; {directory} has {record.completed_epochs} of {recipe.num_epochs} epochs"
        cure = "the same with --resume goes on from there: make train ARGS=--resume"
        if not record.completed_epochs:
            what, cure = f"{signal} in {title}, before anything was saved", "the same command starts again"
        raise InterruptedRunError("INTERRUPTED", what, cure) from None
    _check_convergence(result, model, title, recipe.learning_rate)
    test_acc = accuracy(model, workplace.test, recipe.batch_size)
    return EpochMetrics(
        epoch=epoch,
        train_loss=result.loss,
        train_acc=result.acc,
        test_acc=test_acc,
        step_seconds=result.seconds,
        seconds=time.perf_counter() - started,
    )


def _check_convergence(result: TrainResult, model: nn.Module, title: str, learning_rate: float) -> None:
    """Raises BadDataError DIVERGED for the first step whose loss, or after which a weight, is no finite number."""
    num_steps = len(result.step_losses)
    losses = torch.tensor(result.step_losses)  # (S,)
    bad_steps = (~losses.isfinite()).nonzero().flatten().tolist()
    if not bad_steps and all(bool(weight.isfinite().all()) for weight in model.parameters()):
        return
    step = bad_steps[0] + 1 if bad_steps else num_steps
    what = f"{title}, step {step} of {num_steps}: the loss or a weight is not finite at learning rate {learning_rate}"
    raise BadDataError("DIVERGED", what, "the last good checkpoint is kept; lower the learning rate")


# --- Where a run begins --------------------------------------------------------------------------------------------


def _finished(workplace: Workplace, seed: int, directory: Path) -> RunRecord | None:
    """The record of this very run where it is trained already; the first process looks, for all."""
    config, record = workplace.config, None
    if workplace.peers.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if not config.again:
            record = find_finished(directory, config.recipe, seed, workplace.dataset.digests, config.precision)
    return record_from_bytes(workplace.peers.tell(record_bytes(record), workplace.device))


def _begin(workplace: Workplace, seed: int, directory: Path) -> tuple[nn.Module, RunRecord]:
    """Where all processes begin: as the first one does, whose weights the others get with the first step."""
    begun = _begin_alone(workplace, seed, directory) if workplace.peers.is_first else None
    told = workplace.peers.tell(record_bytes(begun[1] if begun else None), workplace.device)
    record = begun[1] if begun else record_from_bytes(told)
    if record is None:
        raise ConnectionError("the first process told no record")
    return begun[0] if begun else _new_model(workplace.config.recipe, seed), record


def _begin_alone(workplace: Workplace, seed: int, directory: Path) -> tuple[nn.Module, RunRecord]:
    """Model and record to go on from: those of the checkpoint with `--resume`, else new ones."""
    config = workplace.config
    record = None if config.again else find_record(directory)
    if record is None:
        return _new_model(config.recipe, seed), _new_record(workplace, seed)
    found = differences(record, config.recipe, seed, workplace.dataset.digests, config.precision)
    done = f"{record.completed_epochs} of {record.recipe.num_epochs} epochs"
    if not config.resume:
        what = f"of another run ({'; '.join(found)})" if found else "of this very run; --resume would go on from there"
        print(f"starting anew: {directory} has {done} {what}", flush=True)
        return _new_model(config.recipe, seed), _new_record(workplace, seed)
    if found:
        what = f"cannot resume the run in {directory}: {'; '.join(found)}"
        raise ConfigurationError("CONFIG_MISMATCH", what, "use its options, or --again for a new run in its place")
    print(f"resuming: {directory} has {done}", flush=True)
    if (str(workplace.device), torch.get_num_threads()) != (record.device, record.num_threads):
        print(
            f"note: begun on {record.device} with {record.num_threads} threads; the weights may differ in the last bit"
        )
    model, _ = load_model(directory)
    return model, record


def _new_model(recipe: Recipe, seed: int) -> nn.Module:
    model = ARCHITECTURES[recipe.architecture]()
    initialise(model, seed)
    return model


def _new_record(workplace: Workplace, seed: int) -> RunRecord:
    packages = ("torch", "numpy", "safetensors")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    return RunRecord(
        recipe=workplace.config.recipe,
        seed=seed,
        completed_epochs=0,
        metrics=(),
        dataset_digests=workplace.dataset.digests,
        dataset_verified=workplace.dataset.verified,
        num_train_images=len(workplace.train.images),
        versions=versions,
        hardware=hardware_of(workplace.device),
        device=str(workplace.device),
        num_threads=torch.get_num_threads(),
        created="",
        wall_seconds=0.0,
        precision=workplace.config.precision,
        num_processes=workplace.peers.size,
    )
