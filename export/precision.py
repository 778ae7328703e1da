"""The precisions a model is made in, and what each of them does to the ONNX graph.

TensorRT's strongly typed networks take every type from the graph, so the graph is where a precision is chosen: fp16 and
bf16 by casts, int8 by quantisation nodes (int8_model.py). TF32 is not a type but a way to multiply float32, so its
graph is fp32's, and the runtimes are told.
"""

import onnx
from ml_dtypes import bfloat16
from numpy import float16
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from atelier.contract import Images
from export.int8_model import calibration_images, int8_onnx
from export.onnx_model import check_onnx, opset_of

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
HALF_TYPES = {"fp16": (TensorProto.FLOAT16, float16), "bf16": (TensorProto.BFLOAT16, bfloat16)}


def onnx_in(precision: str, fp32_model: bytes, train_images: Images) -> bytes:
    """The float32 model of `onnx_from_program` in one of PRECISIONS, checked; inputs and outputs stay what they are.

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
    """Weights and everything between `images` and `logits` in fp16 or bf16.

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
