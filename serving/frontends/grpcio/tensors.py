"""Checks the tensors of an inference request, and writes those of its answer.

The words are those of native/src/open_inference/, where they are checked for HTTP too.
"""

import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images, Logits
from atelier.wire import open_inference_pb2 as oip
from serving.errors import InvalidRequestError
from serving.pictures.kinds import images_from_bytes

Input = oip.ModelInferRequest.InferInputTensor
CheckCount = Callable[[int], None]  # raises for too many

NOT_AS_MANY = "send as many values as the shape says, raw or typed, not both"
LENGTHS = "send each behind its length, four bytes, the least first"


def images_from(tensor: Input, raw: bytes | None, check_count: CheckCount) -> Images:
    """Reads the input `images`. Raises InvalidRequestError."""
    _check_datatype(tensor, "UINT8")
    if tuple(tensor.shape[1:]) != IMAGE_SHAPE:
        raise _bad_shape(tensor, "[N, 1, 28, 28]")
    num_images = _checked_count(tensor, check_count)
    data = raw
    if data is None:
        if tensor.contents.bytes_contents or not tensor.contents.uint_contents:
            raise _bad_data(tensor, "no numbers")
        data = bytes(tensor.contents.uint_contents)
    if len(data) != num_images * IMAGE_BYTES:
        raise _bad_data(tensor, f"{len(data)} values")
    return images_from_bytes(data)


def pictures_from(tensor: Input, raw: bytes | None, check_count: CheckCount) -> list[bytes]:
    """Reads the input `pictures`. Raises InvalidRequestError."""
    _check_datatype(tensor, "BYTES")
    if tuple(tensor.shape[1:]) not in ((), (1,)):
        raise _bad_shape(tensor, "[N]")
    num_pictures = _checked_count(tensor, check_count)
    pictures = list(tensor.contents.bytes_contents) if raw is None else _elements(tensor, raw)
    if not pictures:
        raise _bad_data(tensor, "no elements of BYTES")
    if len(pictures) != num_pictures:
        raise _bad_data(tensor, f"{len(pictures)} elements")
    return pictures


def check_number(inputs: Sequence[Input], raw: Sequence[bytes]) -> None:
    """Raises InvalidRequestError unless there are no raw contents, or one for each input."""
    if raw and len(raw) != len(inputs):
        what = f"there are {len(raw)} raw contents for {len(inputs)} inputs"
        raise InvalidRequestError("BAD_INPUTS", what, "send one for each input")


def check_contents(inputs: Sequence[Input], raw: Sequence[bytes]) -> None:
    """Raises InvalidRequestError unless each input has its contents once, and no number is over 255."""
    for tensor in inputs if raw else ():
        if tensor.HasField("contents"):
            raise InvalidRequestError("BAD_DATA", "an input has both raw and typed contents", "send one of them")
    for tensor in inputs:
        if not tensor.contents.bytes_contents and max(tensor.contents.uint_contents, default=0) > 255:
            raise InvalidRequestError("BAD_DATA", "a value is over 255", "UINT8 is 0 to 255")


def number_of(parameters: Mapping[str, oip.InferParameter], name: str) -> int:
    """Reads a parameter that is a number, 0 if it is not there. Raises InvalidRequestError."""
    kind = parameters[name].WhichOneof("parameter_choice") if name in parameters else None
    if kind is None:
        return 0
    number = getattr(parameters[name], kind) if kind in ("int64_param", "uint64_param") else -1
    if number < 0:
        raise _bad_parameter(name, "a number, 0 or more")
    return int(number)


def flag_of(parameters: Mapping[str, oip.InferParameter], name: str) -> bool:
    """Reads a parameter that is true or false. Raises InvalidRequestError."""
    kind = parameters[name].WhichOneof("parameter_choice") if name in parameters else "bool_param"
    if kind not in (None, "bool_param"):
        raise _bad_parameter(name, "true or false")
    return name in parameters and parameters[name].bool_param


def classes_of(values: Logits, count: int, classes: Sequence[str]) -> list[bytes]:
    """Writes the best classes of each row as Triton's classification extension does: `value:label:name`."""
    best = []
    for row in values.tolist():
        order = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:count]
        best += [f"{row[label]:.6f}:{label}:{classes[label]}".encode() for label in order]
    return best


def raw_elements(elements: Sequence[bytes]) -> bytes:
    """Puts elements of BYTES end to end, each behind its length."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def as_raw(values: Logits) -> bytes:
    """Returns float32 in little-endian."""
    return np.ascontiguousarray(values, "<f4").tobytes()


def _elements(tensor: Input, raw: bytes) -> list[bytes]:
    elements, rest = [], memoryview(raw)
    for _ in range(tensor.shape[0]):
        length = int.from_bytes(rest[:4], "little") if len(rest) >= 4 else len(raw)
        if 4 + length > len(rest):
            raise _bad_elements(tensor)
        elements.append(bytes(rest[4 : 4 + length]))
        rest = rest[4 + length :]
    if rest:
        raise _bad_elements(tensor)
    return elements


def _checked_count(tensor: Input, check_count: CheckCount) -> int:
    count = tensor.shape[0] if tensor.shape else 0
    if count < 1:
        raise _bad_shape(tensor, "a first dimension of 1 or more")
    check_count(count)
    return count


def _check_datatype(tensor: Input, expected: str) -> None:
    if tensor.datatype != expected:
        what = f"input {tensor.name} has the datatype {tensor.datatype[:64]!r}"
        raise InvalidRequestError("BAD_DATATYPE", what, f"send {expected}")


def _bad_shape(tensor: Input, expected: str) -> InvalidRequestError:
    what = f"input {tensor.name} has the shape {_shown(tensor)}"
    return InvalidRequestError("BAD_SHAPE", what, f"send {expected}")


def _bad_data(tensor: Input, found: str) -> InvalidRequestError:
    what = f"input {tensor.name} of shape {_shown(tensor)} has {found}"
    return InvalidRequestError("BAD_DATA", what, NOT_AS_MANY)


def _bad_elements(tensor: Input) -> InvalidRequestError:
    what = f"the bytes of input {tensor.name} are no {_shown(tensor)} elements"
    return InvalidRequestError("BAD_DATA", what, LENGTHS)


def _bad_parameter(name: str, expected: str) -> InvalidRequestError:
    what = f"the parameter {name[:64]!r} is not what it must be"
    return InvalidRequestError("BAD_PARAMETER", what, f"send {expected}")


def _shown(tensor: Input) -> str:
    """Shows the first dimensions: who sends thousands knows them."""
    return f"{list(tensor.shape[:8])}{'…' if len(tensor.shape) > 8 else ''}"
