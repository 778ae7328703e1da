"""Log of a run in its directory: checkpoint, history.csv, TensorBoard's event files, figures; and lines on stdout.

The first process writes for all. Only the checkpoint is worth a run: of anything else that cannot be written, one
warning is all that happens.
"""

import csv
import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.files import write_atomically
from training.checkpoint import save_checkpoint
from training.divergence import warn_if_near_dead
from training.epoch_steps import Split, Steps
from training.figures import files_of
from training.models import LeNet
from training.results import epoch_line
from training.run_record import EpochMetrics, RunRecord
from training.trainer_process import is_first

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HISTORY_NAME = "history.csv"
EVENTS_NAME = "tensorboard"


class RunLog:
    """Writes what a run has to show, after each epoch and at its end."""

    def __init__(self, directory: Path, record: RunRecord, *, draws: bool = True) -> None:
        self.directory, self._is_silent, self._draws = directory, not is_first(), draws
        self._failed: set[str] = set()
        self._events: SummaryWriter | None = None
        if not self._is_silent:
            directory.mkdir(parents=True, exist_ok=True)
            self._attempt(EVENTS_NAME, partial(self._open_events, record))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()  # ends the writer's thread

    def on_epoch(self, record: RunRecord, step_losses: list[float], steps: Steps) -> None:
        """Writes and says what the record's last epoch came to."""
        if self._is_silent:
            return
        state = steps.state() if record.recipe.memory and not record.is_complete else None
        save_checkpoint(self.directory, steps.averaged.state_dict(), record, state)
        print(epoch_line(record), flush=True)
        warn_if_near_dead(record)
        self._attempt(EVENTS_NAME, partial(self._add_events, record.metrics[-1], step_losses))
        self._attempt(HISTORY_NAME, partial(self._write, HISTORY_NAME, partial(_csv_from, record.metrics)))

    def on_end(self, record: RunRecord, model: LeNet, test: Split) -> None:
        """Draws what the run and its model are like, and says how often the model is right in each class."""
        if self._is_silent:
            return
        files, line = files_of(record, model, test)
        for name, make in files.items():
            if name.endswith(".png") and not self._draws:
                (self.directory / name).unlink(missing_ok=True)  # of a run before this one
                continue
            self._attempt(name, partial(self._write, name, make))
        print(line, flush=True)

    def _attempt(self, name: str, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # whatever a library may raise, the checkpoint is what counts
            if name not in self._failed:
                what = f"{self.directory / name}: {error}"
                print(f"warning: NOT_WRITTEN: {what} (training is not affected)", file=sys.stderr)
            self._failed.add(name)

    def _write(self, name: str, make: Callable[[], bytes]) -> None:
        write_atomically(self.directory / name, make())

    # --- TensorBoard: `make curves` shows the scalars while the run trains -------------------------------------------

    def _open_events(self, record: RunRecord) -> None:
        """Goes on behind the record's epochs; of a run that begins anew, or of another one before it, nothing stays."""
        from torch.utils.tensorboard import SummaryWriter

        path = self.directory / EVENTS_NAME
        if not record.completed_epochs and path.is_dir():
            shutil.rmtree(path)
        # What a killed run had written behind its last checkpoint is hidden.
        self._events = SummaryWriter(str(path), purge_step=record.completed_epochs + 1)
        recipe = json.dumps({**dataclasses.asdict(record.recipe), "seed": record.seed}, indent=2)
        self._events.add_text("recipe", f"```\n{recipe}\n```", record.completed_epochs + 1)

    def _add_events(self, metrics: EpochMetrics, step_losses: list[float]) -> None:
        if self._events is None:
            return
        for name in ("train_loss", "train_acc", "val_acc", "test_acc", "seconds"):
            value = getattr(metrics, name)
            if value is not None:
                self._events.add_scalar(f"epoch/{name}", value, metrics.epoch)
        for step, loss in enumerate(step_losses, (metrics.epoch - 1) * len(step_losses) + 1):
            self._events.add_scalar("step/train_loss", loss, step)
        self._events.flush()


def _csv_from(metrics: Sequence[EpochMetrics]) -> bytes:
    """Writes one line per epoch; an accuracy that is None is written as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["epoch", "train_loss", "train_acc", "val_acc", "test_acc"]
    writer.writerow([*names, "seconds"])
    for epoch in metrics:
        writer.writerow([*(getattr(epoch, name) for name in names), round(epoch.seconds, 3)])
    return text.getvalue().encode()
