"""Keeps each epoch's weights beside the checkpoint, for those who want to see how they came about: `--keep-epochs`.

Epoch 0 is what the run began with. The record has the digests, so these files are read as the last weights are.
"""

import dataclasses
import hashlib
from pathlib import Path

from torch import Tensor

from atelier.files import write_atomically
from training.checkpoint import bytes_from, load_tensors
from training.run_record import RunRecord, epoch_name


def keep_epoch(directory: Path, record: RunRecord, state_dict: dict[str, Tensor]) -> RunRecord:
    """Writes the weights after the record's last epoch, and returns the record that names them."""
    data, number = bytes_from(state_dict), str(record.completed_epochs)
    digest = hashlib.sha256(data).hexdigest()
    write_atomically(directory / epoch_name(number, digest), data)
    return dataclasses.replace(record, kept_epochs={**record.kept_epochs, number: digest})


def load_epochs(directory: Path, record: RunRecord) -> dict[int, dict[str, Tensor]]:
    """Reads the weights of each epoch that was kept. Raises BadDataError BAD_CHECKPOINT and NON_FINITE."""
    kept = record.kept_epochs.items()
    return {int(number): load_tensors(directory / epoch_name(number, digest), digest) for number, digest in kept}
