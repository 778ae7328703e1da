"""Appends outputs and inputs to a serialised ONNX model, without the `onnx` package.

Two serialised protobuf messages end to end are the merged message. So a model's bytes followed by those of a
`ModelProto` that has nothing but a few outputs are the same model with more outputs. The numbers are the fields' in
onnx.proto.
"""

from collections.abc import Iterable, Mapping, Sequence

GRAPH = 7  # ModelProto.graph
INPUT, OUTPUT = 11, 12  # GraphProto's
NAME, TYPE = 1, 2  # ValueInfoProto's
TENSOR_TYPE = 1  # TypeProto's
ELEMENT_TYPE, SHAPE = 1, 2  # TypeProto.Tensor's
DIMENSION = 1  # TensorShapeProto's
DIMENSION_VALUE = 1  # TensorShapeProto.Dimension's
FLOAT, FLOAT16 = 1, 10  # TensorProto.DataType's


def with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """Returns the model with these inner values as outputs, behind those that it has."""
    outputs = b"".join(_message(OUTPUT, _message(NAME, name.encode())) for name in names)
    return model + _message(GRAPH, outputs)


def with_inputs(model: bytes, shapes: Mapping[str, Sequence[int]], element_type: int) -> bytes:
    """Returns the model with these weights as inputs, which need not be given: the weights are their defaults."""
    inputs = (_message(INPUT, _value_info(name, shape, element_type)) for name, shape in shapes.items())
    return model + _message(GRAPH, b"".join(inputs))


def _value_info(name: str, shape: Sequence[int], element_type: int) -> bytes:
    sizes = b"".join(_message(DIMENSION, _number(DIMENSION_VALUE, size)) for size in shape)
    tensor = _number(ELEMENT_TYPE, element_type) + _message(SHAPE, sizes)
    return _message(NAME, name.encode()) + _message(TYPE, _message(TENSOR_TYPE, tensor))


def _message(field: int, content: bytes) -> bytes:
    """Encodes a field of a message, of a string or of bytes: tag, length, content."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(number: int) -> bytes:
    """Encodes 7 bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
