"""Makes a model in each precision, and emulates half precisions, so that they can be proven on a CPU.

TensorRT's strongly typed networks take every type from the graph, so the graph is where a precision is chosen: fp16 and
bf16 by casts, int8 by quantisation nodes. TF32 is not a type but a way to multiply float32, so its graph is fp32's, and
the runtimes have a setting for it.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from ml_dtypes import bfloat16
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from atelier.contract import Images
from export.onnx_model import check_onnx, opset_of
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
HALF_TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, bfloat16)}
NUM_CALIBRATION_IMAGES = 1024
CALIBRATION_BATCH_SIZE = 128
QUANTISED_OPERATORS = ["Conv", "Gemm", "MatMul"]


def onnx_in(precision: str, fp32_model: bytes, train_images: Images) -> bytes:
    """Returns the float32 model of `onnx_from_program` in one of PRECISIONS, checked, with the same inputs and outputs.

    `train_images` (N, 1, 28, 28) calibrate int8. Raises BadDataError BAD_MODEL as `check_onnx` does.
    """
    if precision == "fp32":
        return fp32_model
    if precision == "int8":
        model = onnx.load_from_string(int8_onnx(fp32_model, calibration_images(train_images)))
    elif precision in HALF_TYPES:
        model = _with_half_types(onnx.load_from_string(fp32_model), precision)
    else:
        model = onnx.load_from_string(fp32_model)
    properties = {entry.key: entry.value for entry in onnx.load_from_string(fp32_model).metadata_props}
    onnx.helper.set_model_props(model, {**properties, "precision": precision})
    check_onnx(model, opset_of(precision))
    return model.SerializeToString(deterministic=True)


def _with_half_types(model: ModelProto, precision: str) -> ModelProto:
    """Puts weights and everything between `images` and `logits` into fp16 or bf16.

    `images` still go into a Cast to float32, which TensorRT needs of uint8 inputs, and from there into one to the half
    type: both types hold 0 to 255 exactly. `logits` are cast back to float32.
    """
    model = version_converter.convert_version(model, opset_of(precision))
    element_type, dtype = HALF_TYPES[precision]
    first, *others = model.graph.node  # the first is the Cast of the images, says `check_onnx`
    attributes = [attribute for node in others for attribute in node.attribute]
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = element_type
    for tensor in [*model.graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))]:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    images, images_half, logits_half = first.output[0], f"images_{precision}", f"logits_{precision}"
    for node in others:
        node.input[:] = [images_half if name == images else name for name in node.input]
        node.output[:] = [logits_half if name == "logits" else name for name in node.output]
    model.graph.node.insert(1, _cast(images, images_half, element_type))
    model.graph.node.append(_cast(logits_half, "logits", TensorProto.FLOAT))
    del model.graph.value_info[:]  # of the types that were
    return model


def _cast(value: str, result: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [value], [result], name=f"cast_to_{result}", to=element_type)


def int8_onnx(model_bytes: bytes, train_images: Images) -> bytes:
    """Puts QuantizeLinear and DequantizeLinear around the layers that multiply.

    Post-training quantisation (Jacob et al., 2018) by ONNX Runtime's own quantiser, in the form that TensorRT reads
    too: symmetric, so every zero point is 0; one scale per output channel of the weights and one per tensor of
    activations, the largest value seen on `train_images` (N, 1, 28, 28), which are never the test images; biases, sums
    and all other layers in float32.
    """
    with tempfile.TemporaryDirectory() as directory, _quiet_quantiser():
        path = Path(directory) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(model_bytes),
            str(path),
            _Calibration(train_images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,  # TensorRT knows no zero points but 0
                "WeightSymmetric": True,
                "AddQDQPairToWeight": True,  # weights stay float32 in the file; each runtime folds them as it likes
                "OpTypesToExcludeOutputQuantization": QUANTISED_OPERATORS,  # logits in steps of 0.1 would be useless
                "QuantizeBias": False,  # TensorRT adds biases in float32
                "DedicatedQDQPair": True,  # a pair per consumer, which is what TensorRT fuses
            },
        )
        return path.read_bytes()


def calibration_images(train_images: Images) -> Images:
    """Chooses (1024, 1, 28, 28): the same ones every time, from all over the training images."""
    chosen = np.random.default_rng(0).permutation(len(train_images))[:NUM_CALIBRATION_IMAGES]
    return train_images[np.sort(chosen)]


class _Calibration(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
    """Feeds images to ONNX Runtime's calibrator, batch by batch."""

    def __init__(self, images: Images) -> None:
        size = CALIBRATION_BATCH_SIZE
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        self._feeds: Iterator[Mapping[str, Any]] = iter([{"images": batch} for batch in batches])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Silences the advice to fold first what is folded already: nobody can act on that."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class EmulatedBackend(OnnxRuntimeBackend):
    """Runs a half-precision model on a CPU, every operator rounded as a GPU rounds it; exact, and not to be timed."""

    name = "emulated"

    def __init__(self, half_model: bytes, *, max_batch_size: int) -> None:
        super().__init__(emulated_onnx(half_model), max_batch_size=max_batch_size)


def emulated_onnx(half_model: bytes) -> bytes:
    """Rewrites the model of `onnx_in("fp16" or "bf16")` for runtimes that know float32 only.

    Tensor cores multiply half-precision numbers exactly, add in float32, and round the sum to the half type once it is
    stored. So every operator is in float32 here, and its result cast to the half type and back. ONNX Runtime's CPU has
    no bf16 operators at all, and in an fp16 model it leaves out casts, and with them rounding. The values between
    layers keep their names.
    """
    model = onnx.load_from_string(half_model)
    graph = model.graph
    half_types = {element_type for element_type, _ in HALF_TYPES.values()}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in half_types}
    (half_type,) = set(weights.values())
    nodes = [_cast(name, _widened(name), TensorProto.FLOAT) for name in weights]
    for node in graph.node:
        node.input[:] = [_widened(name) if name in weights else name for name in node.input]
        nodes += [node] if _is_to_float(node) else _rounded(node, half_type)
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString(deterministic=True)


def _widened(name: str) -> str:
    return f"{name}_float32"


def _is_to_float(node: NodeProto) -> bool:
    """Recognises the casts at the ends: of the images and of the logits."""
    return node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT


def _rounded(node: NodeProto, half_type: int) -> list[NodeProto]:
    """Returns the operator, and casts of its result to the half type and back."""
    name, exact, half = node.output[0], f"{node.output[0]}_exact", f"{node.output[0]}_rounded"
    if node.op_type == "Cast":  # into the half type: nothing to compute
        return [_cast(node.input[0], half, half_type), _cast(half, name, TensorProto.FLOAT)]
    node.output[0] = exact
    return [node, _cast(exact, half, half_type), _cast(half, name, TensorProto.FLOAT)]
