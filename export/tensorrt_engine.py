"""Builds a TensorRT engine of the ONNX model with Polygraphy, for the GPU of this machine.

Strongly typed networks only: every type is the graph's own (precision.py), so nothing here chooses one, and the same
code serves TensorRT 10.16 and 11, which has no other networks any more. What does not lie in the graph is TF32, a way
to multiply float32; it is off unless asked for. What was built is read back with the engine inspector and must be what
was asked for.
"""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atelier.contract import IMAGE_SHAPE
from atelier.errors import BadDataError, ResourceUnavailableError
from atelier.machine import gpu_facts
from export.engine_options import EngineOptions, check_network
from serving.manifest import ENGINE_NAME, TENSORRT, EngineSpec

# What layers compute in, as the inspector of one version or another spells it, and our name.
_TYPES = {
    "bf16": r"\bbf(loat)?16\b",
    "fp16": r"\b(fp16|half|float16)\b",
    "fp8": r"\bfp8\b",
    "int8": r"\bint8\b",
    "fp32": r"\b(fp32|float|float32)\b",
}
# What may lie between the layers of an engine of each precision; the first of them must.
_ALLOWED = {
    "fp32": ("fp32",),
    "tf32": ("fp32",),
    "fp16": ("fp16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "fp32"),
}


def engine_from_onnx(onnx_model: bytes, options: EngineOptions) -> bytes:
    """Builds the serialised engine for the GPU of this machine.

    Raises ResourceUnavailableError TENSORRT_UNAVAILABLE or NO_GPU, BadDataError BAD_ENGINE if TensorRT cannot build
    it or made something else of it.
    """
    trt, polygraphy = _libraries()
    _check_gpu()
    options.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    smallest, best, largest = ((batch_size, *IMAGE_SHAPE) for batch_size in options.batch_sizes)
    config = polygraphy.CreateConfig(
        profiles=[polygraphy.Profile().add("images", min=smallest, opt=best, max=largest)],
        tf32=options.precision == "tf32",
        load_timing_cache=str(options.timing_cache) if options.timing_cache.exists() else None,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # what the inspector is to read back
        version_compatible=options.version_compatible,
        exclude_lean_runtime=False,
        hardware_compatibility_level=_hardware_level(trt, options.hardware_compatible),
    )
    with _translated("cannot build an engine of this model"):
        network = polygraphy.network_from_onnx_bytes(onnx_model, strongly_typed=True)
        check_network(trt, network[1], options.precision)
        engine = polygraphy.engine_bytes_from_network(network, config, save_timing_cache=str(options.timing_cache))
    return bytes(engine)


def _hardware_level(trt: Any, name: str) -> Any:
    return None if name == "none" else getattr(trt.HardwareCompatibilityLevel, name.upper())


def inspected_types(engine: bytes, options: EngineOptions) -> dict[str, int]:
    """Counts the tensors between the engine's layers by type, and holds them against the precision asked for.

    Raises BadDataError WRONG_PRECISION naming layer and type. A small network may end up as a single layer; then no
    tensor lies between layers, and what was checked before the build, the network's own types, has to do.
    """
    trt, polygraphy = _libraries()
    with _translated("cannot read the engine back"):
        deserialised = polygraphy.engine_from_bytes(engine)
    inspector = deserialised.create_engine_inspector()
    context = deserialised.create_execution_context()
    context.set_input_shape("images", (options.batch_sizes[1], *IMAGE_SHAPE))
    inspector.execution_context = context  # without the shape of a batch it reports no types
    document = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return check_types(document["Layers"], options.precision)


def check_types(layers: list[Any], precision: str) -> dict[str, int]:
    """Counts the tensors' types in the inspector's `Layers`. Raises BadDataError WRONG_PRECISION."""
    allowed, found = _ALLOWED[precision], Counter[str]()
    for layer, tensor in _tensors_between(layers):
        kind = _type_of(str(tensor.get("Format/Datatype", "")))
        if kind is None:
            continue  # an index, the images as they come, or a type that it does not report
        if kind not in allowed:
            what = f"layer {layer} of the engine puts out {tensor.get('Format/Datatype')}"
            raise BadDataError("WRONG_PRECISION", f"{what}, and {precision} was asked for", "report it: a bug")
        found[kind] += 1
    if found and not found[allowed[0]]:
        what = f"the engine's tensors are {dict(found)}: none is {allowed[0]}, and {precision} was asked for"
        raise BadDataError("WRONG_PRECISION", what, "report it: a bug")
    return dict(found)


def _tensors_between(layers: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (layer, output) for outputs that other layers read: the ends of the model have types of their own.

    So has what the first layer makes of the images: scaling them is float32 whatever the precision.
    """
    if any(not isinstance(layer, dict) for layer in layers):
        raise BadDataError("BAD_ENGINE", "the engine reports only its layers' names", "build it with make export")
    for layer in layers:
        if any(tensor["Name"] == "images" for tensor in layer.get("Inputs", [])):
            continue
        for tensor in layer.get("Outputs", []):
            is_shape = len(tensor.get("Dimensions", IMAGE_SHAPE)) < 2  # whose integers some versions describe as INT8
            if tensor["Name"] not in ("images", "logits") and not is_shape:
                yield layer["Name"], tensor


def _type_of(description: str) -> str | None:
    """Reads the type, `Row major linear FP16 format` -> fp16; None if it is none that layers compute in."""
    return next((name for name, pattern in _TYPES.items() if re.search(pattern, description, re.IGNORECASE)), None)


# --- What is needed, and what is on record ----------------------------------------------------------------------------


def _libraries() -> tuple[Any, Any]:
    """Imports TensorRT and Polygraphy's part for it. Raises ResourceUnavailableError TENSORRT_UNAVAILABLE."""
    try:
        import tensorrt
        from polygraphy.backend import trt as polygraphy
        from polygraphy.logger import G_LOGGER
    except (ImportError, OSError, RuntimeError) as error:
        what = f"an engine needs TensorRT and Polygraphy: {' '.join(str(error).split())}"
        cure = "on a host with an NVIDIA GPU install the extra `tensorrt`"
        raise ResourceUnavailableError("TENSORRT_UNAVAILABLE", what, cure) from None
    G_LOGGER.module_severity = G_LOGGER.WARNING
    return tensorrt, polygraphy


def _check_gpu() -> None:
    """Raises ResourceUnavailableError NO_GPU: TensorRT's builder needs the device, and may crash without one."""
    from serving.backends.cuda import CudaError, gpu_at

    try:
        gpu_at(0)
    except CudaError as error:
        cure = "engines are built on the machine that will run them"
        raise ResourceUnavailableError("NO_GPU", "asked for a TensorRT engine", cure, why=str(error)) from None


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raises Polygraphy's complaints, with what TensorRT logged, as one error of ours."""
    from polygraphy.exception import PolygraphyException

    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            yield
    except PolygraphyException as error:
        reason = " ".join(f"{error} {log.getvalue()}".split())[-600:]
        raise BadDataError("BAD_ENGINE", f"TensorRT {what}: {reason}", "--engine no publishes without one") from error


def spec_of(engine: bytes, onnx_sha256: str, options: EngineOptions) -> EngineSpec:
    """Describes an engine that was just built here, for the manifest."""
    from serving.backends.cuda import gpu_at

    trt, _ = _libraries()
    gpu, (smallest, best, largest) = gpu_at(0), options.batch_sizes
    return EngineSpec(
        flavour=TENSORRT,
        file=ENGINE_NAME,
        version=trt.__version__,
        compute_capabilities=(gpu.compute_capability,),
        precision=options.precision,
        driver=gpu_facts().get("driver_version", "unknown"),
        gpu=gpu.name,
        onnx_sha256=onnx_sha256,
        min_batch_size=smallest,
        opt_batch_size=best,
        max_batch_size=largest,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        layer_types=inspected_types(engine, options),
    )
