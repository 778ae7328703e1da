"""Chooses the runtime that serves a version, and says why: what was asked for runs, or starting fails.

A runtime is imported when it is to be opened and not before: who serves an ONNX model need not have torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from atelier.errors import MissingInputError, ProgramError, ResourceUnavailableError, UsageError
from atelier.program import how_to_install
from serving.backends.base import Backend
from serving.manifest import LITERT_NAME, ONNX_NAME, PROGRAM_NAME, EngineSpec, Manifest, read_verified

KINDS = ("auto", "torch", "onnxruntime", "tensorrt", "litert")
# Where nothing else is asked for. On a CPU a batch takes as long as its images: larger ones only wait longer. A GPU is
# hardly busy with 64: 256 are 0.2 GFLOP and 200 kB, each some microseconds of its time, about as many as launching and
# waiting cost whatever the size; and a request of 1,024 images is 4 batches to hand over instead of 16.
DEFAULT_MAX_BATCH_SIZES = {"cpu": 64, "cuda": 256}

OR_ONNX = "or use --backend onnxruntime"  # the end of a cure

LargestOn = Callable[[str], int]  # the largest batch for a device
UNFIT = ("TENSORRT_UNAVAILABLE", "NO_GPU", "ENGINE_STALE")  # an engine that is in order, but not for this machine


class Opened(NamedTuple):
    """A backend, the reason for it in words, and the name of the file that it was opened from."""

    backend: Backend
    why: str
    file: str


def open_backend(
    kind: str,
    device: str,
    version_dir: Path,
    manifest: Manifest,
    *,
    max_batch_size: int | None,
    num_threads: int,
    read: Callable[[str], bytes] | None = None,
    cache_dir: Path | None = None,
) -> Opened:
    """Opens the backend that serves a version.

    `kind` is one of KINDS, `device` is auto, cpu or cuda[:index]; `max_batch_size` is at most the manifest's, the
    largest that parity was proven for, and None takes that up to the device's DEFAULT_MAX_BATCH_SIZES. Only `auto`
    chooses; anything else is done or refused. `read` returns the verified bytes of a file, if they are not to be read
    from the disk again; in `cache_dir` TensorRT for RTX keeps the kernels that it compiles.
    Raises UsageError, ResourceUnavailableError (no such device, provider or library) and what `read_verified` raises.
    """
    if max_batch_size is not None and not 1 <= max_batch_size <= manifest.max_batch_size:
        what = f"max_batch_size {max_batch_size}; version {manifest.version} was proven for 1 to"
        cure = "ask for less, or export with a larger --max-batch-size"
        raise UsageError("BAD_BATCH_SIZE", f"{what} {manifest.max_batch_size}", cure)
    largest_on = partial(_max_batch_size, max_batch_size, manifest)
    read = read or partial(read_verified, version_dir, manifest)
    if kind == "torch":
        backend, why = _on_best_device(device, partial(_open_torch, read(PROGRAM_NAME), largest_on, num_threads))
        return Opened(backend, why, PROGRAM_NAME)
    if kind == "onnxruntime":
        open_on = partial(_open_onnxruntime, read(ONNX_NAME), manifest.precision, largest_on, num_threads)
        return Opened(*_on_best_device(device, open_on), ONNX_NAME)
    on = "cuda" if device == "auto" else device
    if kind == "tensorrt":
        return _open_engine(manifest, read, largest_on, on, cache_dir)
    if kind == "litert":
        if LITERT_NAME not in manifest.files:
            cure = "export it with --litert, or use --backend onnxruntime"
            raise MissingInputError("NO_LITERT_MODEL", f"version {manifest.version} has no {LITERT_NAME}", cure)
        if device not in ("auto", "cpu"):
            raise UsageError("BAD_DEVICE", f"{device!r} is no device of LiteRT's", "use cpu")
        backend = open_litert(read(LITERT_NAME), largest_on("cpu"), num_threads)
        return Opened(backend, "LiteRT on cpu was asked for", LITERT_NAME)
    if kind != "auto":
        raise UsageError("BAD_BACKEND", f"{kind!r} is no backend", f"use one of {', '.join(KINDS)}")
    if device == "cpu":
        why_not = "TensorRT needs a GPU"
    else:
        try:
            return _open_engine(manifest, read, largest_on, on, cache_dir)
        except ProgramError as error:
            if error.word not in (*UNFIT, "NO_ENGINE"):
                raise  # a file that was changed, or an engine that TensorRT refuses, is no matter of taste
            why_not = f"no TensorRT here: {error.why or f'{error.word}: {error.what}'}"
    open_on = partial(_open_onnxruntime, read(ONNX_NAME), manifest.precision, largest_on, num_threads)
    backend, why = _on_best_device(device, open_on)
    return Opened(backend, f"{why_not}; {why}", ONNX_NAME)


def files_for(kind: str, manifest: Manifest) -> tuple[str, ...]:
    """Returns the names of the files that a backend of this kind may be opened from."""
    engines = tuple(engine.file for engine in manifest.engines)
    files = {"torch": (PROGRAM_NAME,), "onnxruntime": (ONNX_NAME,), "tensorrt": engines, "litert": (LITERT_NAME,)}
    return files.get(kind, (ONNX_NAME, *engines))


def _max_batch_size(wanted: int | None, manifest: Manifest, device: str) -> int:
    return wanted or min(DEFAULT_MAX_BATCH_SIZES["cpu" if device == "cpu" else "cuda"], manifest.max_batch_size)


def _on_best_device(device: str, open_on: Callable[[str], Backend]) -> tuple[Backend, str]:
    """Opens the backend on `device`; for auto on CUDA if that works, and else on the CPU."""
    if device != "auto":
        return open_on(device), f"{device} was asked for"
    try:
        return open_on("cuda"), "CUDA works here"
    except ResourceUnavailableError as error:
        return open_on("cpu"), f"no CUDA here: {error.why or error.what}"


@contextmanager
def _needs(runtime: str, word: str, cure: str) -> Iterator[None]:
    """Raises ResourceUnavailableError if what the block imports is not installed."""
    try:
        yield
    except ImportError as error:
        raise ResourceUnavailableError(word, f"asked for {runtime}", cure, why=str(error)) from None


def _open_torch(program: bytes, largest_on: LargestOn, num_threads: int, device: str) -> Backend:
    with _needs("torch", "NO_TORCH", f"{how_to_install('train')}, {OR_ONNX}"):
        from serving.backends.torch_backend import TorchBackend
    return TorchBackend(program, device=device, num_threads=num_threads, max_batch_size=largest_on(device))


def _open_onnxruntime(model: bytes, precision: str, largest_on: LargestOn, num_threads: int, device: str) -> Backend:
    with _needs("onnxruntime", "NO_ONNXRUNTIME", how_to_install("serve")):
        from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
    max_batch_size = largest_on(device)
    return OnnxRuntimeBackend(
        model, device=device, num_threads=num_threads, max_batch_size=max_batch_size, precision=precision
    )


def open_litert(model: bytes, max_batch_size: int, num_threads: int = 1) -> Backend:
    """Opens a LiteRT model. Raises ResourceUnavailableError NO_LITERT if LiteRT is not installed."""
    with _needs("litert", "NO_LITERT", f"{how_to_install('litert')}, {OR_ONNX}"):
        from serving.backends.litert_backend import LiteRTBackend
    return LiteRTBackend(model, num_threads=num_threads, max_batch_size=max_batch_size)


def _open_engine(
    manifest: Manifest, read: Callable[[str], bytes], largest_on: LargestOn, device: str, cache_dir: Path | None
) -> Opened:
    """Opens the first of the version's engines that fits GPU and libraries; `why` says which, and why not another.

    Raises MissingInputError NO_ENGINE if the version has none, and what the last one raised if none fits.
    """
    if not manifest.engines:
        cure = "make export makes one, with TensorRT for RTX or TensorRT; or use --backend onnxruntime"
        raise MissingInputError("NO_ENGINE", f"version {manifest.version} has no TensorRT engine", cure)
    passed_over: list[ProgramError] = []
    for spec in manifest.engines:
        try:
            backend = open_tensorrt(
                read(spec.file),
                spec,
                onnx_sha256=manifest.files[ONNX_NAME],
                device=device,
                max_batch_size=largest_on(device),
                cache_dir=cache_dir,
            )
        except ProgramError as error:
            if error.word not in UNFIT:
                raise
            passed_over.append(error)
            continue
        reasons = [f"{spec.file} is for {spec.target} and runs here", *map(_reason, passed_over)]
        return Opened(backend, "; ".join(reasons), spec.file)
    raise _none_fits(passed_over)


def _reason(error: ProgramError) -> str:
    return f"{error.word}: {error.what}" + (f": {error.why}" if error.why else "")


def _none_fits(errors: list[ProgramError]) -> ProgramError:
    """Joins the errors, the most telling first: a missing library hides behind an engine that would not fit anyway."""
    told = next((error for error in errors if error.word == "TENSORRT_UNAVAILABLE"), errors[0])
    others = [_reason(error) for error in errors if error is not told and error.what != told.what]
    return type(told)(told.word, "; ".join([told.what, *others]), told.cure, why=told.why)


def open_tensorrt(
    engine: bytes,
    spec: EngineSpec,
    *,
    onnx_sha256: str,
    device: str,
    max_batch_size: int,
    cache_dir: Path | None = None,
    is_trial: bool = False,
) -> Backend:
    """Opens one engine. Raises as `TensorRTBackend`, and TENSORRT_UNAVAILABLE if there are no bindings of CUDA's."""
    with _needs(f"{spec.flavour} on {device}", "TENSORRT_UNAVAILABLE", f"{how_to_install('gpu')}, {OR_ONNX}"):
        from serving.backends.tensorrt_backend import TensorRTBackend
    return TensorRTBackend(
        engine,
        spec,
        onnx_sha256=onnx_sha256,
        device=device,
        max_batch_size=max_batch_size,
        cache_dir=cache_dir,
        is_trial=is_trial,
    )
