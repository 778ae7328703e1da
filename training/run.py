"""Runs: from a data set in memory to one checkpoint per seed."""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from atelier.errors import ConfigurationError, InterruptedRunError
from atelier.files import write_atomically
from atelier.machine import package_versions
from training import distributed
from training.checkpoint import keep_epoch, load_model, load_training_state
from training.config import TrainConfig, resume_command
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
from training.divergence import check_epochs
from training.epoch import run_epoch, title_of_next
from training.epoch_steps import Split, Steps, put_aside, split_on
from training.models import LeNet, initialise, model_for
from training.recipes import Recipe
from training.recovery import restore_previous
from training.results import SEEDS_NAME, seeds_json
from training.run_log import RunLog
from training.run_record import RunRecord, record_of
from training.session import Start, start_of
from training.trainer_process import StopRequest, StopRequestedError, is_first


@dataclass(frozen=True, kw_only=True, eq=False)
class Workplace:
    """Workplace that all runs of one call share."""

    config: TrainConfig
    dataset: FashionMNIST
    device: torch.device
    train: Split
    validation: Split | None
    test: Split
    stop: StopRequest


def train_seeds(config: TrainConfig, dataset: FashionMNIST, stop: StopRequest, started: float) -> list[RunRecord]:
    """Returns one finished run per seed; `started` is when (`time.perf_counter()`) the work on the first began.

    Raises ResourceUnavailableError NO_GPU, ConfigurationError CONFIG_MISMATCH, BadDataError DIVERGED,
    InterruptedRunError INTERRUPTED, and OSError if the disk fails.
    """
    device = choose_device(config.device, distributed.local_rank())
    make_deterministic(config.threads)
    keep_memory()
    records = []
    with distributed.joined(device):
        config = _as_the_first_has_it(config)
        set_precision(config.precision, device)
        workplace = _workplace(config, dataset, stop, device)
        for seed, directory in config.run_dirs.items():
            records.append(train_run(workplace, seed, directory, started))
            started = time.perf_counter()
    if len(records) > 1 and is_first():
        write_atomically(config.checkpoint_dir / SEEDS_NAME, seeds_json(records))
    return records


def _as_the_first_has_it(config: TrainConfig) -> TrainConfig:
    """Says what to train as the first process does: another machine may lack the checkpoint that tells it."""
    told = {"recipe": dataclasses.asdict(config.recipe), "seed": config.seed, "precision": config.precision}
    told = json.loads(distributed.told(json.dumps(told).encode()))
    return dataclasses.replace(config, **told | {"recipe": Recipe(**told["recipe"])})


def _workplace(config: TrainConfig, dataset: FashionMNIST, stop: StopRequest, device: torch.device) -> Workplace:
    if is_first():
        together = f", {distributed.size()} processes" if distributed.size() > 1 else ""
        print(f"training on {device} ({hardware_of(device)}{together}), data from {dataset.source}", flush=True)
    train = split_on(device, dataset.train_images, dataset.train_labels)
    train, validation = put_aside(train, config.recipe.num_validation_images)
    test = split_on(device, dataset.test_images, dataset.test_labels)
    return Workplace(
        config=config, dataset=dataset, device=device, train=train, validation=validation, test=test, stop=stop
    )


def train_run(workplace: Workplace, seed: int, directory: Path, started: float) -> RunRecord:
    """Trains one seed to its last epoch, if it is not there yet, with a whole checkpoint in `directory` after each."""
    start = _start(workplace, seed, directory)
    if start.record and start.is_finished:
        return start.record
    forget_peak_memory(workplace.device)
    record, steps = _begin(workplace, seed, directory, start)
    started -= record.wall_seconds
    keeps_epochs = is_first() and (workplace.config.keep_epochs or bool(record.kept_epochs))
    with RunLog(directory, record, draws=not workplace.config.no_figures) as log:
        if keeps_epochs and not record.completed_epochs:
            record = keep_epoch(directory, record, steps.averaged.state_dict())
        while not record.is_complete:
            check_epochs(record)
            try:
                metrics, step_losses = run_epoch(
                    record, steps, workplace.validation, workplace.test, workplace.stop.check
                )
            except StopRequestedError as signal:
                raise _interrupted(workplace.config, record, signal) from None
            record = dataclasses.replace(
                record,
                completed_epochs=metrics.epoch,
                metrics=(*record.metrics, metrics),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                wall_seconds=time.perf_counter() - started,
                peak_memory=peak_memory(workplace.device),
            )
            if keeps_epochs:
                record = keep_epoch(directory, record, steps.averaged.state_dict())
            log.on_epoch(record, step_losses, steps)
        check_epochs(record)
        log.on_end(record, steps.averaged, workplace.test)
    return record


# --- Where a run begins --------------------------------------------------------------------------------------------


def _start(workplace: Workplace, seed: int, directory: Path) -> Start:
    """Begins where the first process does, in all of them: it looks at the checkpoint, and says what it found."""
    config = workplace.config
    if is_first() and config.resume and not config.again and (warning := restore_previous(directory)):
        print(warning, file=sys.stderr, flush=True)
    start = start_of(config, seed, directory, workplace.dataset.digests) if is_first() else Start()
    if start.note:
        print(start.note, flush=True)
    record = start.record
    here = (str(workplace.device), torch.get_num_threads())
    if record and not start.is_finished and here != (record.device, record.num_threads):
        begun = f"begun with --device {record.device} --threads {record.num_threads}"
        print(f"note: {begun}, without which the weights may differ in the last bit", flush=True)
    told = distributed.told(json.dumps(record and dataclasses.asdict(record)).encode())
    return Start(record=record_of(json.loads(told)) if told != b"null" else None)


def _begin(workplace: Workplace, seed: int, directory: Path, start: Start) -> tuple[RunRecord, Steps]:
    """Returns record and steps to go on with; weights, and what the steps remember, are the first process's."""
    config = workplace.config
    record = start.record or _new_record(workplace, seed)
    model, state = model_for(config.recipe), {}
    if start.record is None:
        initialise(model, seed)
    elif is_first():
        model, _ = load_model(directory)
        state = load_training_state(directory) if config.recipe.memory else {}
    model.load_state_dict(distributed.told_tensors(model.state_dict()))
    _check_last_batch(model, record)
    steps = Steps(model.to(workplace.device), config.recipe, workplace.train, precision=config.precision)
    if state := distributed.told_tensors(state):
        steps.restore(state)
    return record, steps


def _new_record(workplace: Workplace, seed: int) -> RunRecord:
    return RunRecord(
        recipe=workplace.config.recipe,
        seed=seed,
        completed_epochs=0,
        metrics=(),
        dataset_digests=workplace.dataset.digests,
        dataset_verified=workplace.dataset.verified,
        num_train_images=len(workplace.train.images),
        versions=package_versions(("torch", "numpy", "safetensors")),
        hardware=hardware_of(workplace.device),
        device=str(workplace.device),
        num_threads=torch.get_num_threads(),
        created="",
        wall_seconds=0.0,
        precision=workplace.config.precision,
        num_processes=distributed.size(),
    )


def _check_last_batch(model: LeNet, record: RunRecord) -> None:
    """Raises ConfigurationError BAD_RECIPE if a batch normalisation would have to take one value for a batch."""
    is_normalised = any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules())
    batch_size, num_images = record.recipe.batch_size, record.num_train_images
    if is_normalised and (num_images % batch_size == 1 or batch_size == 1):
        what = f"batch_size {batch_size} leaves a last batch of 1 of {num_images} images, which cannot be normalised"
        raise ConfigurationError("BAD_RECIPE", what, "change --set batch_size or --set num_validation_images")


def _interrupted(config: TrainConfig, record: RunRecord, signal: StopRequestedError) -> InterruptedRunError:
    """Returns INTERRUPTED, with what was saved and the command that goes on."""
    what, directory = f"{signal} in {title_of_next(record)}", config.run_dirs[record.seed]
    if not record.completed_epochs:
        return InterruptedRunError("INTERRUPTED", f"{what}, before anything was saved", "the same command starts again")
    done = f"{directory} has {record.completed_epochs} of {record.recipe.num_epochs} epochs"
    return InterruptedRunError("INTERRUPTED", f"{what}; {done}", f"{resume_command(config)} goes on from there")
