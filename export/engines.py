"""Builds the version's engines: TensorRT's for the GPU of this machine, TensorRT for RTX's for all that it names."""

import hashlib
from dataclasses import dataclass

from atelier.errors import ProgramError, ResourceUnavailableError
from export.engine_options import EngineOptions, Wanted
from export.rtx_engine import rtx_engines_from_onnx
from export.tensorrt_engine import engine_from_onnx, spec_of
from serving.manifest import ENGINE_NAME, EngineSpec


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Holds what was built: `specs` as the manifest lists them, and for people a line about each flavour."""

    files: dict[str, bytes]
    specs: tuple[EngineSpec, ...] = ()
    about: tuple[str, ...] = ()


def engines_from_onnx(onnx_model: bytes, options: EngineOptions, wanted: Wanted) -> Engines:
    """Builds what can be built here; `auto` goes on without what lacks library or GPU.

    `yes` wants an engine for the GPU of this machine, or if it has none the portable one. Raises ProgramError.
    """
    if wanted == "no":
        return Engines(files={}, about=("engines left out: --engine no",))
    onnx_sha256 = hashlib.sha256(onnx_model).hexdigest()
    files: dict[str, bytes] = {}
    specs: list[EngineSpec] = []
    about: list[str] = []
    lacking: list[ProgramError] = []
    try:
        files[ENGINE_NAME] = engine_from_onnx(onnx_model, options)
        specs.append(spec_of(files[ENGINE_NAME], onnx_sha256, options))
    except ResourceUnavailableError as error:
        about.append(f"TensorRT engine left out: {error}")
        lacking.append(error)
    try:
        portable_files, portable = rtx_engines_from_onnx(onnx_model, onnx_sha256, options)
        files |= portable_files
        specs += portable
    except ResourceUnavailableError as error:
        about.append(f"TensorRT for RTX engine left out: {error}")
        lacking.append(error)
    if wanted == "yes":
        capability = _capability()
        if not any(not capability or capability in spec.compute_capabilities for spec in specs):
            raise lacking[0] if capability else lacking[-1]
    return Engines(files=files, specs=tuple(specs), about=(*(_about(spec, files) for spec in specs), *about))


def _capability() -> str:
    """Returns the compute capability of this machine's first GPU; empty if there is none, or nothing to ask it with."""
    try:
        from serving.backends.cuda import CudaError, gpu_at
    except ImportError:
        return ""
    try:
        return gpu_at(0).compute_capability
    except CudaError:
        return ""


def _about(spec: EngineSpec, files: dict[str, bytes]) -> str:
    types = ", ".join(f"{number} {name}" for name, number in spec.layer_types.items()) or "one layer"
    size = f"{len(files[spec.file]):,} bytes"
    return f"{spec.file}: {spec.flavour} {spec.version} engine for {spec.target}, {size}; types of its layers: {types}"
