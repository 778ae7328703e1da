"""The references, in this process: PyTorch running the exported program op by op, and the raw runtime.

Every answer is held against PyTorch's logits; where torch is not installed, against ONNX Runtime's, and that is said.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hdrh.histogram import HdrHistogram

from loadtest.generator import histogram_from, new_histogram
from serving.backends.base import Backend, Images, Logits
from serving.backends.select import open_backend
from serving.errors import MissingInputError, ResourceUnavailableError
from serving.manifest import Manifest, list_versions, load_manifest

ANSWERS_BATCH_SIZE = 64
CALIBRATION_S = 0.15


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """The backends, by their names in the report, and the logits of `by`."""

    manifest: Manifest
    backends: dict[str, Backend]
    logits: Logits  # (N, 10)
    by: str
    missing: str  # why PyTorch is not among them; "" where it is


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceRun:
    """One backend called in a loop with batches of one size."""

    images_per_s: float
    latency: HdrHistogram = field(repr=False)  # of a call, microseconds


def latency_of(runs: Sequence[ReferenceRun]) -> HdrHistogram:
    """Of all of them."""
    histogram = new_histogram()
    for run in runs:
        histogram.add(run.latency)
    return histogram


def open_references(repository: Path, model: str, num_threads: int, images: Images) -> References:
    """The newest version on PyTorch and ONNX Runtime, on the CPU, and what the first says to `images`.

    Raises MissingInputError where there is no version, and what the backends raise.
    """
    model_dir = repository / model
    versions = list_versions(model_dir)
    if not versions:
        raise MissingInputError("NO_MODEL", f"there is no version in {model_dir}", "make export writes one")
    version_dir = model_dir / str(versions[-1])
    manifest = load_manifest(version_dir)
    size = manifest.max_batch_size
    backends: dict[str, Backend] = {}
    missing = ""
    for name, kind in (("PyTorch", "torch"), ("ONNX Runtime", "onnxruntime")):
        try:
            opened = open_backend(kind, "cpu", version_dir, manifest, max_batch_size=size, num_threads=num_threads)
            backends[name] = opened[0]
        except ResourceUnavailableError as error:
            if error.word != "NO_TORCH":
                raise
            missing = str(error)
    by = next(iter(backends))
    return References(
        manifest=manifest, backends=backends, logits=_answers(backends[by], images), by=by, missing=missing
    )


def _answers(backend: Backend, images: Images) -> Logits:
    """(N, 10)"""
    size = min(ANSWERS_BATCH_SIZE, backend.max_batch_size)
    return np.concatenate([backend.infer(images[start : start + size]) for start in range(0, len(images), size)])


def measure_backend(backend: Backend, images: Images, batch_size: int, duration_s: float) -> ReferenceRun:
    """Calls it with one batch after the other, over the data set and over again."""
    batches = [images[start : start + batch_size] for start in range(0, len(images) - batch_size + 1, batch_size)]
    backend.infer(batches[0])  # not counted
    taken_ns: list[int] = []
    began_ns = ended_ns = time.perf_counter_ns()
    while ended_ns - began_ns < duration_s * 1e9:
        backend.infer(batches[len(taken_ns) % len(batches)])
        now_ns = time.perf_counter_ns()
        taken_ns.append(now_ns - ended_ns)
        ended_ns = now_ns
    images_per_s = len(taken_ns) * batch_size / ((ended_ns - began_ns) / 1e9)
    return ReferenceRun(images_per_s=images_per_s, latency=histogram_from(np.array(taken_ns) / 1e3))


def rates_by_batch_size(backend: Backend, images: Images) -> dict[int, float]:
    """Images per second with batches of 1, 2, 4, ... up to what the backend takes."""
    sizes = [1 << exponent for exponent in range(min(backend.max_batch_size, len(images)).bit_length())]
    return {size: measure_backend(backend, images, size, CALIBRATION_S).images_per_s for size in sizes}
