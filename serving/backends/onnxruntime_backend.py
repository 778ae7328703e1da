"""ONNX Runtime, on the CPU or on CUDA: the runtime that serves by default. Never imports torch.

ONNX Runtime likes to go on when it should not: without the CUDA provider it runs on the CPU and only warns, and where a
provider fails at a call it makes the session anew on the next one. Each of these doors is closed here, so that
`device` is always where the model runs.

On CUDA nothing runs but kernels: tensors are bound once, and each batch size bucket has one CUDA graph; a batch is
padded to the next bucket. ONNX Runtime captures a graph by itself, one for each `gpu_graph_id`, in the first runs on
bound tensors; later runs replay it.
"""

import bisect
import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnxruntime

from atelier.contract import IMAGE_SHAPE, Images, Logits
from atelier.errors import BadDataError, ResourceUnavailableError, UsageError
from serving.backends.base import Backend, batch_size_buckets

# Name, dtype in ONNX Runtime's words, and the sizes after the batch.
INPUT = ("images", "tensor(uint8)", 1, 28, 28)
OUTPUT = ("logits", "tensor(float)", 10)

_FATAL_ONLY = 4  # ONNX Runtime's log severity; what it would log also comes as an exception


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX model in one session. `model` is the whole file; nothing else is read from disk.

    `precision` is the model's own; on CUDA it decides whether tensor cores may be used.

    Raises BadDataError if the model cannot be loaded, refers to external data or breaks the contract of tensors;
    ResourceUnavailableError if the device or the provider is unavailable; UsageError for an unknown device.
    """

    name = "onnxruntime"

    def __init__(
        self, model: bytes, *, device: str = "cpu", num_threads: int = 1, max_batch_size: int, precision: str = "fp32"
    ) -> None:
        self.device = "cuda:0" if device == "cuda" else device
        self.max_batch_size = max_batch_size
        # On CUDA all work is on one stream of ours, so that whoever times it can put events around it.
        self.stream: Any = None if self.device == "cpu" else _stream_on(self.device)
        self._session = _session_from(model, self.device, num_threads, precision, self.stream)
        _check_contract(self._session)
        self._bound: BoundRuns | None = None
        if self.device != "cpu":
            index = int(self.device.partition(":")[2])
            self._bound = BoundRuns(self._session, kind="cuda", index=index, max_batch_size=max_batch_size)

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32.

        On the CPU a plain `run`: binding the input and output was measured to cost more (25 us against 23 us for one
        image) and to win nothing at 64 and 256, where the copies are lost in the arithmetic.
        """
        if self._bound is not None:
            return self._bound.infer(images)
        return cast(Logits, self._session.run(["logits"], {"images": images})[0])

    def close(self) -> None:
        """Drops the session and with it the device's memory, and then the stream."""
        del self._bound, self._session
        if self.stream is not None:
            self.stream.free()


class BoundRuns:
    """Runs a session on tensors that stay on the device; `kind` and `index` are ONNX Runtime's words for one."""

    def __init__(self, session: Any, *, kind: str, index: int, max_batch_size: int) -> None:
        self._session, self._device = session, (kind, index)
        self._sizes = batch_size_buckets(max_batch_size)
        self._buckets: dict[int, _Bucket] = {}

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32."""
        num_images = len(images)
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not 1 <= num_images <= self._sizes[-1]:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (1..{self._sizes[-1]}, 1, 28, 28)")
        bucket = self._bucket_of(num_images)
        bucket.padded[:num_images] = images  # what is left of an earlier batch pads it; rows do not mix
        bucket.images.update_inplace(bucket.padded)
        self._session.run_with_iobinding(bucket.binding, bucket.run_options)
        return cast(Logits, bucket.logits.numpy()[:num_images].copy())

    def _bucket_of(self, num_images: int) -> "_Bucket":
        """Finds the smallest bucket that holds the batch; bound at its first use, which warming up is."""
        size = self._sizes[bisect.bisect_left(self._sizes, num_images)]
        if size not in self._buckets:
            self._buckets[size] = self._bound(size)
        return self._buckets[size]

    def _bound(self, size: int) -> "_Bucket":
        padded = np.zeros((size, *IMAGE_SHAPE), np.uint8)
        images = onnxruntime.OrtValue.ortvalue_from_numpy(padded, *self._device)
        logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type([size, 10], np.float32, *self._device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        binding.bind_ortvalue_output("logits", logits)
        run_options = onnxruntime.RunOptions()
        run_options.add_run_config_entry("gpu_graph_id", str(size))
        return _Bucket(padded=padded, images=images, logits=logits, binding=binding, run_options=run_options)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Holds one batch size's images and logits, on the host and on the device."""

    padded: Images
    images: Any
    logits: Any
    binding: Any
    run_options: Any


def _session_from(model: bytes, device: str, num_threads: int, precision: str, stream: Any) -> Any:
    """Opens the session on `device`, or raises: never on another provider."""
    options, complaints = _options(num_threads), ""
    if device == "cpu":
        providers: list[Any] = ["CPUExecutionProvider"]
    else:
        complaints = _load_cuda_libraries()
        providers = [_cuda_provider(device, precision, stream)]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # no node may stay on the CPU
        # CUDA has no integer kernels for Q/DQ pairs to be fused into, and none for the int32 biases of that fusion.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common parent below Exception
        raise _start_error(error, device, complaints) from error
    wanted = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if session.get_providers()[0] != wanted:
        raise _no_cuda(device, f"ONNX Runtime started {session.get_providers()[0]} instead of {wanted}")
    return session


def _options(num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    # The arena keeps what the largest batches need (after batches of every size to 256: 121 MB resident, and steady);
    # without it a batch of 64 takes 8 % longer.
    options.enable_cpu_mem_arena = True
    # Threads that spin between batches take the cores that the front end needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # External data is looked for in a directory that cannot exist: a model that refers to any fails to load.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def _stream_on(device: str) -> Any:
    """Makes a stream on the device of `cuda:<index>`, or raises the reason why there is none."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdecimal():
        raise UsageError("BAD_DEVICE", f"{device!r} is no device of ONNX Runtime's", "use cpu, cuda or cuda:<index>")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise _no_cuda(device, "this ONNX Runtime has no CUDA provider")
    try:
        from serving.backends.cuda import CudaError, Stream, use_device
    except ImportError as error:
        raise _no_cuda(device, str(error)) from None
    try:
        use_device(int(index))
        return Stream()
    except CudaError as error:
        raise _no_cuda(device, str(error)) from None


def _load_cuda_libraries() -> str:
    """Loads CUDA's and cuDNN's libraries from their Python packages; returns what ONNX Runtime misses.

    It would print that, into whatever our program prints.
    """
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    return " ".join(printed.getvalue().split())


def _cuda_provider(device: str, precision: str, stream: Any) -> tuple[str, dict[str, str]]:
    """Configures the CUDA provider, on `stream`.

    `use_tf32` means all tensor cores: without it cuDNN may not use them for fp16 either. With it float32 is multiplied
    in TF32, which keeps 10 bits of 23: another precision than fp32, and than what int8 models have between integers.
    """
    options = {
        "device_id": device.partition(":")[2],
        "user_compute_stream": str(int(stream)),  # it belongs to us: ONNX Runtime does not destroy it
        "use_tf32": str(int(precision not in ("fp32", "int8"))),
        "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm at each new batch size
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",  # captured by BoundRuns, one for each batch size bucket
    }
    return "CUDAExecutionProvider", options


def _no_cuda(device: str, why: str) -> ResourceUnavailableError:
    cure = "use --device cpu, or on a host with an NVIDIA GPU install the extras `gpu` instead of `serve`"
    return ResourceUnavailableError("NO_GPU", f"asked for onnxruntime on {device}", cure, why=why)


def _start_error(error: Exception, device: str, complaints: str) -> Exception:
    """Explains ONNX Runtime's exception: on CUDA anything but an unreadable model may be the provider's fault."""
    reason = str(error).splitlines()[0] + (f"; {complaints}" if complaints else "")
    if type(error).__name__ == "NotImplemented" or "Provider type for" in reason:  # CPU's and CUDA's words for it
        what, why = f"asked for onnxruntime on {device}", reason.rpartition(" : ")[2]
        return ResourceUnavailableError(
            "NO_KERNELS", what, "export another --precision, or use another device", why=why
        )
    if device != "cpu" and type(error).__name__ not in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument"):
        return _no_cuda(device, reason)
    return BadDataError("BAD_MODEL", f"ONNX Runtime cannot load it: {reason}", "make export writes a new version")


def _check_contract(session: Any) -> None:
    """Names, dtypes and shapes are those of DESIGN section 3, and the batch is free (a name, not a number)."""
    for tensors, contract in ((session.get_inputs(), INPUT), (session.get_outputs(), OUTPUT)):
        found = [(tensor.name, tensor.type, *tensor.shape[1:]) for tensor in tensors]
        if found != [contract] or not isinstance(tensors[0].shape[0], str):
            described = [(tensor.name, tensor.type, tensor.shape) for tensor in tensors]
            what = f"the model has {described}, the contract says {contract} with a free batch before the sizes"
            raise BadDataError("BAD_MODEL", what, "make export writes a new version")
