"""Draws a run and its model: curves, confusions, the surest mistakes, the first layer's kernels.

Writes `classes.csv` too: the accuracy in each class.
"""

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.dataset import CLASSES
from training.epoch import all_logits
from training.epoch_steps import Split
from training.models import LeNet
from training.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES_NAME = "curves.png"
CONFUSION_NAME = "confusion.png"
MISTAKES_NAME = "mistakes.png"
KERNELS_NAME = "kernels.png"
CLASSES_NAME = "classes.csv"
NUM_MISTAKES = 24
LINES = (
    ("train_loss", "-", "tab:blue"),
    ("train_acc", "--", "tab:purple"),
    ("val_acc", ":", "tab:orange"),
    ("test_acc", "-.", "tab:green"),
)


def files_of(record: RunRecord, model: LeNet, test: Split) -> tuple[dict[str, Callable[[], bytes]], str]:
    """Returns what makes each file, by its name, from the answers to the test images; and the accuracies in a line."""
    title = title_of(record)
    probabilities = all_logits(model, test.images).softmax(1).cpu()  # (N, 10)
    labels = test.labels.cpu()  # (N,)
    counts = confusion_matrix(probabilities.argmax(1), labels)  # (10, 10)
    rates = [f"{name} {rate:.3f}" for name, rate in zip(CLASSES, _class_accuracies(counts), strict=True)]
    files: dict[str, Callable[[], bytes]] = {
        CONFUSION_NAME: lambda: png_from(_confusion_figure(counts, title)),
        MISTAKES_NAME: lambda: png_from(_mistakes_figure(test.images.cpu(), probabilities, labels, title)),
        KERNELS_NAME: lambda: png_from(_kernels_figure(model, title)),
        CURVES_NAME: lambda: _curves_png_from(record),
        CLASSES_NAME: lambda: _csv_from(counts),  # the last thing that a training writes: see Makefile
    }
    return files, f"test acc per class: {', '.join(rates)}"


def _curves_png_from(record: RunRecord) -> bytes:
    """Draws the tutorial's three lines, and the validation images'."""
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
    """Returns `recipe tutorial, seed 0`; with the architecture if it is not the recipe's namesake."""
    recipe = record.recipe
    architecture = f" ({recipe.architecture})" if recipe.architecture != recipe.name else ""
    return f"recipe {recipe.name}{architecture}, seed {record.seed}"


def png_from(figure: "Figure") -> bytes:
    """Returns the figure as a file's bytes, 120 pixels an inch."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def confusion_matrix(found: Tensor, labels: Tensor) -> Tensor:
    """Counts how many images of the row's class were given the column's: (N,), (N,) -> (10, 10) int64."""
    num_classes = len(CLASSES)
    return torch.bincount(labels * num_classes + found, minlength=num_classes**2).view(num_classes, num_classes)


def _class_accuracies(counts: Tensor) -> list[float]:
    rates: list[float] = (counts.diagonal() / counts.sum(1).clamp(min=1)).tolist()
    return rates


def _csv_from(counts: Tensor) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "name", "images", "right", "accuracy"])
    for label, (name, rate) in enumerate(zip(CLASSES, _class_accuracies(counts), strict=True)):
        writer.writerow([label, name, int(counts[label].sum()), int(counts[label, label]), rate])
    return text.getvalue().encode()


def _confusion_figure(counts: Tensor, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")  # inches
    axes = figure.add_subplot()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)  # of each row
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)  # the root: mistakes are few, and are to be seen
    for row, column in (counts > 0).nonzero().tolist():
        color = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right")
    names = [f"{name}  {rate:.1%}" for name, rate in zip(CLASSES, _class_accuracies(counts), strict=True)]
    axes.set_yticks(range(len(CLASSES)), names)
    axes.set(xlabel="the model's answer", ylabel="the label, and how often it was found")
    total = counts.diagonal().sum() / counts.sum().clamp(min=1)
    axes.set_title(f"{title}: {total:.2%} of {int(counts.sum()):,} test images right")
    return figure


def _mistakes_figure(images: Tensor, probabilities: Tensor, labels: Tensor, title: str) -> "Figure":
    """Shows the wrong answers, the most probable first."""
    confidence, found = probabilities.max(1)  # (N,), (N,)
    wrong = (found != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES]
    captions = [
        f"#{index}: {CLASSES[int(found[index])]} {confidence[index]:.1%}\nlabel: {CLASSES[int(labels[index])]}"
        for index in worst.tolist()
    ]
    title = f"{title}: most confident mistakes on the test images"
    return _sheet(255 - images[worst, 0].float(), captions, title, num_columns=6, cell_inches=1.9, colors="gray")


def _kernels_figure(model: LeNet, title: str) -> "Figure":
    """Shows what speaks for a map's activation in blue, what against it in red; one scale for all kernels."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    kernels = first.weight.detach().cpu()[:, 0]  # (C, k, k)
    captions = [str(number) for number in range(len(kernels))]
    limit = float(kernels.abs().max())
    title = f"{title}: kernels of the first layer, from {-limit:.2f} (red) to {limit:.2f} (blue)"
    return _sheet(kernels, captions, title, num_columns=6, cell_inches=1.2, colors="RdBu")


def _sheet(
    cells: Tensor, captions: list[str], title: str, *, num_columns: int, cell_inches: float, colors: str
) -> "Figure":
    """Lays (C, H, W) pictures in rows, a caption above each; all in one image: 24 would take a second to draw."""
    from matplotlib.figure import Figure

    size = cells.shape[-1]
    pitch = size + size // 4  # the gap is for a caption of two lines
    num_rows = max(1, -(-len(cells) // num_columns))
    canvas = torch.full((num_rows * pitch, num_columns * pitch), torch.nan)
    figure = Figure(
        figsize=(num_columns * cell_inches * 1.25, num_rows * cell_inches * 1.25 + 0.6), layout="constrained"
    )
    axes = figure.add_subplot()
    for number, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        top, left = (number // num_columns + 1) * pitch - size, number % num_columns * pitch + size // 8
        canvas[top : top + size, left : left + size] = cell
        axes.text(left + size / 2 - 0.5, top - 0.02 * size - 0.5, caption, ha="center", va="bottom", fontsize=7)
    # Grey values have a scale of their own; kernels are shown around 0.
    limit = float(cells.abs().max()) if len(cells) else 1.0
    low, high = (0.0, 255.0) if colors == "gray" else (-limit, limit)
    axes.imshow(canvas.numpy(), cmap=colors, vmin=low, vmax=high, interpolation="nearest")
    axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure
