"""Decides where each run of a call begins: it is finished, goes on from its checkpoint, or is new. Needs no torch."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import BadDataError, ConfigurationError, MissingInputError
from training.config import TrainConfig, resume_command
from training.idx_files import FILES
from training.run_record import (
    RunRecord,
    differences,
    load_record,
    read_weights,
    tensors_name,
    why_length_is_fixed,
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start of a run: it is finished if its record is complete, goes on from another, and is new without."""

    record: RunRecord | None = None
    note: str = ""  # for the user

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.record is not None and self.record.is_complete


def start_of(config: TrainConfig, seed: int, directory: Path, digests: dict[str, str]) -> Start:
    """Looks at the checkpoint of `directory`, if there is one, and decides where the run of `seed` begins.

    Raises ConfigurationError CONFIG_MISMATCH if --resume would go on with another run, EPOCHS_NOT_KEPT if a finished
    one lacks the epochs that are wanted, BadDataError BAD_CHECKPOINT if the checkpoint is malformed or a finished run's
    weights are not those it ended with.
    """
    if config.again:
        return Start()
    try:
        record, sha256, _ = load_record(directory)
    except MissingInputError:
        return Start()
    found = differences(record, config.recipe, seed, digests, config.precision)
    if record.is_complete and not found:
        if config.keep_epochs and not record.kept_epochs:
            cure = "--again beside it trains anew"
            raise ConfigurationError("EPOCHS_NOT_KEPT", f"{directory} was trained without --keep-epochs", cure)
        read_weights(directory / tensors_name("weights", sha256), sha256)
        return Start(record=record, note=f"seed {seed} is trained already, in {directory} (--again trains it anew)")
    found = _contradictions(record, config.recipe.num_epochs, found)
    # What a further seed's directory holds of another run nobody has asked to resume.
    if found and config.resume and directory == config.checkpoint_dir:
        raise _mismatch(config, record, digests, found)
    done = f"{directory} has {record.completed_epochs} of {record.recipe.num_epochs} epochs"
    if found or not config.resume:
        what = f" of another run ({'; '.join(found)})" if found else "; --resume would go on from there"
        return Start(note=f"starting anew: {done}{what}")
    return Start(record=dataclasses.replace(record, recipe=config.recipe), note=f"resuming: {done}")


def finished_runs(config: TrainConfig) -> list[RunRecord]:
    """Returns the records of all seeds if there is nothing left to train, else none. Needs neither data nor torch.

    A data directory or a GPU that was asked for is looked at even so: what is missing is an error.
    """
    if config.again or config.unverified_data or config.data_dir or os.environ.get("FASHION_MNIST_DIR"):
        return []
    if config.device.startswith("cuda") or "RANK" in os.environ:
        return []
    digests = {file.name: file.sha256 for file in FILES}
    try:
        starts = [start_of(config, seed, directory, digests) for seed, directory in config.run_dirs.items()]
    except BadDataError:
        if config.resume:  # there may be a checkpoint to go back to
            return []
        raise
    records = [start.record for start in starts if start.record and start.is_finished]
    if len(records) < len(starts):
        return []
    print(f"{config.checkpoint_dir} is trained already (--again trains it anew):")
    return records


def _contradictions(record: RunRecord, num_epochs: int, found: list[str]) -> list[str]:
    """Leaves out another length, if nothing depends on it; or else says what does."""
    why = why_length_is_fixed(record, num_epochs)
    others = [each for each in found if why or not each.startswith("num_epochs ")]
    return [f"{each}, and {why}" if each.startswith("num_epochs ") else each for each in others]


def _mismatch(config: TrainConfig, record: RunRecord, digests: dict[str, str], found: list[str]) -> ConfigurationError:
    """Returns CONFIG_MISMATCH, with the command that would go on."""
    what = f"cannot resume the run in {config.checkpoint_dir}: {'; '.join(found)}"
    cure = f"{resume_command(dataclasses.replace(config, recipe=record.recipe))} takes these from the checkpoint"
    if record.dataset_digests != digests:
        cure = "name the directory of its data with --data-dir"
    return ConfigurationError("CONFIG_MISMATCH", what, f"{cure}; --again in place of --resume starts a new run there")
