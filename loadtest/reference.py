"""References in this process: PyTorch running the exported program op by op, and the raw runtime.

Every answer is held against PyTorch's logits; where torch is not installed, against ONNX Runtime's, and that is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hdrh.histogram import HdrHistogram

from atelier.contract import TOLERANCES, Images, Logits
from atelier.errors import ConfigurationError, ProgramError, ResourceUnavailableError
from loadtest.backend_speed import Speed, measure
from loadtest.config import LoadTestConfig
from loadtest.load.protocols import Reference
from loadtest.load.records import histogram_from
from serving.backends.base import Backend
from serving.backends.select import open_backend
from serving.manifest import Manifest, find_version
from training.dataset import load_dataset

ANSWERS_BATCH_SIZE = 64
CALIBRATION_S = 0.15
FP32_ATOL = 1e-4  # of a probability
RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}  # names in the report
NUM_KNOWN = 1000  # images with known answers


@dataclass(kw_only=True, eq=False)
class References:
    """The version under test, the backends by their names in the report, and the logits of `by`."""

    version_dir: Path
    manifest: Manifest
    backends: dict[str, Backend]
    logits: Logits  # (N, 10)
    atol: float  # how far a right probability may be from what the logits say
    by: str
    notes: list[str]  # what is not as one would expect

    def add_raw(self, kind: str, device: str) -> None:
        """Opens the runtime that serves in this process; if it is unavailable here, ONNX Runtime, which is noted."""
        name = RUNTIMES.get(kind, "ONNX Runtime")
        if name in self.backends:
            return
        kind = kind if kind in RUNTIMES else "onnxruntime"
        try:
            self.backends[name] = _opened(kind, device, self.version_dir, self.manifest)
        except ProgramError as error:
            if kind == "onnxruntime" and device == "cpu":
                raise
            self.notes.append(f"the runtime that serves cannot be measured here: {error}")
            self.add_raw("onnxruntime", "cpu")


def latency_of(runs: Sequence[Speed]) -> HdrHistogram:
    """Sums up the calls of all of them, in microseconds."""
    return histogram_from(np.array([call.wall_s for run in runs for call in run.calls]) * 1e6)


def open_references(config: LoadTestConfig, images: Images) -> References:
    """Opens the newest version on PyTorch, or on ONNX Runtime if there is no torch; asks it about `images`.

    Raises MissingInputError if there is no version, ConfigurationError if the reference is another model's, and what
    the backends raise.
    """
    version_dir, manifest = find_version(config.repository)
    asked = find_version(config.reference_repository or config.repository)
    if asked[1].checkpoint_sha256 != manifest.checkpoint_sha256:
        what = f"{config.reference_repository} and {config.repository} are of different checkpoints"
        raise ConfigurationError("OTHER_MODEL", what, "--reference-repository needs the same model in fp32")
    by, notes = "PyTorch", []
    try:
        backend = _opened("torch", config.device, *asked)
    except ResourceUnavailableError as error:
        if error.word != "NO_TORCH":
            raise
        by, notes = "ONNX Runtime", [f"PyTorch is not in this comparison: {error}"]
        backend = _opened("onnxruntime", "cpu", *asked)
    return References(
        version_dir=version_dir,
        manifest=manifest,
        backends={by: backend},
        logits=logits_of(backend, images),
        atol=max(FP32_ATOL, TOLERANCES[manifest.precision].tie_margin / 2),
        by=by,
        notes=notes,
    )


def _opened(kind: str, device: str, version_dir: Path, manifest: Manifest) -> Backend:
    """Opens a backend with one thread, as an inference on our server has."""
    return open_backend(kind, device, version_dir, manifest, max_batch_size=manifest.max_batch_size, num_threads=1)[0]


def logits_of(backend: Backend, images: Images) -> Logits:
    """Runs (N, 1, 28, 28) in batches; returns (N, 10)."""
    size = min(ANSWERS_BATCH_SIZE, backend.max_batch_size)
    return np.concatenate([backend.infer(images[start : start + size]) for start in range(0, len(images), size)])


def rates_by_batch_size(backend: Backend, images: Images) -> dict[int, float]:
    """Measures images per second with batches of 1, 2, 4, ... up to what the backend takes."""
    sizes = [1 << exponent for exponent in range(min(backend.max_batch_size, len(images)).bit_length())]
    return {size: measure(backend.infer, [images[:size]], CALIBRATION_S).images_per_s for size in sizes}


def known_answers(repository: Path) -> Reference:
    """Returns test images, and the logits of the newest version of the model on ONNX Runtime, alone and on the CPU.

    Raises MissingInputError if there is no version or no data set.
    """
    version_dir, manifest = find_version(repository)
    images = load_dataset(fetch=False).test_images[:NUM_KNOWN]
    backend = _opened("onnxruntime", "cpu", version_dir, manifest)
    try:
        return Reference(images=images, logits=logits_of(backend, images), atol=FP32_ATOL)
    finally:
        backend.close()
