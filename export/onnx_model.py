"""Exports the program as one ONNX file: weights inside, the batch dynamic, the same bytes for the same checkpoint."""

import json
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto
from torch.export import ExportedProgram

from atelier.errors import BadDataError

OPSET = 20
BF16_OPSET = 22  # the first in which convolution and pooling take bfloat16

# What a LeNet needs, and nothing that loops, branches, reads files or allocates what its input says.
ALLOWED_OPS = {
    *("Conv", "Gemm", "MatMul", "AveragePool", "MaxPool", "Sigmoid", "Tanh", "Relu", "Gelu"),
    *("Cast", "Constant", "Add", "Sub", "Mul", "Div", "Pad", "Flatten", "Reshape"),
    *("QuantizeLinear", "DequantizeLinear"),
}
MAX_BYTES = 16 * 2**20  # LeNet-5 is 0.25 MiB


def onnx_from_program(program: ExportedProgram, *, classes: tuple[str, ...], **properties: str) -> bytes:
    """Makes a checked model, `images` uint8 (batch, 1, 28, 28) -> `logits` float32 (batch, 10), as a file's bytes.

    `properties` (checkpoint digest, architecture, precision) become the model's metadata, beside the classes.
    Raises BadDataError if the result is not a model that Atelier serves.
    """
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise BadDataError("BAD_MODEL", "torch made no ONNX model of the program", "run again with --debug")
    model = exported.model_proto
    _strip_provenance(model)
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes), **properties})
    check_onnx(model)
    return model.SerializeToString(deterministic=True)


def _strip_provenance(model: ModelProto) -> None:
    """Removes what speaks of the machine that exported: source paths, stack traces, printed graphs."""
    graph = model.graph
    described: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in described:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def opset_of(precision: str) -> int:
    """Returns the version of ONNX's operators that a model of this precision is written in."""
    return BF16_OPSET if precision == "bf16" else OPSET


def check_onnx(model: ModelProto, opset: int = OPSET) -> None:
    """Refuses a model that is not valid ONNX, or not one that Atelier makes. Raises BadDataError."""
    graph = model.graph
    size = model.ByteSize()
    foreign = sorted({node.op_type for node in graph.node if node.domain or node.op_type not in ALLOWED_OPS})
    first = [node.op_type for node in graph.node if "images" in node.input]
    faults = [
        (size > MAX_BYTES, f"it has {size} bytes, the limit is {MAX_BYTES}"),
        (bool(foreign), f"it has the operators {', '.join(foreign)}, which no LeNet needs"),
        (bool(model.functions or graph.sparse_initializer), "it has functions or sparse weights"),
        (_has_external_data(graph), "its weights are in other files"),
        ([(found.domain, found.version) for found in model.opset_import] != [("", opset)], f"its opset is not {opset}"),
        (_signature(graph.input) != [("images", TensorProto.UINT8, ("batch", 1, 28, 28))], "its input is not images"),
        (_signature(graph.output) != [("logits", TensorProto.FLOAT, ("batch", 10))], "its output is not logits"),
        (first != ["Cast"], f"images go into {first}, not into one Cast, which is what TensorRT needs"),
    ]
    for found, what in faults:
        if found:
            raise BadDataError("BAD_MODEL", f"the ONNX model is refused: {what}", "make export writes a new version")
    try:
        onnx.checker.check_model(model, full_check=True)  # the full check infers every shape
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        what = f"the ONNX model is refused by its checker: {reason}"
        raise BadDataError("BAD_MODEL", what, "make export writes a new version") from error


def _signature(values: Any) -> list[tuple[str, int, tuple[int | str, ...]]]:
    """Describes inputs or outputs as (name, element type, shape); a free dimension is its name."""
    return [(value.name, value.type.tensor_type.elem_type, _shape(value)) for value in values]


def _shape(value: ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _has_external_data(graph: GraphProto) -> bool:
    constants = [attribute.t for node in graph.node for attribute in node.attribute]
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in [*graph.initializer, *constants])
