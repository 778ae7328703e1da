"""TensorRT: an engine on an NVIDIA GPU, one CUDA graph per batch size. Never imports torch.

A graph holds the whole way of a batch: 784 bytes an image to the device, the engine, 40 bytes of logits back. Batches
are padded to the next size that has one. NVIDIA's advice for graphs is one execution context per graph, with memory
shared between the contexts: one thread owns the device and waits for each batch, so no two of them ever run at once.

The next batch is assembled while one runs, but its copy to the device is not begun then, by count: 64 images are
50,176 bytes, 1 to 2 us on PCIe (5.0 to 4.0, 16 lanes) inside a graph that is launched anyway; apart from it the copy
takes three more calls into the driver. 1,024 images are 16 to 32 us. The server's event loop meanwhile spends 335 us on
a request of 64 images and 2,200 us on one of 1,024 (CPU time, measured): it is the GPU that waits.
"""

import bisect
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images, Logits
from atelier.errors import BadDataError, ResourceUnavailableError, UsageError
from serving.backends import base
from serving.backends.base import batch_size_buckets
from serving.backends.cuda import CudaError, DeviceMemory, Gpu, Graph, PinnedArray, Stream, gpu_at, use_device
from serving.manifest import EngineSpec

_LOGITS_BYTES = 10 * 4
# The full library, which also builds; and the small one from PyPI, which runs version-compatible engines.
_MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings")


class TensorRTBackend:
    """An engine, deserialised on one GPU. `engine` is the whole file, `spec` what the manifest says about it.

    Raises ResourceUnavailableError TENSORRT_UNAVAILABLE or NO_GPU; BadDataError ENGINE_STALE where the engine was built
    by another TensorRT, for another GPU or of another ONNX model than `onnx_sha256`, before TensorRT sees it, and
    BAD_ENGINE where TensorRT refuses it or it breaks the contract of tensors; UsageError for an unknown device.
    """

    name = "tensorrt"

    def __init__(
        self, engine: bytes, spec: EngineSpec, *, onnx_sha256: str, device: str = "cuda", max_batch_size: int
    ) -> None:
        self._index = _index_of(device)
        self.device = f"cuda:{self._index}"
        self.max_batch_size = max_batch_size
        self._trt, gpu = _tensorrt(device, spec), _gpu(device, self._index)
        check_fresh(spec, self._trt.__version__, gpu, onnx_sha256)
        use_device(self._index)
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = _engine_from(self._trt, self._runtime, engine, spec)
        self._sizes = batch_size_buckets(max_batch_size)
        self._buckets: dict[int, _Bucket] = {}
        self.stream = Stream()
        self._images = PinnedArray((max_batch_size, *IMAGE_SHAPE), np.uint8)
        self._logits = PinnedArray((max_batch_size, 10), np.float32)
        self._device_images = DeviceMemory(max_batch_size * IMAGE_BYTES)
        self._device_logits = DeviceMemory(max_batch_size * _LOGITS_BYTES)
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = DeviceMemory(self._scratch_bytes)

    def infer(self, images: Images) -> Logits:
        """(N, 1, 28, 28) uint8 -> (N, 10) float32."""
        num_images = len(images)
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not 1 <= num_images <= self.max_batch_size:
            raise ValueError(
                f"images are {images.dtype} {images.shape}, not uint8 (1..{self.max_batch_size}, 1, 28, 28)"
            )
        use_device(self._index)  # a setting of the calling thread
        bucket = self._bucket_of(num_images)
        self._images.array[:num_images] = images  # what is left of an earlier batch pads it; rows do not mix
        bucket.graph.launch(self.stream)
        self.stream.synchronize()
        logits: Logits = self._logits.array[:num_images].copy()
        return logits

    def warm_up(self) -> None:
        """Captures a graph for each batch size bucket, and runs each twice."""
        base.warm_up(self)

    def close(self) -> None:
        """Frees the device, the graphs first."""
        use_device(self._index)
        for bucket in self._buckets.values():
            bucket.graph.free()
        self._buckets.clear()
        del self._engine, self._runtime
        for resource in (self._images, self._logits, self._device_images, self._device_logits, self._scratch):
            resource.free()
        self.stream.free()

    def _bucket_of(self, num_images: int) -> "_Bucket":
        """The smallest bucket that holds the batch; captured at its first use, which warming up is."""
        size = self._sizes[bisect.bisect_left(self._sizes, num_images)]
        if size not in self._buckets:
            self._buckets[size] = self._capture(size)
        return self._buckets[size]

    def _capture(self, size: int) -> "_Bucket":
        context = self._context(size)

        def run() -> None:
            self.stream.copy_to_device(self._device_images, self._images, size * IMAGE_BYTES)
            _expect(context.execute_async_v3(int(self.stream)), "execute")
            self.stream.copy_to_host(self._logits, self._device_logits, size * _LOGITS_BYTES)

        run()  # the first run after a change of shape does what cannot be captured
        self.stream.synchronize()
        return _Bucket(context=context, graph=self.stream.capture(run))

    def _context(self, size: int) -> Any:
        """An execution context for batches of `size`, on the buffers that all share."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise CudaError(f"TensorRT made no execution context for batches of {size}: is the device's memory full?")
        context.set_device_memory(self._scratch.address, self._scratch_bytes)
        _expect(context.set_optimization_profile_async(0, int(self.stream)), "take profile 0")
        _expect(context.set_input_shape("images", (size, *IMAGE_SHAPE)), f"take batches of {size}")
        _expect(context.set_tensor_address("images", self._device_images.address), "bind images")
        _expect(context.set_tensor_address("logits", self._device_logits.address), "bind logits")
        missing = context.infer_shapes()
        if missing:
            raise CudaError(f"TensorRT lacks the shapes of {', '.join(missing)} for batches of {size}")
        return context


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """A batch size's graph, and the context that it was captured from, which must outlive it."""

    context: Any
    graph: Graph


def _expect(done: bool, what: str) -> None:
    if not done:
        raise CudaError(f"TensorRT did not {what}; its log says why")


# --- Whether it can run here, asked before TensorRT is given the engine -----------------------------------------------


def _index_of(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UsageError("BAD_DEVICE", f"{device!r} is no device of TensorRT's", "use cuda or cuda:<index>")
    return int(index or "0")


def _tensorrt(device: str, spec: EngineSpec) -> Any:
    """TensorRT, or its lean runtime where the engine can run on that."""
    names = _MODULES if spec.version_compatible else _MODULES[:1]
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # as its loader says that its libraries are not there
            reasons.append(" ".join(str(error).split()))
    cure = "install the extra `tensorrt`, or use --backend onnxruntime"
    if not spec.version_compatible:
        cure += "; the lean runtime of the extra `gpu` needs an engine of make export ARGS=--version-compatible"
    raise ResourceUnavailableError("TENSORRT_UNAVAILABLE", f"asked for tensorrt on {device}", cure, why=reasons[0])


def _gpu(device: str, index: int) -> Gpu:
    try:
        return gpu_at(index)
    except CudaError as error:
        what, cure = f"asked for tensorrt on {device}", "check nvidia-smi, or use --device cpu"
        raise ResourceUnavailableError("NO_GPU", what, cure, why=str(error)) from None


def check_fresh(spec: EngineSpec, tensorrt: str, gpu: Gpu, onnx_sha256: str) -> None:
    """Raises BadDataError ENGINE_STALE where an engine would not run, or not answer as the version's model does."""
    stale = [
        (spec.onnx_sha256 != onnx_sha256, f"model {spec.onnx_sha256[:12]}…", f"{onnx_sha256[:12]}…"),
        (not _runs_on_version(spec, tensorrt), f"TensorRT {spec.tensorrt}", tensorrt),
        (not _runs_on_gpu(spec, gpu), _described(spec.gpu, spec.compute_capability), _described(**vars(gpu))),
    ]
    for is_stale, built, here in stale:
        if is_stale:
            what = f"the engine was built with {built}, here is {here}"
            cure = "make export on this machine builds another; meanwhile --backend onnxruntime serves this version"
            raise BadDataError("ENGINE_STALE", what, cure)


def _described(name: str, compute_capability: str) -> str:
    return f"{name} (compute capability {compute_capability})"


def _runs_on_version(spec: EngineSpec, tensorrt: str) -> bool:
    """Version-compatible engines run on the same and on later releases of a major version, others on their own."""
    if not spec.version_compatible:
        return spec.tensorrt == tensorrt
    built, here = ([int(part) for part in version.split(".")[:3]] for version in (spec.tensorrt, tensorrt))
    return built[0] == here[0] and built <= here


def _runs_on_gpu(spec: EngineSpec, gpu: Gpu) -> bool:
    if spec.hardware_compatible == "ampere_plus":
        return float(gpu.compute_capability) >= 8.0
    if spec.hardware_compatible == "same_compute_capability":
        return spec.compute_capability == gpu.compute_capability
    return (spec.gpu, spec.compute_capability) == (gpu.name, gpu.compute_capability)


def _engine_from(trt: Any, runtime: Any, engine: bytes, spec: EngineSpec) -> Any:
    """The deserialised engine. Raises BadDataError BAD_ENGINE where TensorRT refuses it or its tensors are not ours."""
    again = "make export writes a new version"
    if spec.version_compatible:
        runtime.engine_host_code_allowed = True  # such an engine brings its own small runtime; its digest is checked
    found = runtime.deserialize_cuda_engine(engine)
    if found is None:
        raise BadDataError("BAD_ENGINE", f"TensorRT {trt.__version__} cannot load the engine", again)
    names = [found.get_tensor_name(index) for index in range(found.num_io_tensors)]
    tensors = {name: (found.get_tensor_dtype(name), tuple(found.get_tensor_shape(name))) for name in names}
    contract = {"images": (trt.DataType.UINT8, (-1, *IMAGE_SHAPE)), "logits": (trt.DataType.FLOAT, (-1, 10))}
    if tensors != contract:
        raise BadDataError("BAD_ENGINE", f"the engine has {tensors}, the contract says {contract}", again)
    return found
