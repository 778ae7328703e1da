"""A checkpoint: `weights-<digest>.safetensors`, and `checkpoint.json` that names it.

The rename of the JSON is the moment at which a new checkpoint takes the old one's place: a reader, or a power cut,
finds one or the other, whole. Nothing here can execute code that it loads, and no weights are used whose digest is not
the one recorded (no file format notices a flipped bit by itself).
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from atelier.errors import BadDataError
from atelier.files import TEMPORARY_FILES, write_atomically
from training.models import LeNet, model_for
from training.recovery import files_of, kept_for
from training.run_record import (
    RECORD_NAME,
    RunRecord,
    Saved,
    bad_checkpoint,
    json_from,
    load_record,
    read_weights,
    tensors_name,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(RunRecord):
    """A record and its weights."""

    state_dict: dict[str, Tensor]  # on the CPU, in the model's dtype
    sha256: str  # of the weights file


def save_checkpoint(
    directory: Path, state_dict: dict[str, Tensor], record: RunRecord, training_state: dict[str, Tensor] | None = None
) -> None:
    """Makes (`state_dict`, `record`) the checkpoint of `directory`; only one process may write there at a time.

    `training_state` is what a run needs beside the weights to go on; a finished one needs nothing.

    The checkpoint of the epoch before stays beside it until the run is finished (training/recovery.py).

    Raises BadDataError NON_FINITE for weights that are not finite, and OSError if the disk fails; the previous
    checkpoint is then still there, whole.
    """
    check_finite(state_dict, "the weights to save")
    sha256 = _write(directory, "weights", state_dict)
    state_sha256 = _write(directory, "state", training_state) if training_state else ""
    previous = kept_for(record, directory)
    write_atomically(directory / RECORD_NAME, json_from(record, sha256, state_sha256))
    # From here on the new checkpoint counts; what is left of older saves, finished or not, goes.
    epochs = (tensors_name(f"epoch-{number}", digest) for number, digest in record.kept_epochs.items())
    kept = {*files_of(Saved(record, sha256, state_sha256)), *previous, *epochs}
    for pattern in ("weights-*.safetensors", "state-*.safetensors", "epoch-*.safetensors", TEMPORARY_FILES):
        for leftover in directory.glob(pattern):
            if leftover.name not in kept:
                leftover.unlink(missing_ok=True)


def _write(directory: Path, kind: str, tensors: dict[str, Tensor]) -> str:
    """Writes a safetensors file, which its kind and its digest name; returns the digest."""
    data = bytes_from(tensors)
    sha256 = hashlib.sha256(data).hexdigest()
    write_atomically(directory / tensors_name(kind, sha256), data)
    return sha256


def bytes_from(tensors: dict[str, Tensor]) -> bytes:
    """Writes tensors as a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def check_finite(state_dict: dict[str, Tensor], where: str) -> None:
    """Raises BadDataError NON_FINITE, naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in state_dict.items():
        if not bool(tensor.isfinite().all()):
            raise BadDataError("NON_FINITE", f"{where}: {name} holds NaN or infinity", "train with a smaller step")


def load_checkpoint(directory: Path) -> Checkpoint:
    """Reads the checkpoint of `directory`, its weights checked against their digest.

    Raises MissingInputError NO_CHECKPOINT if there is none, BadDataError BAD_CHECKPOINT if a file is missing,
    truncated, changed or not of this format, and NON_FINITE where a weight is no number.
    """
    record, sha256, _ = load_record(directory)
    state_dict = load_tensors(directory / tensors_name("weights", sha256), sha256)
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return Checkpoint(state_dict=state_dict, sha256=sha256, **fields)


def load_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Reads a safetensors file of this digest. Raises BadDataError BAD_CHECKPOINT and NON_FINITE."""
    try:
        tensors = load(read_weights(path, sha256))
    except SafetensorError as error:
        raise bad_checkpoint(path, f"is not a safetensors file: {error}") from None
    check_finite(tensors, str(path))
    return tensors


def load_training_state(directory: Path) -> dict[str, Tensor]:
    """Reads what was saved as `training_state` with the checkpoint. Raises as `load_checkpoint` does."""
    sha256 = load_record(directory).state_sha256
    if not sha256:
        raise bad_checkpoint(directory / RECORD_NAME, "names no training state to resume from")
    return load_tensors(directory / tensors_name("state", sha256), sha256)


def load_model(directory: Path) -> tuple[LeNet, Checkpoint]:
    """Returns the trained model, on the CPU and in eval mode, and the checkpoint that it came from.

    Raises as `load_checkpoint` does, and BadDataError BAD_CHECKPOINT listing the tensors if the weights are not
    those of the architecture that the checkpoint names.
    """
    checkpoint = load_checkpoint(directory)
    model = model_for(checkpoint.recipe)
    differences = _differences(checkpoint.state_dict, model.state_dict())
    if differences:
        raise bad_checkpoint(directory, f"does not fit {checkpoint.recipe.architecture!r}: {'; '.join(differences)}")
    model.load_state_dict(checkpoint.state_dict)
    return model.eval(), checkpoint


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    differences = [f"missing {name}" for name in wanted if name not in found]
    differences += [f"unexpected {name}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        theirs, ours = found[name], wanted[name]
        if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
            differences.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, not {ours.dtype} {tuple(ours.shape)}")
    return sorted(differences)


# --- The weights after each epoch, for those who want to see how they came about: --keep-epochs -----------------------


def keep_epoch(directory: Path, record: RunRecord, state_dict: dict[str, Tensor]) -> RunRecord:
    """Writes the weights after the record's last epoch, 0 at the beginning; returns the record with their digest."""
    number = str(record.completed_epochs)
    sha256 = _write(directory, f"epoch-{number}", state_dict)
    return dataclasses.replace(record, kept_epochs={**record.kept_epochs, number: sha256})


def load_epochs(directory: Path, record: RunRecord) -> dict[int, dict[str, Tensor]]:
    """Reads the weights of each epoch that was kept. Raises BadDataError BAD_CHECKPOINT and NON_FINITE."""
    return {
        int(number): load_tensors(directory / tensors_name(f"epoch-{number}", sha256), sha256)
        for number, sha256 in record.kept_epochs.items()
    }
