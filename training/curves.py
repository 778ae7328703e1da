"""A run's history as numbers (`history.csv`) and as a picture (`curves.png`), beside its checkpoint.

Neither is worth a run: where one cannot be written, a warning is all that happens.
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.files import write_atomically
from training.run_record import EpochMetrics, RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY_NAME = "history.csv"
CURVES_NAME = "curves.png"
LINES = (
    ("train_loss", "-", "tab:blue"),
    ("train_acc", "--", "tab:purple"),
    ("val_acc", ":", "tab:orange"),
    ("test_acc", "-.", "tab:green"),
)


def save_history(directory: Path, metrics: Sequence[EpochMetrics]) -> bool:
    """Writes one line per epoch; returns whether that worked, and warns where it did not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", "train_loss", "train_acc", "val_acc", "test_acc", "seconds"])
    for epoch in metrics:
        accuracies = (epoch.train_acc, epoch.val_acc, epoch.test_acc)  # None is written as nothing
        writer.writerow([epoch.epoch, epoch.train_loss, *accuracies, round(epoch.seconds, 3)])
    try:
        write_atomically(directory / HISTORY_NAME, text.getvalue().encode())
    except OSError as error:
        warn_not_written(directory / HISTORY_NAME, error)
        return False
    return True


def save_curves(directory: Path, record: RunRecord) -> bool:
    """Draws the tutorial's three lines; returns whether that worked, and warns where it did not."""
    try:
        write_atomically(directory / CURVES_NAME, _curves_png_from(record))
    except Exception as error:  # whatever a drawing library may raise, the checkpoint is what counts
        warn_not_written(directory / CURVES_NAME, error)
        return False
    return True


def _curves_png_from(record: RunRecord) -> bytes:
    from matplotlib.figure import Figure  # only when there is something to draw: it takes a while to import
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")  # inches; no pyplot, so no display and no global state
    axes = figure.add_subplot()
    for name, style, color in LINES:
        points = {metrics.epoch: getattr(metrics, name) for metrics in record.metrics}
        points = {epoch: value for epoch, value in points.items() if value is not None}
        if not points:
            continue
        epochs, values = list(points), list(points.values())
        label = f"{name.replace('_', ' ')}: {values[-1]:.3f}"
        axes.plot(epochs, values, style, marker="o", markersize=3, color=color, label=label)
    axes.set(xlabel="epoch", ylabel="loss, accuracy")
    axes.set_title(f"LeNet-5 on Fashion-MNIST, {title_of(record)}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title=f"after epoch {record.completed_epochs}")
    return png_from(figure)


def title_of(record: RunRecord) -> str:
    """`recipe tutorial, seed 0`; with the architecture where it is not the recipe's namesake."""
    recipe = record.recipe
    architecture = f" ({recipe.architecture})" if recipe.architecture != recipe.name else ""
    return f"recipe {recipe.name}{architecture}, seed {record.seed}"


def png_from(figure: "Figure") -> bytes:
    """The figure as a file's bytes, 120 pixels an inch."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def warn_not_written(path: Path, error: Exception) -> None:
    """One line on stderr, for what nothing else depends on."""
    print(f"warning: NOT_WRITTEN: {path}: {error} (training is not affected)", file=sys.stderr)
