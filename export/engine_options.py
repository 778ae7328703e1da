"""Says how engines are built, whatever their flavour, and checks the networks that they are built of."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atelier.errors import BadDataError

TIMING_CACHE = Path("artifacts/tensorrt-timing.cache")
Wanted = Literal["auto", "yes", "no"]
HardwareLevel = Literal["none", "same_compute_capability", "ampere_plus"]
_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
_CURE = "make export writes a new version; if that fails too, it is a bug: report it"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Says how an engine is built; the last three are of TensorRT proper alone."""

    precision: str
    """The precision that the ONNX model is in."""

    max_batch_size: int
    """The profile's largest batch; its smallest is 1."""

    opt_batch_size: int = 64
    """The batch that kernels are timed at, if that is not over the largest."""

    version_compatible: bool = False
    """True if it also runs on later releases of this TensorRT's major version, and on the lean runtime."""

    hardware_compatible: str = "none"
    """A HardwareLevel: other GPUs than this one that it is to run on."""

    timing_cache: Path = TIMING_CACHE
    """Timings kept from build to build: a second build takes seconds and picks the same kernels."""

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """Smallest, best, largest."""
        return 1, min(self.opt_batch_size, self.max_batch_size), self.max_batch_size


# --- What TensorRT's parser made of the ONNX graph, checked before anything is built of it ----------------------------


def check_network(trt: Any, network: Any, precision: str) -> None:
    """Raises BadDataError BAD_ENGINE for other tensors than the contract's, WRONG_PRECISION for another precision.

    Networks are strongly typed: every type in the engine is the network's, so what is wrong here stays wrong.
    """
    _check_contract(trt, network)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    multiplying = [layer for layer in layers if layer.type in _multiplying(trt)]
    if not multiplying:
        raise BadDataError("BAD_ENGINE", "the network has no layer that multiplies", _CURE)
    expected = {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}.get(precision, trt.DataType.FLOAT)
    for layer in multiplying:
        if layer.get_output(0).dtype != expected:
            what = f"layer {layer.name} of the network is {layer.get_output(0).dtype}, and {precision} was asked for"
            raise BadDataError("WRONG_PRECISION", what, _CURE)
    _check_quantisation(trt, layers, multiplying, precision)


def layer_types(network: Any) -> dict[str, int]:
    """Counts the network's layers by the type that they put out, the most frequent first."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = (layer.get_output(0).dtype.name for layer in layers)
    return dict(Counter(_NAMES.get(name, name.lower()) for name in names).most_common())


def _multiplying(trt: Any) -> tuple[Any, ...]:
    return trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY


def _check_contract(trt: Any, network: Any) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found = [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in (*inputs, *outputs)]
    contract = [("images", trt.DataType.UINT8, (-1, 1, 28, 28)), ("logits", trt.DataType.FLOAT, (-1, 10))]
    if found != contract:
        described = [(name, dtype.name, shape) for name, dtype, shape in found]
        wanted = [(name, dtype.name, shape) for name, dtype, shape in contract]
        raise BadDataError("BAD_ENGINE", f"the network has {described}, the contract says {wanted}", _CURE)


def _check_quantisation(trt: Any, layers: list[Any], multiplying: list[Any], precision: str) -> None:
    """Refuses a layer that multiplies unless both its inputs are quantised in int8, and none in other precisions."""
    makers = {layer.get_output(0).name: layer.type for layer in layers}
    dequantise = trt.LayerType.DEQUANTIZE
    for layer in multiplying:
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        made = [makers.get(tensor.name) for tensor in inputs if tensor is not None]
        num_quantised = made[:2].count(dequantise)
        if num_quantised != (2 if precision == "int8" else 0):
            what = f"layer {layer.name} of the network has {num_quantised} quantised inputs of 2"
            raise BadDataError("WRONG_PRECISION", f"{what}, and {precision} was asked for", _CURE)
