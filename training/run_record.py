"""Record of a run: the content of `checkpoint.json`.

Apart from the weights, so that it can be read without torch (which takes seconds to import): the record alone says
whether there is anything left to train.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from atelier.errors import BadDataError, ConfigurationError, MissingInputError
from atelier.sealed import is_sealed, parsed, record_from, sealed, unsealed
from training.recipes import Recipe
from training.trainer_process import train_command

CHECKPOINT_DIR = Path("artifacts/checkpoint")
RECORD_NAME, PREVIOUS_NAME = "checkpoint.json", "previous.json"
FORMAT = 2
OLD_FORMAT = 1  # without a digest of its own; still read, for a training is long
STATE_KEY = "state_sha256"
DIGEST = r"[0-9a-f]{64}"
# Fields that recipes once had, and the value at which each did nothing; None: at any value, beside the others' ones.
REMOVED_FIELDS = {"optimizer": "sgd", "cutout": 0, "teacher": "", "teacher_epochs": 0, "distillation_weight": 0.0}
REMOVED_FIELDS |= {"distillation_temperature": None}


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch's results; accuracies are fractions of 1."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's images, each counted with the weights of its own step
    train_acc: float  # likewise
    test_acc: float | None  # over all test images, after the epoch; None where they are kept for the last one
    step_seconds: float  # training steps alone
    seconds: float  # training steps and evaluation
    val_acc: float | None = None  # over the recipe's validation images, where it has any


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The fields of `checkpoint.json`: what was trained, on what, how far, and with which results."""

    recipe: Recipe
    seed: int
    completed_epochs: int
    metrics: tuple[EpochMetrics, ...]  # one per completed epoch
    dataset_digests: dict[str, str]  # file name -> SHA-256 of its uncompressed bytes
    dataset_verified: bool  # False: trained on data that is not Fashion-MNIST (`--unverified-data`)
    num_train_images: int
    versions: dict[str, str]  # package -> version
    hardware: str
    device: str  # "cpu", "cuda:0"
    num_threads: int  # of the CPU; results are bitwise the same only for the same number
    created: str  # ISO 8601, UTC
    wall_seconds: float  # the whole run so far, data loading and evaluation included
    precision: str = "fp32"  # of the steps: fp32, tf32, bf16
    num_processes: int = 1  # that shared each step
    kept_epochs: dict[str, str] = field(default_factory=dict)  # number, from 0 -> SHA-256 of the weights then
    # Bytes at most, of the first process so far: `resident`, and on a GPU `device_allocated` and `device_reserved`.
    peak_memory: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.completed_epochs != len(self.metrics):
            raise ValueError(f"completed_epochs is {self.completed_epochs}, but it has {len(self.metrics)} metrics")

    @property
    def is_complete(self) -> bool:
        """Whether it has all epochs of its recipe."""
        return self.completed_epochs >= self.recipe.num_epochs


def tensors_name(kind: str, sha256: str) -> str:
    """Names the file of the `weights`, of `epoch-3` (the weights after it), or of the `state` that a run goes on with.

    As the digest is part of it, new weights never overwrite old ones.
    """
    return f"{kind}-{sha256[:12]}.safetensors"


def json_from(record: RunRecord, sha256: str, state_sha256: str = "") -> bytes:
    """Returns `checkpoint.json`, for weights, and perhaps a training state, of these digests."""
    weights = tensors_name("weights", sha256)
    document = {"format": FORMAT, "weights": weights, "sha256": sha256, **dataclasses.asdict(record)}
    if state_sha256:
        document[STATE_KEY] = state_sha256
    return sealed(document)


class Saved(NamedTuple):
    """Content of `checkpoint.json`."""

    record: RunRecord
    sha256: str  # of the weights file
    state_sha256: str  # of the training state; "" if there is none


def load_record(directory: Path, name: str = RECORD_NAME) -> Saved:
    """Reads the record of `directory`'s checkpoint; the weights are not looked at.

    Raises MissingInputError NO_CHECKPOINT if there is none, BadDataError BAD_CHECKPOINT if it is malformed.
    """
    path = directory / name
    try:
        document = _document_from(path.read_bytes())
        weights, sha256, state_sha256 = document.pop("weights"), document.pop("sha256"), document.pop(STATE_KEY, "")
        # A name that could lead elsewhere (`../`) is never joined to a path.
        if not re.fullmatch(DIGEST, sha256) or weights != tensors_name("weights", sha256):
            raise ValueError(f"weights {weights!r} and sha256 {sha256!r} do not belong together")
        if state_sha256 and not re.fullmatch(DIGEST, state_sha256):
            raise ValueError(f"{STATE_KEY} is {state_sha256!r}")
        if removed := _removed_feature(document["recipe"]):
            raise bad_checkpoint(path, f"is of a run with {removed}, which this version cannot do")
        return Saved(record_of(document), sha256, state_sha256)
    except (FileNotFoundError, NotADirectoryError):
        cure = f"{train_command(*options_for(directory))} makes one"
        raise MissingInputError("NO_CHECKPOINT", f"{path} does not exist", cure) from None
    except (AttributeError, KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise bad_checkpoint(path, f"is malformed: {error!r}") from None


def _document_from(data: bytes) -> dict[str, Any]:
    """Returns the fields but the format. Raises ValueError if any byte was changed since they were written."""
    document = unsealed(data) if is_sealed(data) else parsed(data)
    found = document.pop("format", None)
    if found != (FORMAT if is_sealed(data) else OLD_FORMAT):
        raise ValueError(f"it has format {found}; this program reads {FORMAT}, with its digest, and {OLD_FORMAT}")
    return document


def read_weights(path: Path, sha256: str) -> bytes:
    """Reads the weights file's bytes, and checks that their digest is the recorded one.

    Raises BadDataError BAD_CHECKPOINT if the file is missing, truncated or changed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise bad_checkpoint(path, f"does not exist, but {RECORD_NAME} names it") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise bad_checkpoint(path, f"has SHA-256 {found[:12]}…, {RECORD_NAME} says {sha256[:12]}…")
    return data


def find_record(directory: Path) -> RunRecord | None:
    """Returns what `load_record` does, or None if there is no checkpoint."""
    try:
        return load_record(directory).record
    except MissingInputError:
        return None


def differences(
    record: RunRecord, recipe: Recipe, seed: int, dataset_digests: dict[str, str], precision: str = "fp32"
) -> list[str]:
    """Lists where the wanted run is not the recorded one, as `field wanted != recorded`."""
    wanted = {**dataclasses.asdict(recipe), "seed": seed, "precision": precision, **dataset_digests}
    run = {"seed": record.seed, "precision": record.precision, **record.dataset_digests}
    recorded = {**dataclasses.asdict(record.recipe), **run}
    return [f"{name} {value} != {recorded.get(name)}" for name, value in wanted.items() if value != recorded.get(name)]


def why_length_is_fixed(record: RunRecord, num_epochs: int) -> str:
    """Says why the run cannot go on to `num_epochs` in all and end with an unbroken run's weights; "" if it can."""
    recipe = record.recipe
    if num_epochs <= record.completed_epochs:
        return f"{record.completed_epochs} epochs are done already"
    if recipe.schedule != "constant":
        return f"schedule {recipe.schedule} spreads its step sizes over all epochs"
    if record.is_complete and recipe.memory:
        return f"what {recipe.memory} remembers is not kept when a run ends"
    return ""


def record_of(document: dict[str, Any]) -> RunRecord:
    """Returns the record whose `dataclasses.asdict` has gone through JSON. Raises ValueError if it is none."""
    known = {name: value for name, value in document["recipe"].items() if name not in REMOVED_FIELDS}
    record = record_from(RunRecord, document | {"recipe": known})
    for number, sha256 in record.kept_epochs.items():  # of which names of files are made
        if not re.fullmatch(r"\d+", number, re.ASCII) or not re.fullmatch(DIGEST, sha256):
            raise ValueError(f"kept_epochs has {number!r}: {sha256!r}")
    return record


def _removed_feature(recipe: dict[str, Any]) -> str:
    """Names the field, with its value, that had an effect and that recipes no longer have; "" if there is none."""
    used = (name for name, neutral in REMOVED_FIELDS.items() if neutral not in (None, recipe.get(name, neutral)))
    return next((f"{name} {recipe[name]}" for name in used), "")


def options_for(directory: Path) -> list[object]:
    """Returns what a command line must say of a checkpoint directory: nothing of the usual one."""
    return [] if directory == CHECKPOINT_DIR else ["--checkpoint-dir", directory]


def bad_checkpoint(path: Path, what: str) -> BadDataError:
    """Returns `BAD_CHECKPOINT: <path> <what>`, and how to get a good one."""
    directory = path if path.is_dir() else path.parent
    cure = f"{train_command('--again', *options_for(directory))} trains a new one"
    return BadDataError("BAD_CHECKPOINT", f"{path} {what}", cure)
