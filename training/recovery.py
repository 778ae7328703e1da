"""Goes back to the checkpoint of the epoch before, if the last one is damaged. Needs no torch.

While a run goes on, `previous.json` is the record before `checkpoint.json`, and its weights stay. A finished run has
nothing to go on from, and keeps no other.
"""

from pathlib import Path

from atelier.errors import BadDataError, MissingInputError
from atelier.files import write_atomically
from training.run_record import (
    PREVIOUS_NAME,
    RECORD_NAME,
    RunRecord,
    Saved,
    find_record,
    load_record,
    read_weights,
    tensors_name,
)


def record_to_resume(directory: Path) -> RunRecord | None:
    """Returns the record that a run would go on from, or None if there is none. Raises as `load_record`."""
    try:
        return find_record(directory)
    except BadDataError as damage:
        return _previous(directory, damage)


def restore_previous(directory: Path) -> str:
    """Puts the previous checkpoint in the place of a damaged one; returns what there is to say of it, "" if nothing.

    Raises BadDataError BAD_CHECKPOINT if neither is whole. Only one process may write in `directory` at a time.
    """
    try:
        _whole(directory, RECORD_NAME)
    except MissingInputError:
        return ""
    except BadDataError as damage:
        record = _previous(directory, damage)
        write_atomically(directory / RECORD_NAME, (directory / PREVIOUS_NAME).read_bytes())
        done = f"{record.completed_epochs} of {record.recipe.num_epochs} epochs"
        return f"warning: {damage.word}: {damage.what}: going back to the checkpoint before it, with {done}"
    return ""


def kept_for(record: RunRecord, directory: Path) -> set[str]:
    """Makes the checkpoint of the epoch before `record` the previous one; returns the names of its files.

    Without one, or at the end of a run, nothing is previous any more.
    """
    try:
        last = load_record(directory)
    except (MissingInputError, BadDataError):
        last = None
    if last is None or record.is_complete or not _is_before(last.record, record):
        (directory / PREVIOUS_NAME).unlink(missing_ok=True)
        return set()
    write_atomically(directory / PREVIOUS_NAME, (directory / RECORD_NAME).read_bytes())
    return {*files_of(last)}


def _is_before(last: RunRecord, record: RunRecord) -> bool:
    """Tells one run's epochs from those of another that was begun in its place."""
    return last.metrics == record.metrics[:-1] and (last.seed, last.precision) == (record.seed, record.precision)


def _previous(directory: Path, damage: BadDataError) -> RunRecord:
    try:
        return _whole(directory, PREVIOUS_NAME)
    except (MissingInputError, BadDataError):
        raise damage from None


def _whole(directory: Path, name: str) -> RunRecord:
    saved = load_record(directory, name)
    for file, sha256 in files_of(saved).items():
        read_weights(directory / file, sha256)
    return saved.record


def files_of(saved: Saved) -> dict[str, str]:
    """Returns the names of a checkpoint's files, with their digests."""
    digests = {"weights": saved.sha256, "state": saved.state_sha256}
    return {tensors_name(kind, sha256): sha256 for kind, sha256 in digests.items() if sha256}
