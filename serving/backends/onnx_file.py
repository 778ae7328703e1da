"""Reads an ONNX file down to its weights, without the `onnx` package, which no server has.

It knows the fields that our exports have, by their numbers in onnx.proto, and refuses all others: external data, inner
graphs, functions, sparse weights. A message is a row of tags (field number and wire type), each with a varint, four
bytes, or a length and so many bytes. Nothing is copied but weights that lie in the file, and reading ends after
MAX_FIELDS: so no file, however hostile, takes long or needs much memory, and none needs a process of its own.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 16 << 20  # LeNet-5 is 0.25 MiB
MAX_FIELDS = 50_000  # the largest export, in int8, has 1,400
MAX_RANK = 8

VARINT, BYTES, FOUR_BYTES = 0, 2, 5  # wire types
INT, TEXT, RAW, FLOAT = "int", "text", "raw", "float"
WIRE_TYPES = {INT: VARINT, FLOAT: FOUR_BYTES}  # all others are BYTES

# Field number -> name, kind (or the fields of a message), and whether it may be there several times.
Schema = Mapping[int, tuple[str, Any, bool]]
PROPERTY: Schema = {1: ("key", TEXT, False), 2: ("value", TEXT, False)}
OPSET: Schema = {1: ("domain", TEXT, False), 2: ("version", INT, False)}
DIMENSION: Schema = {1: ("value", INT, False), 2: ("param", TEXT, False)}
SHAPE: Schema = {1: ("dim", DIMENSION, True)}
TENSOR_TYPE: Schema = {1: ("elem_type", INT, False), 2: ("shape", SHAPE, False)}
TYPE: Schema = {1: ("tensor_type", TENSOR_TYPE, False)}
VALUE: Schema = {1: ("name", TEXT, False), 2: ("type", TYPE, False)}
TENSOR: Schema = {
    1: ("dims", INT, True),
    2: ("data_type", INT, False),
    4: ("float_data", RAW, False),
    5: ("int32_data", RAW, False),
    8: ("name", TEXT, False),
    9: ("raw_data", RAW, False),
    14: ("data_location", INT, False),
}
ATTRIBUTE: Schema = {
    1: ("name", TEXT, False),
    2: ("f", FLOAT, False),
    3: ("i", INT, False),
    4: ("s", TEXT, False),
    8: ("ints", INT, True),
    20: ("type", INT, False),
}
NODE: Schema = {
    1: ("input", TEXT, True),
    2: ("output", TEXT, True),
    3: ("name", TEXT, False),
    4: ("op_type", TEXT, False),
    5: ("attribute", ATTRIBUTE, True),
    7: ("domain", TEXT, False),
}
GRAPH: Schema = {
    1: ("node", NODE, True),
    2: ("name", TEXT, False),
    5: ("initializer", TENSOR, True),
    11: ("input", VALUE, True),
    12: ("output", VALUE, True),
    13: ("value_info", VALUE, True),
}
MODEL: Schema = {
    1: ("ir_version", INT, False),
    2: ("producer_name", TEXT, False),
    3: ("producer_version", TEXT, False),
    7: ("graph", GRAPH, False),
    8: ("opset_import", OPSET, True),
    14: ("metadata_props", PROPERTY, True),
}
NAMES = {id(MODEL): "model", id(GRAPH): "graph", id(NODE): "node", id(TENSOR): "tensor", id(ATTRIBUTE): "attribute"}
# What is forbidden by its number, in words.
FORBIDDEN = {
    (id(MODEL), 25): "functions",
    (id(GRAPH), 15): "sparse weights",
    (id(TENSOR), 13): "weights in other files",
    (id(ATTRIBUTE), 5): "tensors in attributes",
    (id(ATTRIBUTE), 6): "inner graphs",
    (id(ATTRIBUTE), 11): "inner graphs",
}

ELEMENT_TYPES = {1: "<f4", 3: "i1", 7: "<i8", 10: "<f2", 16: "<u2"}  # TensorProto.DataType; 16 is bfloat16
INT8, BFLOAT16 = 3, 16
CONTENTS = {"raw_data": ELEMENT_TYPES.keys(), "float_data": {1}, "int32_data": {INT8}}  # field -> element types in it


def read_model(data: bytes) -> dict[str, Any]:
    """Returns the model as nested dicts, by the names in the tables above. Raises ValueError for any other file."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, the limit is {MAX_BYTES}")
    return _Reader(data).message(0, len(data), MODEL)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._num_left = memoryview(data), MAX_FIELDS

    def message(self, start: int, stop: int, schema: Schema) -> dict[str, Any]:
        """Reads the message between two positions."""
        found: dict[str, Any] = {name: [] for name, _, is_repeated in schema.values() if is_repeated}
        while start < stop:
            self._num_left -= 1
            if self._num_left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            tag, start = self.varint(start, stop)
            name, kind, is_repeated = _field(schema, tag)
            value, start = self._value(kind, start, stop)
            if is_repeated:
                found[name].append(value)
            elif name in found:
                raise ValueError(f"it has {name} twice in one message")
            else:
                found[name] = value
        return found

    def _value(self, kind: Any, start: int, stop: int) -> tuple[Any, int]:
        if kind == INT:
            value, start = self.varint(start, stop)
            return value - (1 << 64) if value >> 63 else value, start
        size, start = (4, start) if kind == FLOAT else self.varint(start, stop)
        end = start + size
        if end > stop:
            raise ValueError("it is cut short")
        content = self._data[start:end]
        if kind == TEXT:
            return str(content, "utf-8"), end
        if kind == FLOAT:
            return struct.unpack("<f", content)[0], end
        return content if kind == RAW else self.message(start, end, kind), end

    def varint(self, start: int, stop: int) -> tuple[int, int]:
        """Decodes 7 bits a byte, the lowest first; the top bit says that more follow. Returns where it ends, too."""
        value = 0
        for index in range(min(10, stop - start)):
            byte = self._data[start + index]
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value & (1 << 64) - 1, start + index + 1
        raise ValueError("it has a number without end")


def _field(schema: Schema, tag: int) -> tuple[str, Any, bool]:
    number, wire_type = tag >> 3, tag & 7
    field = schema.get(number)
    if field is None:
        what = FORBIDDEN.get((id(schema), number), f"field {number} in a {NAMES.get(id(schema), 'description')}")
        raise ValueError(f"it has {what}, which no export has")
    kind = field[1]
    if wire_type != (WIRE_TYPES.get(kind, BYTES) if isinstance(kind, str) else BYTES):
        raise ValueError(f"its field {field[0]} has wire type {wire_type}")
    return field


def weight_from(tensor: Mapping[str, Any]) -> tuple[str, NDArray[Any]]:
    """Returns an initializer's name and its values in their shape, bfloat16 widened to float32.

    Raises ValueError if the values are not in the file, too few or too many.
    """
    name, dims, element_type = tensor.get("name", ""), tuple(tensor["dims"]), tensor.get("data_type")
    if element_type not in ELEMENT_TYPES:
        raise ValueError(f"{name} has the element type {element_type}, which no export has")
    if tensor.get("data_location", 0) != 0:
        raise ValueError(f"{name} has weights in other files, which no export has")
    if len(dims) > MAX_RANK or min(dims, default=0) < 0:
        raise ValueError(f"{name} has the shape {dims}")
    contents = [field for field in ("raw_data", "float_data", "int32_data") if field in tensor]
    if len(contents) != 1 or element_type not in CONTENTS[contents[0]]:
        raise ValueError(f"{name} has its values in {', '.join(contents) or 'no field'}")
    dtype = np.dtype(ELEMENT_TYPES[element_type])
    content = tensor[contents[0]]
    if contents[0] == "int32_data":
        content = _small_numbers_from(content)
    if len(content) != math.prod(dims) * dtype.itemsize:
        raise ValueError(f"{name} has the shape {dims} and {len(content)} bytes of values")
    array = np.frombuffer(content, dtype)
    if element_type == BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return name, array.reshape(dims)


def _small_numbers_from(packed: memoryview) -> bytes:
    """Unpacks numbers of 8 bits, a varint each."""
    reader, start, values = _Reader(bytes(packed)), 0, bytearray()
    while start < len(packed):
        value, start = reader.varint(start, len(packed))
        values.append(value & 255)
        if len(values) > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS} numbers in one field")
    return bytes(values)
