"""Says how engines are built, whatever their flavour."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TIMING_CACHE = Path("artifacts/tensorrt-timing.cache")
Wanted = Literal["auto", "yes", "no"]
HardwareLevel = Literal["none", "same_compute_capability", "ampere_plus"]
IMAGE = (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Says how an engine is built; the last three are of TensorRT proper alone."""

    precision: str
    """The precision that the ONNX model is in."""

    max_batch_size: int
    """The profile's largest batch; its smallest is 1."""

    opt_batch_size: int = 64
    """The batch that kernels are timed at, if that is not over the largest."""

    version_compatible: bool = False
    """True if it also runs on later releases of this TensorRT's major version, and on the lean runtime."""

    hardware_compatible: str = "none"
    """A HardwareLevel: other GPUs than this one that it is to run on."""

    timing_cache: Path = TIMING_CACHE
    """Timings kept from build to build: a second build takes seconds and picks the same kernels."""

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """Smallest, best, largest."""
        return 1, min(self.opt_batch_size, self.max_batch_size), self.max_batch_size
