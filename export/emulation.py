"""What a GPU computes with an fp16 or bf16 model, on a CPU that has no such arithmetic.

Tensor cores multiply half-precision numbers exactly, add in float32, and round the sum to the half type once it is
stored. So does the emulated model: every operator in float32, and its result cast to the half type and back. ONNX
Runtime's CPU has no bf16 operators at all, and in an fp16 model it leaves out casts, and with them rounding.
"""

import onnx
from onnx import NodeProto, TensorProto, helper

from export.precision import HALF_TYPES
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend


class EmulatedBackend(OnnxRuntimeBackend):
    """A half-precision model whose every operator is rounded as a GPU rounds it; exact, and not to be timed."""

    name = "emulated"

    def __init__(self, half_model: bytes, *, max_batch_size: int) -> None:
        super().__init__(emulated_onnx(half_model), max_batch_size=max_batch_size)


def emulated_onnx(half_model: bytes) -> bytes:
    """The model of `onnx_in("fp16" or "bf16")` for any runtime with float32; values between layers keep their names."""
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
    """The casts at the ends: of the images and of the logits."""
    return node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT


def _rounded(node: NodeProto, half_type: int) -> list[NodeProto]:
    """The operator, and casts of its result to the half type and back."""
    name, exact, half = node.output[0], f"{node.output[0]}_exact", f"{node.output[0]}_rounded"
    if node.op_type == "Cast":  # into the half type: nothing to compute
        return [_cast(node.input[0], half, half_type), _cast(half, name, TensorProto.FLOAT)]
    node.output[0] = exact
    return [node, _cast(exact, half, half_type), _cast(half, name, TensorProto.FLOAT)]


def _cast(value: str, result: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [value], [result], to=element_type)
