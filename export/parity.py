"""Runs the parity gate: every runtime against the model in float64, on the same images, at several batch sizes.

A runtime passes if every logit of every image at every batch size is within the tolerance of the truth and the
class is the truth's wherever the truth is not a tie. Results hold the numbers and are true when they passed.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from atelier.contract import TOLERANCES, Images, Tolerance, margins
from atelier.errors import BadDataError
from export.parity_inputs import ParityInputs, Truth
from serving.backends.base import Backend

BATCH_SIZES = (1, 2, 7, 64)  # and the largest


@dataclass(frozen=True, kw_only=True)
class RuntimeParity:
    """Compares one runtime with the truth. Differences are of logits, the largest over all images and batch sizes."""

    runtime: str
    device: str
    precision: str  # whose tolerance it is held to
    num_compared: int  # logits
    num_outside: int  # of them beyond the tolerance, NaN and infinity included
    num_non_finite: int
    max_abs_diff: float
    max_rel_diff: float  # relative to the truth, if that is not 0
    mean_abs_diff: float
    tolerance_used: float  # the largest share of a logit's tolerance: over 1 is outside
    worst_image: int  # index of the image that uses that share
    worst_image_name: str
    num_decided: int  # images whose truth is no tie
    top1_agreement: float  # fraction of those that get the truth's class at every batch size
    accuracy: float  # on the test images, at the largest batch size
    accuracy_loss: float  # by how much that is below the truth's
    max_batch_movement: float  # how far a logit moves with the size of the batch that its image lands in
    num_batch_flips: int  # images that are no tie, and whose class changes with the batch

    def __bool__(self) -> bool:
        # A flip is a disagreement at one batch size, and of ties alone the agreement is 0: neither can pass.
        is_as_right = self.accuracy_loss <= TOLERANCES[self.precision].max_accuracy_loss
        return self.num_outside == 0 and self.top1_agreement == 1 and is_as_right


@dataclass(frozen=True, kw_only=True)
class PairDifference:
    """Compares two runtimes; nothing to pass, since both are held against the truth."""

    runtimes: tuple[str, str]
    max_abs_diff: float
    mean_abs_diff: float
    top1_agreement: float  # outside ties


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The gate's result."""

    precision: str
    tolerance: Tolerance
    batch_sizes: tuple[int, ...]
    num_test_images: int
    num_edge_images: int
    num_ties: int
    truth_accuracy: float
    runtimes: tuple[RuntimeParity, ...]
    pairs: tuple[PairDifference, ...]
    first_divergence: str = ""  # where the first runtime that failed leaves the truth, in words

    def __bool__(self) -> bool:
        return bool(self.runtimes) and all(self.runtimes)


def run_gate(truth: Truth, backends: Sequence[Backend], inputs: ParityInputs, precision: str) -> ParityReport:
    """Holds every backend against the truth and against the others, and shows its progress.

    `precision` is the model's; the program is always fp32 and held to fp32's tolerance, whatever is made of it.
    Raises BadDataError PARITY if there is nothing to compare.
    """
    if not backends or not len(inputs.labels):
        what = f"nothing was compared: {len(backends)} runtimes, {len(inputs.labels)} test images"
        raise BadDataError("PARITY", what, "give at least one of each")
    images, tolerance = inputs.images, TOLERANCES[precision]
    max_batch_size = min(backend.max_batch_size for backend in backends)
    batch_sizes = tuple(sorted({*(size for size in BATCH_SIZES if size < max_batch_size), max_batch_size}))
    true_logits = truth(images)  # (N, 10)
    decided = margins(true_logits) >= tolerance.tie_margin  # (N,)
    found = [_logits_at_batch_sizes(backend, images, batch_sizes) for backend in backends]  # each (B, N, 10)
    runtimes = [
        compare(
            true_logits, logits, inputs, _precision_of(backend, precision), runtime=backend.name, device=backend.device
        )
        for backend, logits in zip(backends, found, strict=True)
    ]
    named = zip((f"{backend.name} on {backend.device}" for backend in backends), found, strict=True)
    return ParityReport(
        precision=precision,
        tolerance=tolerance,
        batch_sizes=batch_sizes,
        num_test_images=len(inputs.labels),
        num_edge_images=len(inputs.edge_names),
        num_ties=int((~decided).sum()),
        truth_accuracy=_fraction(true_logits[: len(inputs.labels)].argmax(1) == inputs.labels),
        runtimes=tuple(runtimes),
        pairs=tuple(_pair_difference(one, other, decided) for one, other in itertools.combinations(named, 2)),
    )


def _precision_of(backend: Backend, precision: str) -> str:
    return "fp32" if backend.name == "torch" else precision


def truth_of(model: nn.Module) -> Truth:
    """Copies the model in float64: its error is a billionth of float32's, so it stands for the mathematics."""
    double = copy.deepcopy(model).double().eval()

    def truth(images: Images) -> NDArray[np.float64]:
        with torch.inference_mode():
            chunks = [double(torch.tensor(chunk)) for chunk in np.array_split(images, len(images) // 256 + 1)]
        logits: NDArray[np.float64] = torch.cat(chunks).numpy()  # (N, 10)
        return logits

    return truth


def _logits_at_batch_sizes(backend: Backend, images: Images, batch_sizes: Sequence[int]) -> NDArray[np.float32]:
    """Runs all images in batches of each size in turn, the last of each maybe smaller: (B, N, 10).

    Warmed up as in serving: if a batch size has a CUDA graph, all are captured before any is compared.
    """
    backend.warm_up()
    logits = np.empty((len(batch_sizes), len(images), 10), np.float32)
    with tqdm(total=logits[..., 0].size, unit="image", desc=backend.name, disable=None) as progress:
        for row, batch_size in enumerate(batch_sizes):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                logits[row, start : start + batch_size] = backend.infer(batch)
                progress.update(len(batch))
    return logits


@np.errstate(invalid="ignore")  # infinity less infinity is NaN, and counts as outside
def compare(
    truth: NDArray[np.float64],
    found: NDArray[np.float32],
    inputs: ParityInputs,
    precision: str,
    *,
    runtime: str,
    device: str,
) -> RuntimeParity:
    """Compares `truth` (N, 10) with `found` (B, N, 10), one row per batch size, the largest last."""
    tolerance = TOLERANCES[precision]
    diff, size = np.abs(found - truth), np.abs(truth)  # (B, N, 10), (N, 10)
    used = np.nan_to_num(diff / (tolerance.atol + tolerance.rtol * size), nan=np.inf)  # (B, N, 10): 1 is all of it
    relative = np.divide(diff, size, where=size > 0, out=np.zeros_like(diff))  # (B, N, 10)
    decided = margins(truth) >= tolerance.tie_margin  # (N,)
    classes, num_labels = found.argmax(2), len(inputs.labels)  # (B, N)
    accuracy = _fraction(classes[-1, :num_labels] == inputs.labels)
    worst_image = int(used.max(axis=(0, 2)).argmax())
    return RuntimeParity(
        runtime=runtime,
        device=device,
        precision=precision,
        num_compared=diff.size,
        num_outside=int((used > 1).sum()),
        num_non_finite=int((~np.isfinite(found)).sum()),
        max_abs_diff=float(diff.max()),
        max_rel_diff=float(relative.max()),
        mean_abs_diff=float(diff.mean()),
        tolerance_used=float(used.max()),
        worst_image=worst_image,
        worst_image_name=inputs.describe(worst_image),
        num_decided=int(decided.sum()),
        top1_agreement=_fraction((classes == truth.argmax(1)).all(axis=0)[decided]),
        accuracy=accuracy,
        accuracy_loss=_fraction(truth[:num_labels].argmax(1) == inputs.labels) - accuracy,
        max_batch_movement=float((found.max(axis=0) - found.min(axis=0)).max()),
        num_batch_flips=int((classes != classes[0]).any(axis=0)[decided].sum()),
    )


@np.errstate(invalid="ignore")
def _pair_difference(
    one: tuple[str, NDArray[np.float32]], other: tuple[str, NDArray[np.float32]], decided: NDArray[np.bool_]
) -> PairDifference:
    diff = np.abs(one[1] - other[1])  # (B, N, 10)
    same_class = (one[1].argmax(2) == other[1].argmax(2)).all(axis=0)  # (N,)
    return PairDifference(
        runtimes=(one[0], other[0]),
        max_abs_diff=float(diff.max()),
        mean_abs_diff=float(diff.mean()),
        top1_agreement=_fraction(same_class[decided]),
    )


def _fraction(right: NDArray[np.bool_]) -> float:
    """Returns the mean, and 0 of nothing: comparing nothing is no success."""
    return float(right.mean()) if right.size else 0.0
