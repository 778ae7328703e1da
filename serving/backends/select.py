"""Which runtime serves a version, and why: what was asked for runs, or starting fails.

A runtime is imported when it is to be opened and not before: who serves an ONNX model need not have torch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from atelier.errors import BadDataError, MissingInputError, ResourceUnavailableError, UsageError
from atelier.program import how_to_install
from serving.backends.base import Backend
from serving.manifest import ENGINE_NAME, FILE_OF_BACKEND, LITERT_NAME, ONNX_NAME, PROGRAM_NAME, Manifest, read_verified

KINDS = ("auto", "torch", "onnxruntime", "tensorrt", "litert")
# Where nothing else is asked for. On a CPU a batch takes as long as its images: larger ones only wait longer. A GPU is
# hardly busy with 64: 256 are 0.2 GFLOP and 200 kB, each some microseconds of its time, about as many as launching and
# waiting cost whatever the size; and a request of 1,024 images is 4 batches to hand over instead of 16.
DEFAULT_MAX_BATCH_SIZES = {"cpu": 64, "cuda": 256}

LargestOn = Callable[[str], int]  # the largest batch for a device


def open_backend(
    kind: str,
    device: str,
    version_dir: Path,
    manifest: Manifest,
    *,
    max_batch_size: int | None,
    num_threads: int,
    read: Callable[[str], bytes] | None = None,
) -> tuple[Backend, str]:
    """Opens the backend that serves a version; returns it and the reason for it in words.

    `kind` is one of KINDS, `device` is auto, cpu or cuda[:index]; `max_batch_size` is at most the manifest's, the
    largest that parity was proven for, and None takes that up to the device's DEFAULT_MAX_BATCH_SIZES. Only `auto`
    chooses; anything else is done or refused. `read` returns the verified bytes of a file, if they are not to be read
    from the disk again.
    Raises UsageError, ResourceUnavailableError (no such device, provider or library) and what `read_verified` raises.
    """
    if max_batch_size is not None and not 1 <= max_batch_size <= manifest.max_batch_size:
        what = f"max_batch_size {max_batch_size}; version {manifest.version} was proven for 1 to"
        cure = "ask for less, or export with a larger --max-batch-size"
        raise UsageError("BAD_BATCH_SIZE", f"{what} {manifest.max_batch_size}", cure)
    largest_on = partial(_max_batch_size, max_batch_size, manifest)
    read = read or partial(read_verified, version_dir, manifest)
    if kind == "torch":
        return _on_best_device(device, partial(_open_torch, read(PROGRAM_NAME), largest_on, num_threads))
    if kind == "onnxruntime":
        return _on_best_device(
            device, partial(_open_onnxruntime, read(ONNX_NAME), manifest.precision, largest_on, num_threads)
        )
    if kind == "tensorrt":
        if manifest.engine is None:
            cure = "make export makes one on a host with an NVIDIA GPU and TensorRT; or use --backend onnxruntime"
            raise MissingInputError("NO_ENGINE", f"version {manifest.version} has no TensorRT engine", cure)
        on = "cuda" if device == "auto" else device
        return _open_tensorrt(read(ENGINE_NAME), manifest, largest_on, on), f"TensorRT on {on} was asked for"
    if kind == "litert":
        if LITERT_NAME not in manifest.files:
            cure = "export it with --litert, or use --backend onnxruntime"
            raise MissingInputError("NO_LITERT_MODEL", f"version {manifest.version} has no {LITERT_NAME}", cure)
        if device not in ("auto", "cpu"):
            raise UsageError("BAD_DEVICE", f"{device!r} is no device of LiteRT's", "use cpu")
        return open_litert(read(LITERT_NAME), largest_on("cpu"), num_threads), "LiteRT on cpu was asked for"
    if kind == "auto":
        return _best(device, manifest, read, largest_on, num_threads)
    raise UsageError("BAD_BACKEND", f"{kind!r} is no backend", f"use one of {', '.join(KINDS)}")


def files_for(kind: str, manifest: Manifest) -> tuple[str, ...]:
    """Returns the names of the files that a backend of this kind may be opened from."""
    if kind != "auto":
        return (FILE_OF_BACKEND[kind],) if kind in FILE_OF_BACKEND else ()
    return (ONNX_NAME, ENGINE_NAME) if manifest.engine else (ONNX_NAME,)


def _max_batch_size(wanted: int | None, manifest: Manifest, device: str) -> int:
    return wanted or min(DEFAULT_MAX_BATCH_SIZES["cpu" if device == "cpu" else "cuda"], manifest.max_batch_size)


def _on_best_device(device: str, open_on: Callable[[str], Backend]) -> tuple[Backend, str]:
    """The backend on `device`; for auto on CUDA where that works, and else on the CPU."""
    if device != "auto":
        return open_on(device), f"{device} was asked for"
    try:
        return open_on("cuda"), "CUDA works here"
    except ResourceUnavailableError as error:
        return open_on("cpu"), f"no CUDA here: {error.why or error.what}"


def _best(
    device: str, manifest: Manifest, read: Callable[[str], bytes], largest_on: LargestOn, num_threads: int
) -> tuple[Backend, str]:
    """TensorRT where there is an engine that runs here, then ONNX Runtime on CUDA, then on the CPU; and why."""
    if device == "cpu":
        why_not = "TensorRT needs a GPU"
    elif manifest.engine is None:
        why_not = f"version {manifest.version} has no TensorRT engine"
    else:
        try:
            on = "cuda" if device == "auto" else device
            return _open_tensorrt(read(ENGINE_NAME), manifest, largest_on, on), "its engine runs here"
        except (ResourceUnavailableError, BadDataError) as error:
            if error.word not in ("TENSORRT_UNAVAILABLE", "NO_GPU", "ENGINE_STALE"):
                raise  # a file that was changed, or an engine that TensorRT refuses, is no matter of taste
            why_not = f"no TensorRT here: {error.why or f'{error.word}: {error.what}'}"
    open_on = partial(_open_onnxruntime, read(ONNX_NAME), manifest.precision, largest_on, num_threads)
    backend, why = _on_best_device(device, open_on)
    return backend, f"{why_not}; {why}"


def _open_torch(program: bytes, largest_on: LargestOn, num_threads: int, device: str) -> Backend:
    try:
        from serving.backends.torch_backend import TorchBackend
    except ImportError as error:
        cure = f"{how_to_install('train')}, or use --backend onnxruntime"
        raise ResourceUnavailableError("NO_TORCH", "asked for torch", cure, why=str(error)) from None
    return TorchBackend(program, device=device, num_threads=num_threads, max_batch_size=largest_on(device))


def _open_onnxruntime(model: bytes, precision: str, largest_on: LargestOn, num_threads: int, device: str) -> Backend:
    try:
        from serving.backends.onnxruntime_backend import (
            OnnxRuntimeBackend,
        )  # here: who serves with torch need not have it
    except ImportError as error:
        cure = how_to_install("serve")
        raise ResourceUnavailableError("NO_ONNXRUNTIME", "asked for onnxruntime", cure, why=str(error)) from None
    max_batch_size = largest_on(device)
    return OnnxRuntimeBackend(
        model, device=device, num_threads=num_threads, max_batch_size=max_batch_size, precision=precision
    )


def open_litert(model: bytes, max_batch_size: int, num_threads: int = 1) -> Backend:
    """Opens a LiteRT model. Raises ResourceUnavailableError NO_LITERT if LiteRT is not installed."""
    try:
        from serving.backends.litert_backend import LiteRTBackend
    except ImportError as error:
        cure = f"{how_to_install('litert')}, or use --backend onnxruntime"
        raise ResourceUnavailableError("NO_LITERT", "asked for litert", cure, why=str(error)) from None
    return LiteRTBackend(model, num_threads=num_threads, max_batch_size=max_batch_size)


def _open_tensorrt(engine: bytes, manifest: Manifest, largest_on: LargestOn, device: str) -> Backend:
    try:
        from serving.backends.tensorrt_backend import TensorRTBackend
    except ImportError as error:
        cure = f"{how_to_install('gpu')}, or use --backend onnxruntime"
        raise ResourceUnavailableError(
            "TENSORRT_UNAVAILABLE", f"asked for tensorrt on {device}", cure, why=str(error)
        ) from None
    if manifest.engine is None:
        what = f"version {manifest.version} has {ENGINE_NAME}, and its manifest says nothing about it"
        raise BadDataError("BAD_MANIFEST", what, "make export writes a new version")
    onnx_sha256 = manifest.files[ONNX_NAME]
    return TensorRTBackend(
        engine, manifest.engine, onnx_sha256=onnx_sha256, device=device, max_batch_size=largest_on(device)
    )
