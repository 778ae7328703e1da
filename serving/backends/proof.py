"""Proof on arrival: the backend that a server has opened gives the model's logits here, before it serves.

The export's gate ran where the export ran. An engine, a library, a driver or a GPU may do something else where it is
served, and an engine of TensorRT for RTX may never have run at all. So the manifest carries probes: images and the
model's logits in float64. They are run in batches of 1, 7 and the largest, and held to the row of the gate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atelier.contract import TOLERANCES, Images, margins
from atelier.errors import BadDataError
from atelier.memory import is_out_of_memory
from serving.backends.base import Backend
from serving.manifest import Manifest

BATCH_SIZES = (1, 7)  # and the largest


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Records what a backend did on the probes of its version."""

    max_abs_diff: float
    num_probes: int
    batch_sizes: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return f"proven here on {self.num_probes} probes in batches of {sizes}: max_abs_diff {self.max_abs_diff:.2e}"


def prove(backend: Backend, manifest: Manifest) -> Proof:
    """Holds the backend to its precision's row of the gate. Raises BadDataError PARITY_HERE at the first difference."""
    images, truth = manifest.probes.arrays()
    largest = backend.max_batch_size
    batch_sizes = tuple(sorted({*(size for size in BATCH_SIZES if size < largest), largest}))
    max_abs_diff = 0.0
    for size in batch_sizes:
        # In full batches: the last one begins anew, and the largest may hold every probe several times.
        probes = np.arange(-(-len(images) // size) * size) % len(images)
        found = _answers(backend, images[probes], size)
        fault = _fault(found, truth[probes], manifest.precision)
        if fault is not None:
            index, what = fault
            probe = f"probe {probes[index]} ({manifest.probes.names[probes[index]]}) in a batch of {size}"
            raise _parity_here(backend, f"{probe}: {what}")
        max_abs_diff = max(max_abs_diff, float(np.abs(found - truth[probes]).max()))
    return Proof(max_abs_diff=max_abs_diff, num_probes=len(images), batch_sizes=batch_sizes)


def _answers(backend: Backend, images: Images, size: int) -> NDArray[np.float32]:
    """Runs (N, 1, 28, 28), N a multiple of `size`, in batches of that; returns (N, 10)."""
    found = np.empty((len(images), 10), np.float32)
    for start in range(0, len(images), size):
        try:
            logits = backend.infer(images[start : start + size])
        except Exception as error:  # each runtime has its own
            if is_out_of_memory(error):
                raise
            raise _parity_here(backend, f"a batch of {size} failed: {' '.join(str(error).split())}") from error
        if logits.shape != (size, 10):
            raise _parity_here(backend, f"a batch of {size} has logits of shape {logits.shape}")
        found[start : start + size] = logits
    return found


@np.errstate(invalid="ignore")  # NaN counts as outside
def _fault(found: NDArray[np.float32], truth: NDArray[np.float64], precision: str) -> tuple[int, str] | None:
    """Finds the worst answer outside the row, its index and what is wrong with it; None if none is."""
    row = TOLERANCES[precision]
    allowed = row.atol + row.rtol * np.abs(truth)  # (N, 10)
    used = np.nan_to_num(np.abs(found - truth) / allowed, nan=np.inf)  # (N, 10): 1 is all of it
    index, label = (int(each) for each in np.unravel_index(used.argmax(), used.shape))
    if used[index, label] > 1:
        here, true = found[index, label], truth[index, label]
        what = f"output logits[{label}] is {here:.7g} here, and {true:.7g} in float64"
        return index, f"{what}: {abs(here - true):.2g} off, {precision} allows {allowed[index, label]:.2g}"
    is_wrong = (found.argmax(1) != truth.argmax(1)) & (margins(truth) >= row.tie_margin)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        return index, f"output logits has class {found[index].argmax()} here, and {truth[index].argmax()} in float64"
    return None


def _parity_here(backend: Backend, what: str) -> BadDataError:
    cure = "file, library or driver computes something else here: use another --backend or --device, or make export"
    return BadDataError("PARITY_HERE", f"{backend.name} on {backend.device}: {what}", cure)
