"""Runs: from a data set in memory to one checkpoint per seed."""

import dataclasses
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from atelier.errors import ConfigurationError, InterruptedRunError
from atelier.files import write_atomically
from atelier.machine import package_versions
from training.checkpoint import load_model, load_training_state, save_checkpoint
from training.config import TrainConfig, resume_command
from training.curves import save_curves, save_history, title_of
from training.dataset import FashionMNIST
from training.device import (
    choose_device,
    forget_peak_memory,
    hardware_of,
    keep_memory,
    make_deterministic,
    peak_memory,
    set_precision,
)
from training.divergence import check_epochs, check_steps, warn_if_near_dead
from training.epoch import accuracy, image_order, train_epoch
from training.events import EventLog
from training.figures import save_pictures
from training.models import LeNet, initialise, model_for
from training.peers import Peers, local_rank, peers_on
from training.process import StopRequest, StopRequestedError
from training.recipes import Recipe
from training.results import SEEDS_NAME, epoch_line, seeds_json
from training.run_record import (
    EpochMetrics,
    RunRecord,
    differences,
    find_finished,
    find_record,
    record_bytes,
    record_from_bytes,
    why_length_is_fixed,
)
from training.split import Split, put_aside, split_on
from training.steps import Steps


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
    validation: Split | None = None


def train_seeds(config: TrainConfig, dataset: FashionMNIST, stop: StopRequest, started: float) -> list[RunRecord]:
    """One finished run per seed; `started` is when (`time.perf_counter()`) the work on the first began.

    Raises ResourceUnavailableError NO_GPU, ConfigurationError CONFIG_MISMATCH, BadDataError DIVERGED,
    InterruptedRunError INTERRUPTED, and OSError where the disk fails.
    """
    device = choose_device(config.device, local_rank())
    make_deterministic(config.num_threads)
    keep_memory()
    with peers_on(device) as peers:
        config = _same_for_all(config, device, peers)
        set_precision(config.precision, device)
        return _train_seeds(config, dataset, stop, started, device, peers)


def _same_for_all(config: TrainConfig, device: torch.device, peers: Peers) -> TrainConfig:
    """What the first process is to train, in every process: another machine may lack the checkpoint that tells it."""
    told = {"recipe": dataclasses.asdict(config.recipe), "seed": config.seed, "precision": config.precision}
    told = json.loads(peers.tell(json.dumps(told).encode(), device))
    return dataclasses.replace(config, **told | {"recipe": Recipe(**told["recipe"])})


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
    train, validation = put_aside(train, config.recipe.num_validation_images)
    test = split_on(device, dataset.test_images, dataset.test_labels)
    workplace = Workplace(
        config=config,
        dataset=dataset,
        device=device,
        train=train,
        test=test,
        stop=stop,
        peers=peers,
        validation=validation,
    )
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
    forget_peak_memory(workplace.device)
    model, record = _begin(workplace, seed, directory)
    earlier_seconds = record.wall_seconds
    model.to(workplace.device)
    _check_last_batch(model, record)
    steps = _steps(workplace, model, record, directory)
    peers, can_write = workplace.peers, True
    events = EventLog(directory, record) if peers.is_first else None
    while not record.is_complete:
        check_epochs(record)
        metrics, step_losses = _run_epoch(workplace, steps, record, directory)
        record = dataclasses.replace(
            record,
            completed_epochs=metrics.epoch,
            metrics=(*record.metrics, metrics),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=earlier_seconds + time.perf_counter() - started,
            peak_memory=peak_memory(workplace.device),
        )
        if events is None:
            continue  # the first process writes for all
        state = steps.state() if record.recipe.memory and not record.is_complete else None
        save_checkpoint(directory, steps.averaged.state_dict(), record, state)
        print(epoch_line(record), flush=True)
        warn_if_near_dead(record)
        events.add(metrics, step_losses)
        can_write = can_write and save_history(directory, record.metrics)  # one warning is enough
    if events is not None:
        events.close()
    check_epochs(record)
    if can_write and peers.is_first:
        print(save_pictures(directory, steps.averaged, workplace.test, title_of(record)), flush=True)
        save_curves(directory, record)
    return record


def _check_last_batch(model: LeNet, record: RunRecord) -> None:
    """Raises ConfigurationError BAD_RECIPE where a batch normalisation would have to take one value for a batch."""
    is_normalised = any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules())
    batch_size, num_images = record.recipe.batch_size, record.num_train_images
    if is_normalised and (num_images % batch_size == 1 or batch_size == 1):
        what = f"batch_size {batch_size} leaves a last batch of 1 of {num_images} images, which cannot be normalised"
        raise ConfigurationError("BAD_RECIPE", what, "change --set batch_size or --validation-images")


def _steps(workplace: Workplace, model: LeNet, record: RunRecord, directory: Path) -> Steps:
    """The run's steps, going on where it stopped."""
    recipe, peers, precision = record.recipe, workplace.peers, workplace.config.precision
    steps = Steps(model, recipe, workplace.train, precision=precision, peers=peers)
    if recipe.memory and record.completed_epochs and not record.is_complete:
        state = load_training_state(directory) if peers.is_first else {}
        steps.restore(peers.tell_tensors(state, workplace.device))
    return steps


def _run_epoch(
    workplace: Workplace, steps: Steps, record: RunRecord, directory: Path
) -> tuple[EpochMetrics, list[float]]:
    """The epoch's metrics, and the loss of each of its steps."""
    recipe, epoch, started = record.recipe, record.completed_epochs + 1, time.perf_counter()
    order = image_order(record.seed, epoch, record.num_train_images)  # (N,)
    title = f"seed {record.seed}, epoch {epoch}/{recipe.num_epochs}"
    try:
        result = train_epoch(steps, order, record.seed, epoch, title=title, before_step=workplace.stop.check)
    except StopRequestedError as signal:
        what = f"{signal} in {title}; {directory} has {record.completed_epochs} of {recipe.num_epochs} epochs"
        cure = f"{resume_command(workplace.config)} goes on from there"
        if not record.completed_epochs:
            what, cure = f"{signal} in {title}, before anything was saved", "the same command starts again"
        raise InterruptedRunError("INTERRUPTED", what, cure) from None
    model, validation = steps.averaged, workplace.validation
    check_steps(result.step_losses, model, title, recipe.learning_rate)
    is_tested = validation is None or epoch == recipe.num_epochs
    metrics = EpochMetrics(
        epoch=epoch,
        train_loss=result.loss,
        train_acc=result.acc,
        test_acc=accuracy(model, workplace.test, recipe.batch_size) if is_tested else None,
        val_acc=accuracy(model, validation, recipe.batch_size) if validation else None,
        step_seconds=result.seconds,
        seconds=time.perf_counter() - started,
    )
    return metrics, result.step_losses


# --- Where a run begins --------------------------------------------------------------------------------------------


def _finished(workplace: Workplace, seed: int, directory: Path) -> RunRecord | None:
    """The record of this very run where it is trained already; the first process looks, for all."""
    config, record = workplace.config, None
    if workplace.peers.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if not config.again:
            record = find_finished(directory, config.recipe, seed, workplace.dataset.digests, config.precision)
    return record_from_bytes(workplace.peers.tell(record_bytes(record), workplace.device))


def _begin(workplace: Workplace, seed: int, directory: Path) -> tuple[LeNet, RunRecord]:
    """Where all processes begin: as the first one does, whose record and weights the others are told."""
    peers, device = workplace.peers, workplace.device
    begun = _begin_alone(workplace, seed, directory) if peers.is_first else None
    record = record_from_bytes(peers.tell(record_bytes(begun[1] if begun else None), device))
    if record is None:
        raise ConnectionError("the first process told no record")
    model = begun[0] if begun else _new_model(workplace.config.recipe, seed)
    model.load_state_dict(peers.tell_tensors(model.state_dict(), device))
    return model, record


def _begin_alone(workplace: Workplace, seed: int, directory: Path) -> tuple[LeNet, RunRecord]:
    """Model and record to go on from: those of the checkpoint with `--resume`, else new ones."""
    config = workplace.config
    record = None if config.again else find_record(directory)
    if record is None:
        return _new_model(config.recipe, seed), _new_record(workplace, seed)
    found = _contradictions(workplace, record, seed)
    # What a further seed's directory holds of another run nobody has asked to resume.
    if found and config.resume and directory == config.checkpoint_dir:
        raise _mismatch(workplace, record, found)
    done = f"{directory} has {record.completed_epochs} of {record.recipe.num_epochs} epochs"
    if found or not config.resume:
        what = f" of another run ({'; '.join(found)})" if found else "; --resume would go on from there"
        print(f"starting anew: {done}{what}", flush=True)
        return _new_model(config.recipe, seed), _new_record(workplace, seed)
    print(f"resuming: {done}", flush=True)
    if (str(workplace.device), torch.get_num_threads()) != (record.device, record.num_threads):
        begun = f"begun with --device {record.device} --threads {record.num_threads}"
        print(f"note: {begun}, without which the weights may differ in the last bit", flush=True)
    model, _ = load_model(directory)
    return model, dataclasses.replace(record, recipe=config.recipe)  # which may be longer


def _contradictions(workplace: Workplace, record: RunRecord, seed: int) -> list[str]:
    """Where the run that is wanted is not the recorded one; another length is none, if nothing depends on it."""
    config, num_epochs = workplace.config, workplace.config.recipe.num_epochs
    why = why_length_is_fixed(record, num_epochs) if num_epochs != record.recipe.num_epochs else ""
    if not why:
        record = dataclasses.replace(record, recipe=dataclasses.replace(record.recipe, num_epochs=num_epochs))
    found = differences(record, config.recipe, seed, workplace.dataset.digests, config.precision)
    return [f"{each}, and {why}" if each.startswith("num_epochs ") else each for each in found]


def _mismatch(workplace: Workplace, record: RunRecord, found: list[str]) -> ConfigurationError:
    """CONFIG_MISMATCH, with the command that would go on."""
    config = workplace.config
    what = f"cannot resume the run in {config.checkpoint_dir}: {'; '.join(found)}"
    command = resume_command(dataclasses.replace(config, recipe=record.recipe))
    cure = f"{command} takes these from the checkpoint"
    if record.dataset_digests != workplace.dataset.digests:
        cure = "name the directory of its data with --data-dir"
    return ConfigurationError("CONFIG_MISMATCH", what, f"{cure}; --again in place of --resume starts a new run there")


def _new_model(recipe: Recipe, seed: int) -> LeNet:
    model = model_for(recipe)
    initialise(model, seed)
    return model


def _new_record(workplace: Workplace, seed: int) -> RunRecord:
    packages = ("torch", "numpy", "safetensors")
    versions = package_versions(packages)
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
