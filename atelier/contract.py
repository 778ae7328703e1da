"""The tensors that every program, artifact and call agrees on: `images` in, `logits` out, within which tolerance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, 1, 28, 28), row-major, 0 = background
Logits = NDArray[np.float32]  # (N, 10)

IMAGE_SHAPE = (1, 28, 28)
IMAGE_BYTES = 28 * 28
NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output; -1 in `shape` stands for the batch, `dtype` is NumPy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


# --- The rows of the parity gate, to which the export holds every runtime, and every server itself --------------------


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Bounds how far from the float64 truth a logit may be, as NumPy does: |found - truth| <= atol + rtol * |truth|."""

    rtol: float
    atol: float
    tie_margin: float  # if the truth's two best logits are closer than this, either class is right
    max_accuracy_loss: float  # on the test images; ties count here, so that many of them cannot hide a loss


# Per precision. A logit is the end of five layers, so it is off by some units in the last place of the type that the
# layers round to: 2^-24 relative in fp32, 2^-11 in tf32 and fp16, 2^-8 in bf16, and half a 127th of the range in int8.
# The numbers are two to three times what rounding after every operator was measured to do to trained models.
TIE_MARGIN = 1e-4
TOLERANCES = {
    "fp32": Tolerance(rtol=1e-5, atol=1e-5, tie_margin=TIE_MARGIN, max_accuracy_loss=1.0),
    "tf32": Tolerance(rtol=2e-3, atol=1.5e-2, tie_margin=2e-2, max_accuracy_loss=0.002),
    "fp16": Tolerance(rtol=2e-3, atol=1.5e-2, tie_margin=2e-2, max_accuracy_loss=0.002),
    "bf16": Tolerance(rtol=2e-2, atol=2e-1, tie_margin=2e-1, max_accuracy_loss=0.005),
    "int8": Tolerance(rtol=5e-2, atol=4e-1, tie_margin=4e-1, max_accuracy_loss=0.005),
}


def margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far the best class is ahead of the second: (N, 10) -> (N,)."""
    best = np.partition(logits, -2, axis=1)[:, -2:]  # (N, 2): second, best
    return best[:, 1] - best[:, 0]
