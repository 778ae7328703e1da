"""Builds an engine of TensorRT for RTX of the ONNX model, which needs no GPU, for the GPUs that it names.

Strongly typed from the same graph as TensorRT's own engine. It is portable: kernels are compiled where it first runs,
so one file serves every GPU of its compute capabilities, and is proven there (serving/backends/proof.py).
"""

import importlib
import platform
import sys
from typing import Any

import onnx

from atelier.contract import IMAGE_SHAPE
from atelier.errors import BadDataError, ResourceUnavailableError
from export.engine_options import EngineOptions, check_network, layer_types
from export.onnx_model import check_onnx, opset_of
from serving.backends.tensorrt_log import log_of
from serving.manifest import RTX_ENGINE_NAME, RTX_TURING_ENGINE_NAME, TENSORRT_RTX, EngineSpec

PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")
TURING = ("7.5",)  # has no bf16, and no float32 matrix multiplication of RTX's
CURRENT = "current"
_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def rtx_engines_from_onnx(
    onnx_model: bytes, onnx_sha256: str, options: EngineOptions
) -> tuple[dict[str, bytes], list[EngineSpec]]:
    """Builds the portable engine and, if the precision allows it, the one for compute capability 7.5.

    Raises ResourceUnavailableError RTX_UNAVAILABLE; BadDataError BAD_MODEL as `check_onnx` does, BAD_ENGINE or
    WRONG_PRECISION if the parser does not take the graph, or makes something else of it than was asked for.
    """
    trt = rtx_library()
    # Before the parser, which takes operators of any opset for the newest that it knows.
    check_onnx(onnx.load_from_string(onnx_model), opset_of(options.precision))
    files, specs = {}, []
    for name, capabilities in ((RTX_ENGINE_NAME, PORTABLE), (RTX_TURING_ENGINE_NAME, TURING)):
        try:
            engine, types = rtx_engine(trt, onnx_model, options, capabilities)
        except BadDataError:
            if capabilities is PORTABLE:
                raise
            continue
        files[name] = engine
        specs.append(_spec_of(name, trt.__version__, capabilities, onnx_sha256, options, types))
    return files, specs


def rtx_engine_for_this_gpu(onnx_model: bytes, onnx_sha256: str, options: EngineOptions) -> tuple[bytes, EngineSpec]:
    """Builds one for the GPU of this machine, whichever it is: for reports. Raises as `rtx_engines_from_onnx`."""
    from serving.backends.cuda import gpu_at

    trt = rtx_library()
    engine, types = rtx_engine(trt, onnx_model, options, (CURRENT,))
    capability = gpu_at(0).compute_capability
    return engine, _spec_of(RTX_ENGINE_NAME, trt.__version__, (capability,), onnx_sha256, options, types)


def rtx_library() -> Any:
    """Imports TensorRT for RTX. Raises ResourceUnavailableError RTX_UNAVAILABLE, in one line."""
    reasons = []
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(" ".join(str(error).split()))
    has_wheels = (sys.platform, platform.machine()) == ("linux", "x86_64")
    cure = "make setup, or install the extra `rtx`" if has_wheels else "it is there for Linux on x86-64 only"
    raise ResourceUnavailableError("RTX_UNAVAILABLE", "TensorRT for RTX is not installed", cure, why=reasons[-1])


def rtx_engine(
    trt: Any, onnx_model: bytes, options: EngineOptions, capabilities: tuple[str, ...]
) -> tuple[bytes, dict[str, int]]:
    """Builds the engine for these compute capabilities; returns it with the types of the parsed network's layers."""
    log = log_of(trt)
    log.take()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_model):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)) or log.take()
        raise _bad_engine(trt, "cannot parse the ONNX model", reasons)
    check_network(trt, network, options.precision)
    config = _config(trt, builder, options, capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _bad_engine(trt, f"cannot build an engine for {', '.join(capabilities)}", log.take())
    return bytes(plan), layer_types(network)


def _config(trt: Any, builder: Any, options: EngineOptions, capabilities: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "CURRENT" if capability == CURRENT else f"SM{capability.replace('.', '')}"
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise _bad_engine(trt, f"does not know compute capability {capability}", log_of(trt).take())
    change_flag = config.set_flag if options.precision == "tf32" else config.clear_flag
    change_flag(trt.BuilderFlag.TF32)  # which is on by default
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((size, *IMAGE_SHAPE) for size in options.batch_sizes))
    config.add_optimization_profile(profile)
    return config


def _bad_engine(trt: Any, what: str, why: str) -> BadDataError:
    cure = "--engine no publishes without one"
    return BadDataError("BAD_ENGINE", f"TensorRT for RTX {trt.__version__} {what}", cure, why=why)


def _spec_of(
    name: str,
    version: str,
    capabilities: tuple[str, ...],
    onnx_sha256: str,
    options: EngineOptions,
    types: dict[str, int],
) -> EngineSpec:
    smallest, best, largest = options.batch_sizes
    return EngineSpec(
        flavour=TENSORRT_RTX,
        file=name,
        version=version,
        compute_capabilities=capabilities,
        precision=options.precision,
        onnx_sha256=onnx_sha256,
        min_batch_size=smallest,
        opt_batch_size=best,
        max_batch_size=largest,
        layer_types=types,
    )
