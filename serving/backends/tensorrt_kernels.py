"""Keeps the kernels that TensorRT for RTX compiles for this GPU in a file, from start to start."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from atelier.files import write_atomically
from serving.backends.cuda import Gpu, driver_version

logger = logging.getLogger(__name__)


class KernelCache:
    """Keeps one engine's kernels, for all of its contexts; `path` is the file, or None to keep nothing."""

    def __init__(self, trt: Any, engine: Any, path: Path | None) -> None:
        self._trt, self._engine, self._path = trt, engine, path
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Lazy would answer with fallback kernels first, and put others in their place that nobody has proven.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache = self._config.create_runtime_cache()
        self._kept = path.read_bytes() if path is not None and path.exists() else b""
        if self._kept:
            self._cache.deserialize(self._kept)  # of another driver or GPU it refuses, and compiles anew
        self._config.set_runtime_cache(self._cache)

    def new_context(self) -> Any:
        """Makes an execution context, or None if the library cannot."""
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """Writes the file if there is something new; a disk that cannot be written to costs the next start time."""
        kernels = bytes(self._cache.serialize())
        if self._path is None or kernels == self._kept:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, kernels)
        except OSError as error:
            logger.warning("the compiled kernels are not kept: %s", error)


def kernels_name(engine: bytes, gpu: Gpu, version: str) -> str:
    """Names the file by all that the kernels depend on: engine, GPU, library and driver."""
    facts = [hashlib.sha256(engine).hexdigest(), gpu.name, gpu.compute_capability, version, driver_version()]
    return f"{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:32]}.cache"
