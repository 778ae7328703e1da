"""TensorRT and TensorRT for RTX: an engine on an NVIDIA GPU, one CUDA graph per batch size. Never imports torch.

A graph holds the whole way of a batch: 784 bytes an image to the device, the engine, 40 bytes of logits back. Batches
are padded to the next size that has one. NVIDIA's advice for graphs is one execution context per graph, with memory
shared between the contexts: one thread owns the device and waits for each batch, so no two of them ever run at once.

The next batch is assembled while one runs, but its copy to the device is not begun then, by count: 64 images are
50,176 bytes, 1 to 2 us on PCIe (5.0 to 4.0, 16 lanes) inside a graph that is launched anyway; apart from it the copy
takes three more calls into the driver. 1,024 images are 16 to 32 us. The server's event loop meanwhile spends 335 us on
a request of 64 images and 2,200 us on one of 1,024 (CPU time, measured): it is the GPU that waits.

The two flavours share all of it; RTX's differs in how contexts are made: it compiles the kernels where it runs
(tensorrt_kernels.py).
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images, Logits
from atelier.errors import BadDataError
from serving.backends.base import Backend, batch_size_buckets
from serving.backends.cuda import CudaError, DeviceMemory, Graph, PinnedArray, Stream, use_device
from serving.backends.tensorrt_fit import TITLES, check_fits, check_version, gpu_on, index_of, library_for
from serving.backends.tensorrt_kernels import KernelCache, kernels_name
from serving.backends.tensorrt_log import log_of
from serving.manifest import TENSORRT_RTX, EngineSpec

_LOGITS_BYTES = 10 * 4


class TensorRTBackend(Backend):
    """An engine, deserialised on one GPU. `engine` is the whole file, `spec` what the manifest says about it.

    `cache_dir` keeps the kernels that RTX compiles; without one they are compiled at every start. `is_trial` runs an
    engine even if it was built for other GPUs: for reports, not for serving.

    Raises ResourceUnavailableError TENSORRT_UNAVAILABLE or NO_GPU; BadDataError ENGINE_STALE if the engine was built
    by another TensorRT, for another GPU or of another ONNX model than `onnx_sha256`, before TensorRT sees it, and
    BAD_ENGINE if TensorRT refuses it or it breaks the contract of tensors; UsageError for an unknown device.
    """

    def __init__(
        self,
        engine: bytes,
        spec: EngineSpec,
        *,
        onnx_sha256: str,
        device: str = "cuda",
        max_batch_size: int,
        cache_dir: Path | None = None,
        is_trial: bool = False,
    ) -> None:
        self.name = spec.flavour
        self._index = index_of(device)
        self.device = f"cuda:{self._index}"
        self.max_batch_size = max_batch_size
        gpu = gpu_on(device)
        if not is_trial:
            check_fits(spec, gpu, onnx_sha256)
        trt = library_for(spec, device)
        check_version(spec, trt.__version__)
        use_device(self._index)
        self._log = log_of(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = _engine_from(trt, self._runtime, engine, spec)
        self._sizes = batch_size_buckets(max_batch_size)
        self._buckets: dict[int, _Bucket] = {}
        self.stream = Stream()
        self._images = PinnedArray((max_batch_size, *IMAGE_SHAPE), np.uint8)
        self._logits = PinnedArray((max_batch_size, 10), np.float32)
        self._device_images = DeviceMemory(max_batch_size * IMAGE_BYTES)
        self._device_logits = DeviceMemory(max_batch_size * _LOGITS_BYTES)
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = DeviceMemory(self._scratch_bytes)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._kernels: KernelCache | None = None
        self._new_context: Callable[[], Any] = lambda: self._engine.create_execution_context(strategy)
        if spec.flavour == TENSORRT_RTX:
            path = cache_dir and cache_dir / kernels_name(engine, gpu, trt.__version__)
            self._kernels = KernelCache(trt, self._engine, path)
            self._new_context = self._kernels.new_context

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32."""
        num_images = len(images)
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not 1 <= num_images <= self.max_batch_size:
            raise ValueError(
                f"images are {images.dtype} {images.shape}, not uint8 (1..{self.max_batch_size}, 1, 28, 28)"
            )
        use_device(self._index)  # a setting of the calling thread
        bucket = self._bucket_of(num_images)
        self._images.array[:num_images] = images  # what is left of an earlier batch pads it; rows do not mix
        bucket.launch()
        self.stream.synchronize()
        logits: Logits = self._logits.array[:num_images].copy()
        return logits

    def warm_up(self) -> None:
        """Captures a graph for each batch size bucket, and runs each twice; keeps the kernels that this compiled."""
        super().warm_up()
        if self._kernels is not None:
            self._kernels.save()

    def close(self) -> None:
        """Frees the device, the graphs first."""
        use_device(self._index)
        for bucket in self._buckets.values():
            if bucket.graph is not None:
                bucket.graph.free()
        self._buckets.clear()
        del self._new_context, self._kernels, self._engine, self._runtime
        for resource in (self._images, self._logits, self._device_images, self._device_logits, self._scratch):
            resource.free()
        self.stream.free()

    def _bucket_of(self, num_images: int) -> "_Bucket":
        """Finds the smallest bucket that holds the batch; captured at its first use, which warming up is."""
        size = self._sizes[bisect.bisect_left(self._sizes, num_images)]
        if size not in self._buckets:
            self._buckets[size] = self._capture(size)
        return self._buckets[size]

    def _capture(self, size: int) -> "_Bucket":
        context = self._context(size)

        def run() -> None:
            self.stream.copy_to_device(self._device_images, self._images, size * IMAGE_BYTES)
            self._expect(context.execute_async_v3(int(self.stream)), "execute")
            self.stream.copy_to_host(self._logits, self._device_logits, size * _LOGITS_BYTES)

        run()  # the first run after a change of shape does what cannot be captured
        self.stream.synchronize()
        if self._kernels is not None and not context.is_stream_capturable(int(self.stream)):
            return _Bucket(context=context, launch=run)  # RTX has graphs that cannot be captured; they only run slower
        graph = self.stream.capture(run)
        return _Bucket(context=context, launch=lambda: graph.launch(self.stream), graph=graph)

    def _context(self, size: int) -> Any:
        """Makes an execution context for batches of `size`, on the buffers that all share."""
        context = self._new_context()
        if context is None:
            what = f"{self.name} made no execution context for batches of {size}"
            raise CudaError(f"{what}: {self._log.take() or 'is the memory of the device full?'}")
        context.set_device_memory(self._scratch.address, self._scratch_bytes)
        self._expect(context.set_optimization_profile_async(0, int(self.stream)), "take profile 0")
        self._expect(context.set_input_shape("images", (size, *IMAGE_SHAPE)), f"take batches of {size}")
        self._expect(context.set_tensor_address("images", self._device_images.address), "bind images")
        self._expect(context.set_tensor_address("logits", self._device_logits.address), "bind logits")
        missing = context.infer_shapes()
        if missing:
            raise CudaError(f"TensorRT lacks the shapes of {', '.join(missing)} for batches of {size}")
        return context

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise CudaError(f"TensorRT did not {what}: {self._log.take() or 'it does not say why'}")


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Runs one batch size: its graph, and the context that it was captured from, which must outlive it."""

    context: Any
    launch: Callable[[], None]
    graph: Graph | None = None


def _engine_from(trt: Any, runtime: Any, engine: bytes, spec: EngineSpec) -> Any:
    """Deserialises the engine. Raises BadDataError BAD_ENGINE if TensorRT refuses it or its tensors are not ours."""
    again = "make export writes a new version"
    if spec.version_compatible:
        runtime.engine_host_code_allowed = True  # such an engine brings its own small runtime; its digest is checked
    found = runtime.deserialize_cuda_engine(engine)
    if found is None:
        what = f"{TITLES[spec.flavour]} {trt.__version__} cannot load the engine"
        raise BadDataError("BAD_ENGINE", what, again, why=_words(trt, runtime, engine))
    names = [found.get_tensor_name(index) for index in range(found.num_io_tensors)]
    tensors = {name: (found.get_tensor_dtype(name), tuple(found.get_tensor_shape(name))) for name in names}
    contract = {"images": (trt.DataType.UINT8, (-1, *IMAGE_SHAPE)), "logits": (trt.DataType.FLOAT, (-1, 10))}
    if tensors != contract:
        raise BadDataError("BAD_ENGINE", f"the engine has {tensors}, the contract says {contract}", again)
    return found


def _words(trt: Any, runtime: Any, engine: bytes) -> str:
    """Reports what the library says of an engine that it refused; RTX also says whether it is valid here."""
    words: str = log_of(trt).take()
    if hasattr(runtime, "get_engine_validity"):
        validity, diagnostics = runtime.get_engine_validity(engine)
        words += f" (engine validity {validity.name}, diagnostics {diagnostics:#x})"
    return words
