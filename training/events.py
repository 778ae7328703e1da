"""The curves as TensorBoard's event files, in `tensorboard/` beside the checkpoint: `make curves` shows them live.

Like the other curves they are not worth a run: where they cannot be written, a warning is all that happens.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from training.curves import warn_not_written
from training.run_record import EpochMetrics, RunRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_NAME = "tensorboard"


class EventLog:
    """A run's scalars, to be seen while it trains."""

    writer: "SummaryWriter | None"

    def __init__(self, directory: Path, record: RunRecord) -> None:
        """Goes on behind the record's epochs; of a run that begins anew, or of another one before it, nothing stays."""
        self.path, self.writer = directory / EVENTS_NAME, None
        try:
            from torch.utils.tensorboard import SummaryWriter

            if not record.completed_epochs and self.path.is_dir():
                shutil.rmtree(self.path)
            # What a killed run had written behind its last checkpoint is hidden.
            self.writer = SummaryWriter(str(self.path), purge_step=record.completed_epochs + 1)
            recipe = json.dumps({**dataclasses.asdict(record.recipe), "seed": record.seed}, indent=2)
            self.writer.add_text("recipe", f"```\n{recipe}\n```", record.completed_epochs + 1)
        except Exception as error:  # no library is worth a run
            warn_not_written(self.path, error)

    def add(self, metrics: EpochMetrics, step_losses: list[float]) -> None:
        """One epoch's results, and the loss of each of its steps."""
        if self.writer is None:
            return
        first_step = (metrics.epoch - 1) * len(step_losses)
        try:
            for name in ("train_loss", "train_acc", "val_acc", "test_acc", "seconds"):
                value = getattr(metrics, name)
                if value is not None:
                    self.writer.add_scalar(f"epoch/{name}", value, metrics.epoch)
            for step, loss in enumerate(step_losses, first_step + 1):
                self.writer.add_scalar("step/train_loss", loss, step)
            self.writer.flush()
        except Exception as error:
            self.close()
            warn_not_written(self.path, error)

    def close(self) -> None:
        """Ends the writer's thread."""
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()
