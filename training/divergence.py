"""Runs that have gone wrong: steps that are no numbers any more, and epochs that learn nothing.

What is near-dead is first only warned about: sigmoids may sit at chance for some epochs before they move.
"""

import itertools
import math
import sys
from typing import TYPE_CHECKING

from atelier.errors import BadDataError
from training.run_record import EpochMetrics, RunRecord

if TYPE_CHECKING:
    from torch import nn

CHANCE = 0.1  # ten classes of as many images each
CHANCE_MARGIN = 0.05
EXPLODED_LOSS = 10 * math.log(10)  # ten times what guessing costs
ENOUGH_STEPS = 100  # an epoch of fewer has had no time to leave chance
PATIENCE_EXPLODED = 3  # epochs in a row
PATIENCE = 6


def is_near_chance(accuracy: float) -> bool:
    """Returns whether guessing does as well, or nearly."""
    return accuracy <= CHANCE + CHANCE_MARGIN


def accuracy_of(metrics: EpochMetrics) -> float:
    """Returns the accuracy at the epoch's end, on the test images if they were looked at."""
    known = (metrics.test_acc, metrics.val_acc, metrics.train_acc)
    return next(value for value in known if value is not None)


def check_steps(step_losses: list[float], model: "nn.Module", title: str, learning_rate: float) -> None:
    """Raises BadDataError DIVERGED if a loss is no finite number, for the first such step, or a weight, for the last.

    A step that was left out, because its gradient was not finite, has NaN for its loss.
    """
    bad_steps = [step for step, loss in enumerate(step_losses, 1) if not math.isfinite(loss)]
    if not bad_steps and all(bool(weight.isfinite().all()) for weight in model.parameters()):
        return
    step = bad_steps[0] if bad_steps else len(step_losses)
    what = f"{title}, step {step} of {len(step_losses)}: the loss, a gradient or a weight is not finite"
    cure = "the last good checkpoint is kept; set a lower --learning-rate"
    raise BadDataError("DIVERGED", f"{what} at learning rate {learning_rate}", cure)


def warn_if_near_dead(record: RunRecord) -> None:
    """Prints a warning, with its cure, if the last epoch learnt nothing."""
    if why := _why_near_dead(record.metrics[-1], record):
        title = f"seed {record.seed}, epoch {record.completed_epochs}/{record.recipe.num_epochs}"
        cure = f"{_cure(record)}; after {_patience(record)} such epochs the run ends"
        print(f"warning: NEAR_DEAD: {title}: {why} ({cure})", file=sys.stderr, flush=True)


def check_epochs(record: RunRecord) -> None:
    """Raises BadDataError DIVERGED if the last epochs, as many as patience allows, have learnt nothing."""
    reasons = [_why_near_dead(metrics, record) for metrics in reversed(record.metrics)]
    num_dead = len(list(itertools.takewhile(bool, reasons)))
    if num_dead >= _patience(record):
        what = f"seed {record.seed}, the last {num_dead} epochs of {record.completed_epochs}: {reasons[0]}"
        raise BadDataError("DIVERGED", what, f"train it --again: {_cure(record)}")


def _why_near_dead(metrics: EpochMetrics, record: RunRecord) -> str:
    if metrics.train_loss > EXPLODED_LOSS:
        return f"the loss is {metrics.train_loss:.3g}, and guessing costs {math.log(10):.3g}"
    accuracy = accuracy_of(metrics)
    num_steps = math.ceil(record.num_train_images / record.recipe.batch_size)
    if num_steps >= ENOUGH_STEPS and is_near_chance(accuracy):
        return f"the accuracy is {accuracy:.3f}, and guessing gives {CHANCE:g}"
    return ""


def _patience(record: RunRecord) -> int:
    """Returns how many such epochs are borne: what has exploded does not come back, what has not may be slow."""
    return PATIENCE_EXPLODED if _has_exploded(record) else PATIENCE


def _cure(record: RunRecord) -> str:
    cure = f"set a lower --learning-rate than {record.recipe.learning_rate:g}"
    return cure if _has_exploded(record) else f"{cure}, or for sigmoids and tanh perhaps a higher one"


def _has_exploded(record: RunRecord) -> bool:
    return any(metrics.train_loss > EXPLODED_LOSS for metrics in record.metrics)
