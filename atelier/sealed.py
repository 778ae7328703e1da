"""Writes and reads JSON files whose last field is the digest of all the others' bytes: no changed bit goes unnoticed.

A digest shows damage and edits by hand, not forgery: whoever can write the file can write its digest.
"""

import dataclasses
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_BLANK = b"0" * 64  # in the digest's place while it is computed
_END = b'"\n}\n'
_SEAL = re.compile(rb'"digest": "([0-9a-f]{64})"\n}\n\Z')


def sealed(document: Mapping[str, Any]) -> bytes:
    """Returns the file for `document`; dataclasses in it become objects. Raises ValueError for NaN and infinities."""
    fields = {**document, "digest": _BLANK.decode()}
    text = (json.dumps(fields, indent=2, default=vars, allow_nan=False) + "\n").encode()
    start = len(text) - len(_BLANK + _END)
    return text[:start] + hashlib.sha256(text).hexdigest().encode() + _END


def is_sealed(data: bytes) -> bool:
    """Returns whether a file ends with a digest, right or wrong."""
    return _SEAL.search(data[-len(b'"digest": "' + _BLANK + _END) :]) is not None


def unsealed(data: bytes) -> dict[str, Any]:
    """Returns the document of a file, without its digest. Raises ValueError if any of its bytes was changed."""
    if not is_sealed(data):
        raise ValueError("it does not end with its digest")
    start = len(data) - len(_BLANK + _END)
    said = data[start : -len(_END)].decode()
    found = hashlib.sha256(data[:start] + _BLANK + _END).hexdigest()
    if found != said:
        raise ValueError(f"its content has the digest {found[:12]}…, and it says {said[:12]}…: it was changed")
    document = parsed(data)
    document.pop("digest")
    return document


def parsed(data: bytes) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError, also for nesting without end."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def record_from(kind: type[Record], document: object) -> Record:
    """Makes a dataclass of what JSON has made of one: every field there, of its type, and no other.

    It knows str, int, bool, finite float, Literal, `| None`, tuples of any length, dicts by str, and dataclasses.
    Raises ValueError naming the field, and whatever the dataclass itself raises.
    """
    return typing.cast(Record, _value(kind, document, kind.__name__))


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _value(arguments[1], each, f"{where}.{name}") for name, each in value.items()}
    if origin is types.UnionType:
        return None if value is None else _value(arguments[0], value, where)
    if origin is typing.Literal:
        is_right = value in arguments
    elif kind is float:
        is_right = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        is_right = type(value) is kind
    if not is_right:
        raise ValueError(f"{where} is {str(value)[:40]!r}, which is no {getattr(kind, '__name__', kind)}")
    return value


def _record(kind: Any, document: dict[str, Any], where: str) -> Any:
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    unknown = document.keys() - hints.keys()
    if unknown:
        raise ValueError(f"{where} has the unknown fields {', '.join(sorted(unknown))}")
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    needed = {field.name for field in fields if (field.default, field.default_factory) == optional}
    if needed - document.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(needed - document.keys()))}")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in document.items()})
