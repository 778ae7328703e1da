"""Checks an ONNX model before any runtime sees it: it can be nothing but one of our exports with other numbers in it.

A manifest's digests do not help if the manifest is the attacker's as well. So a server allows the operators that the
exporter writes, with the attributes that it writes, and computes the shape of every value: no loop, no inner graph, no
custom operator, no file beside the model; and no value, number of multiplications or weight that is out of bounds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, NUM_CLASSES
from atelier.errors import BadDataError
from serving.backends.onnx_file import read_model, weight_from

OPSETS = (20, 22)  # bfloat16 needs the second
MAX_NODES = 256  # the largest export, in int8, has 61
MAX_VALUES = 1 << 20  # computed for an image, between all layers together; the largest export has 0.15 million
MAX_MULTIPLICATIONS = 1 << 27  # for an image; the largest export has 6.1 million
UINT8, FLOAT = 2, 1  # TensorProto.DataType
FLOAT_KIND, INT, TEXT, INTS = 1, 2, 3, 7  # AttributeProto.AttributeType
FIELDS = {FLOAT_KIND: "f", INT: "i", TEXT: "s", INTS: "ints"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """Describes what flows between nodes; `array` is there for weights."""

    shape: tuple[int, ...]
    array: NDArray[Any] | None = None


Shaped = tuple[tuple[int, ...], int]  # a result's shape, and the multiplications for it
ShapeOf = Callable[[Sequence[Value], Mapping[str, Any]], Shaped]


def _same(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shaped:
    return inputs[0].shape, 0


def _broadcast(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shaped:
    shape = np.broadcast_shapes(*(value.shape for value in inputs))
    return shape, math.prod(shape)


def _conv(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shaped:
    weight, group = inputs[1].shape, attributes["group"]
    if len(weight) != 4 or list(weight[2:]) != attributes["kernel_shape"]:
        raise ValueError(f"its Conv has weights of shape {weight} and kernel_shape {attributes['kernel_shape']}")
    batch, channels, *size = _slide(inputs[0].shape, attributes)
    if group < 1 or channels != weight[1] * group or weight[0] % group:
        raise ValueError(f"its Conv has {channels} channels in {group} groups, and weights of shape {weight}")
    shape = (batch, weight[0], *size)
    return shape, math.prod(shape) * math.prod(weight[1:])


def _pool(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shaped:
    shape = _slide(inputs[0].shape, attributes)
    return shape, math.prod(shape) * math.prod(attributes["kernel_shape"])


def _slide(shape: tuple[int, ...], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns (batch, channels, height, width) after a window has slid over the last two."""
    kernel, strides, pads = (attributes[name] for name in ("kernel_shape", "strides", "pads"))
    if len(shape) != 4 or (len(kernel), len(strides), len(pads)) != (2, 2, 4):
        raise ValueError(f"it slides a window {kernel} in steps {strides} with borders {pads} over {shape}")
    padded = [shape[axis + 2] + pads[axis] + pads[axis + 2] for axis in (0, 1)]
    if min(*kernel, *strides) < 1 or min(pads) < 0 or any(k > size for k, size in zip(kernel, padded, strict=True)):
        raise ValueError(f"it slides a window {kernel} in steps {strides} with borders {pads} over {shape}")
    return *shape[:2], *((padded[axis] - kernel[axis]) // strides[axis] + 1 for axis in (0, 1))


def _pad(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shaped:
    shape, pads = inputs[0].shape, _numbers(inputs[1])
    if len(pads) != 2 * len(shape) or min(pads) < 0:
        raise ValueError(f"its Pad puts {pads} around {shape}")
    return tuple(size + pads[axis] + pads[axis + len(shape)] for axis, size in enumerate(shape)), 0


def _reshape(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shaped:
    sizes, num_values = _numbers(inputs[1]), math.prod(inputs[0].shape)
    known = math.prod(size for size in sizes if size != -1)
    if min(sizes, default=0) < -1 or 0 in sizes or sizes.count(-1) > 1 or known > num_values:
        raise ValueError(f"its Reshape makes {sizes} of {inputs[0].shape}")
    shape = tuple(num_values // known if size == -1 else size for size in sizes)
    if math.prod(shape) != num_values:
        raise ValueError(f"its Reshape makes {sizes} of {inputs[0].shape}")
    return shape, 0


def _gemm(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shaped:
    left, right = inputs[0].shape, inputs[1].shape  # (N, K), (M, K)
    if (len(left), len(right)) != (2, 2) or left[1] != right[1]:
        raise ValueError(f"its Gemm multiplies {left} with {right}")
    return (left[0], right[0]), left[0] * math.prod(right)


def _numbers(value: Value) -> list[int]:
    """Returns the whole numbers of a weight that says a shape; what images decide is never one."""
    if value.array is None or value.array.dtype != np.int64 or value.array.ndim != 1 or len(value.array) > 8:
        raise ValueError("it computes a shape")
    return [int(number) for number in value.array]


WINDOW = {"auto_pad": TEXT, "kernel_shape": INTS, "pads": INTS, "strides": INTS}
# What the exporter writes, in all architectures and precisions: numbers of inputs, attributes, and the shape it makes.
OPERATORS: dict[str, tuple[tuple[int, ...], dict[str, int], ShapeOf]] = {
    "Add": ((2,), {}, _broadcast),
    "AveragePool": ((1,), WINDOW | {"ceil_mode": INT, "count_include_pad": INT}, _pool),
    "Cast": ((1,), {"to": INT}, _same),
    "Conv": ((2, 3), WINDOW | {"dilations": INTS, "group": INT}, _conv),
    "DequantizeLinear": ((3,), {"axis": INT}, _same),
    "Div": ((2,), {}, _broadcast),
    "Gelu": ((1,), {"approximate": TEXT}, _same),
    "Gemm": ((2, 3), {"alpha": FLOAT_KIND, "beta": FLOAT_KIND, "transA": INT, "transB": INT}, _gemm),
    "MaxPool": ((1,), WINDOW | {"ceil_mode": INT, "dilations": INTS, "storage_order": INT}, _pool),
    "Mul": ((2,), {}, _broadcast),
    "Pad": ((2, 3), {"mode": TEXT}, _pad),
    "QuantizeLinear": ((3,), {"axis": INT}, _same),
    "Relu": ((1,), {}, _same),
    "Reshape": ((2,), {"allowzero": INT}, _reshape),
    "Sigmoid": ((1,), {}, _same),
    "Tanh": ((1,), {}, _same),
}
# The only values of these that the exporter writes, and so all that the shapes above need to know.
FIXED = {"auto_pad": "NOTSET", "ceil_mode": 0, "dilations": [1, 1], "storage_order": 0, "transA": 0, "transB": 1}
OPTIONAL = {"axis"}


def check_onnx(model: bytes, opset: int, max_batch_size: int) -> None:
    """Raises BadDataError BAD_MODEL for anything but what the exporter writes, and NON_FINITE for weights that are not.

    `opset` and `max_batch_size` are the manifest's. It takes about 2 ms, and at most 0.2 s for the most hostile file.
    """
    again = "make export writes a new version"
    try:
        found = read_model(model)
        if found["opset_import"] != [{"domain": "", "version": opset}] or opset not in OPSETS:
            raise ValueError(f"its opset is not {opset}, or that is none of {OPSETS}")
        graph = found.get("graph", {"node": [], "initializer": [], "input": [], "output": []})
        _check_signature(graph)
        weights = dict(map(weight_from, graph["initializer"]))
        if len(weights) < len(graph["initializer"]) or "images" in weights:
            raise ValueError("it has two weights of one name, or one that is called as its input")
        for batch_size in sorted({1, max_batch_size}):  # what grows faster than the batch shows in one of them
            values = {name: Value(shape=array.shape, array=array) for name, array in weights.items()}
            _check_graph(graph["node"], values, batch_size)
    except ValueError as error:
        raise BadDataError("BAD_MODEL", f"the ONNX model will not be served: {error}", again) from None
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise BadDataError("NON_FINITE", f"the ONNX model will not be served: {name} holds NaN or infinity", again)


def _check_signature(graph: Mapping[str, Any]) -> None:
    contract = {"input": ("images", UINT8, IMAGE_SHAPE), "output": ("logits", FLOAT, (NUM_CLASSES,))}
    for side, wanted in contract.items():
        signature = []
        for value in graph[side]:
            tensor = value.get("type", {}).get("tensor_type", {})
            batch, *sizes = tensor.get("shape", {}).get("dim") or [{}]
            if not batch.get("param") or "value" in batch:
                raise ValueError(f"its {side} has no free batch")
            signature.append((value.get("name"), tensor.get("elem_type"), tuple(size.get("value") for size in sizes)))
        if signature != [wanted]:
            raise ValueError(f"its {side} is {signature}, not {[wanted]} behind a free batch")


def _check_graph(nodes: Sequence[Mapping[str, Any]], values: dict[str, Value], batch_size: int) -> None:
    """Goes through the nodes, from values that are known to new ones."""
    if len(nodes) > MAX_NODES:
        raise ValueError(f"it has {len(nodes)} nodes, the limit is {MAX_NODES}")
    foreign = sorted({node.get("op_type", "") for node in nodes if node.get("op_type") not in OPERATORS})
    if foreign:
        raise ValueError(f"it has the operators {', '.join(foreign)[:200]}, which no export has")
    values["images"] = Value(shape=(batch_size, *IMAGE_SHAPE))
    num_values = num_multiplications = 0
    for node in nodes:
        shape, cost = _result_of(node, values)
        num_values, num_multiplications = num_values + math.prod(shape), num_multiplications + cost
        if num_values > MAX_VALUES * batch_size or num_multiplications > MAX_MULTIPLICATIONS * batch_size:
            what = f"for {batch_size} images it computes {num_values} values with {num_multiplications} multiplications"
            raise ValueError(f"{what}; the limits for one are {MAX_VALUES} and {MAX_MULTIPLICATIONS}")
        values[node["output"][0]] = Value(shape=shape)
    found = values.get("logits", Value(shape=())).shape
    if found != (batch_size, NUM_CLASSES):
        raise ValueError(f"its logits for {batch_size} images have the shape {found}")


def _result_of(node: Mapping[str, Any], values: Mapping[str, Value]) -> Shaped:
    operator, names = node["op_type"], node["input"]
    nums_inputs, known, shape_of = OPERATORS[operator]
    if node.get("domain", "") != "":
        raise ValueError(f"it has {operator} of the domain {node['domain']}")
    if len(names) not in nums_inputs or not {*names} <= values.keys():
        raise ValueError(f"its {operator} has the inputs {names}")
    if len(node["output"]) != 1 or node["output"][0] in ("", *values):
        raise ValueError(f"its {operator} has the outputs {node['output']}")
    attributes: dict[str, Any] = {}
    for attribute in node["attribute"]:
        name, kind = attribute.get("name", ""), attribute.get("type")
        value = attribute.get(FIELDS.get(kind, ""))
        others = [field for field in FIELDS.values() if attribute.get(field) and field != FIELDS.get(kind)]
        if name in attributes or known.get(name) != kind or value is None or others:
            raise ValueError(f"its {operator} has the attribute {name!r} of type {kind}, or has it twice")
        if FIXED.get(name, value) != value:
            raise ValueError(f"its {operator} has {name} {value}, which no export has")
        attributes[name] = value
    if missing := known.keys() - attributes.keys() - OPTIONAL:
        raise ValueError(f"its {operator} lacks {', '.join(sorted(missing))}")
    return shape_of([values[name] for name in names], attributes)
