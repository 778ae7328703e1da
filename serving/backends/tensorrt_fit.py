"""Finds out whether an engine can run here, before TensorRT is given it: the GPU, then the engine, then the library.

In that order, since importing the library maps 200 MB into a process that may never need it.
"""

import importlib
from typing import Any

from atelier.errors import BadDataError, ResourceUnavailableError, UsageError
from serving.backends.cuda import CudaError, Gpu, gpu_at
from serving.manifest import TENSORRT, TENSORRT_RTX, EngineSpec

TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}
# The full library, which also builds; and the small one from PyPI, which runs version-compatible engines.
_MODULES = {
    TENSORRT: ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings"),
    TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


def index_of(device: str) -> int:
    """Returns the index in `cuda` or `cuda:<index>`. Raises UsageError BAD_DEVICE for any other device."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UsageError("BAD_DEVICE", f"{device!r} is no device of TensorRT's", "use cuda or cuda:<index>")
    return int(index or "0")


def gpu_on(device: str) -> Gpu:
    """Returns the GPU. Raises ResourceUnavailableError NO_GPU if there is none."""
    try:
        return gpu_at(index_of(device))
    except CudaError as error:
        what, cure = f"asked for tensorrt on {device}", "check nvidia-smi, or use --device cpu"
        raise ResourceUnavailableError("NO_GPU", what, cure, why=str(error)) from None


def library_for(spec: EngineSpec, device: str) -> Any:
    """Imports the library that runs the engine: of TensorRT's also the lean one, if the engine can run on that.

    Raises ResourceUnavailableError TENSORRT_UNAVAILABLE.
    """
    names = _MODULES[spec.flavour]
    if spec.flavour == TENSORRT and not spec.version_compatible:
        names = names[:1]
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # as its loader says that its libraries are not there
            reasons.append(" ".join(str(error).split()))
    cure = f"install the extra `{'rtx' if spec.flavour == TENSORRT_RTX else 'tensorrt'}`, or use --backend onnxruntime"
    if spec.flavour == TENSORRT and not spec.version_compatible:
        cure += "; the lean runtime of the extra `gpu` needs an engine of make export ARGS=--version-compatible"
    raise ResourceUnavailableError(
        "TENSORRT_UNAVAILABLE", f"asked for {spec.flavour} on {device}", cure, why=reasons[0]
    )


def check_fits(spec: EngineSpec, gpu: Gpu, onnx_sha256: str) -> None:
    """Raises BadDataError ENGINE_STALE if the engine is for another GPU, or of another model than the version's."""
    if spec.onnx_sha256 != onnx_sha256:
        raise _stale(spec, f"model {spec.onnx_sha256[:12]}…", f"{onnx_sha256[:12]}…")
    if not _runs_on_gpu(spec, gpu):
        raise _stale(spec, spec.target, f"{gpu.name} (compute capability {gpu.compute_capability})")


def check_version(spec: EngineSpec, found: str) -> None:
    """Raises BadDataError ENGINE_STALE if the engine is of a release of its library whose engines do not run here."""
    if not _runs_on_version(spec, found):
        raise _stale(spec, f"{TITLES[spec.flavour]} {spec.version}", found)


def _stale(spec: EngineSpec, built: str, here: str) -> BadDataError:
    what = f"the engine {spec.file} was built for {built}, here is {here}"
    cure = "make export on this machine builds another; meanwhile --backend onnxruntime serves this version"
    return BadDataError("ENGINE_STALE", what, cure)


def _runs_on_version(spec: EngineSpec, found: str) -> bool:
    """Says whether it runs: version-compatible engines on later releases of a major version, others on their own."""
    if not spec.version_compatible:
        return spec.version == found
    built, here = ([int(part) for part in version.split(".")[:3]] for version in (spec.version, found))
    return built[0] == here[0] and built <= here


def _runs_on_gpu(spec: EngineSpec, gpu: Gpu) -> bool:
    if spec.hardware_compatible == "ampere_plus":
        return float(gpu.compute_capability) >= 8.0
    is_capable = gpu.compute_capability in spec.compute_capabilities
    is_bound = spec.flavour == TENSORRT and spec.hardware_compatible != "same_compute_capability"
    return is_capable and (not is_bound or spec.gpu == gpu.name)
