"""Makes mutants of bytes, pictures and protobuf messages. All chance is the `Random` that is handed in.

A protobuf mutant is made on three levels: a field of the message is set by its descriptor, the fields on the wire are
reordered, repeated or relabelled, and bytes are changed.
"""

import io
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import Image

NUMBERS = [0, 1, 2, 9, 10, 11, 27, 28, 127, 128, 255, 256, 783, 784, 785, 65_535, 65_536]
NUMBERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -28, -(2**31), -(2**63)]
FLOATS = [0.0, -0.0, 1.0, 255.0, 1e-45, 3.4e38, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "lenet5", "1", "2", "-1", "images", "pictures", "logits", "probabilities", "UINT8", "BYTES", "FP32"]
TEXTS += ["timeout", "invert", "classification", "../../etc/passwd", "nul\0", "line\nfeed \x1b[31m", "é\U0001f45f"]
TEXTS += ["x" * 300, "99999999999999999999", "grpc.health.v1.Health", "atelier.v1.Classifier"]
PNG = b"\x89PNG\r\n\x1a\n"
VARINTS = [b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 10 + b"\x01", b"\x80\x00"]

Mutate = Callable[[Random, bytearray], None]


# --- Bytes -----------------------------------------------------------------------------------------------------------


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _insert(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.choice((1, 2, 10)))


def _insert_varint(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(VARINTS)


def _remove(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    del data[at : at + random.choice((1, 2, 10, 100))]


def _repeat(random: Random, data: bytearray) -> None:
    start, at = random.randrange(len(data) + 1), random.randrange(len(data) + 1)
    data[at:at] = data[start : start + random.choice((4, 50))]


def _cut(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data) + 1) :]


BYTE_MUTATIONS: tuple[Mutate, ...] = (_flip, _flip, _set, _set, _insert, _insert_varint, _remove, _repeat, _cut)


def mutated_bytes(random: Random, data: bytes) -> bytes:
    """Returns the bytes with one to eight changes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        random.choice(BYTE_MUTATIONS)(random, changed)
    return bytes(changed)


# --- Pictures --------------------------------------------------------------------------------------------------------


def _picture(kind: str, size: tuple[int, int] = (9, 7), mode: str = "L", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77 if mode in "LP1I;16" else None or 0).save(file, kind, **options)
    return file.getvalue()


PICTURES = [
    _picture("PNG"),
    _picture("PNG", (40, 30), "RGBA"),
    _picture("PNG", mode="P"),
    _picture("PNG", mode="1"),
    _picture("PNG", mode="I;16"),
    _picture("JPEG", (30, 20), "RGB"),
    _picture("JPEG", (50, 40), "RGB", progressive=True),
    _picture("JPEG", (16, 16), "CMYK"),
    _picture("WEBP", lossless=True),
    _picture("WEBP", (30, 30), "RGBA"),
    *(_picture(kind) for kind in ("GIF", "BMP", "TIFF")),
]


def mutated_picture(random: Random) -> bytes:
    """Returns a damaged picture. Of most PNGs the checksums are right again, so that what is inside is looked at."""
    picture = mutated_bytes(random, random.choice(PICTURES))
    return _with_checksums(picture) if picture.startswith(PNG) and random.random() < 0.7 else picture


def _with_checksums(png: bytes) -> bytes:
    mended, at = bytearray(PNG), len(PNG)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if at + 12 + length > len(png):
            break
        chunk = png[at + 4 : at + 8 + length]
        mended += png[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        at += 12 + length
    return bytes(mended + png[at:])


# --- Messages, by their descriptors ----------------------------------------------------------------------------------


def mutated_message(random: Random, message: Message) -> bytes:
    """Returns the wire format of a mutant of the message, which stays as it is."""
    mutant = type(message)()
    mutant.CopyFrom(message)
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        _change_field(random, mutant)
    wire = mutant.SerializeToString()
    if random.random() < 0.5:
        wire = mutated_wire(random, wire)
    is_changed = wire != message.SerializeToString()
    return wire if is_changed and random.random() < 0.8 else mutated_bytes(random, wire)


def _change_field(random: Random, message: Any) -> None:
    """Sets, clears or goes into one field of the message."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = random.choice(fields)
    if random.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        key = random.choice(TEXTS)
        _change_field(random, getattr(message, field.name)[key]) if value.message_type else None
    elif field.is_repeated:
        _change_list(random, getattr(message, field.name), field)
    elif field.message_type:
        _change_field(random, getattr(message, field.name))
    else:
        setattr(message, field.name, value_of(random, field))


def _change_list(random: Random, values: Any, field: FieldDescriptor) -> None:
    choice = random.random()
    if values and choice < 0.3:
        del values[random.randrange(len(values))]
    elif field.message_type:
        _change_field(random, random.choice(values) if values and choice < 0.8 else values.add())
    elif values and choice < 0.6:
        values[random.randrange(len(values))] = value_of(random, field)
    else:
        values.extend([value_of(random, field)] * random.choice((1, 1, 2, 30)))


def value_of(random: Random, field: FieldDescriptor) -> Any:
    """Returns a value of the field's type: one at an edge, or one that means something here."""
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(random)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return random.choice(TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.7
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    if field.enum_type:
        return random.choice(field.enum_type.values).number
    unsigned = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    number, is_signed = random.choice(NUMBERS) % 2**bits, kind not in unsigned
    return number - 2**bits if is_signed and number >= 2 ** (bits - 1) else number


def _bytes(random: Random) -> bytes:
    choice = random.random()
    if choice < 0.35:
        return random.choice(PICTURES)
    if choice < 0.6:
        return mutated_picture(random)
    return bytes([random.randrange(256)]) * random.choice((0, 1, 28, 756, 783, 784, 785, 1568, 3136))


# --- Messages, on the wire -------------------------------------------------------------------------------------------


def mutated_wire(random: Random, wire: bytes) -> bytes:
    """Returns the message with its fields repeated, dropped, reordered, relabelled or of a wrong length."""
    fields = fields_of(wire)
    at = random.randrange(len(fields)) if fields else 0
    choice = random.randrange(8)
    if choice == 0:
        fields[at:at] = fields[at : at + 1] * random.choice((1, 1, 40))
    elif choice == 1:
        del fields[at : at + 1]
    elif choice == 2:
        random.shuffle(fields)
    elif choice == 3:
        fields.insert(at, _unknown(random))
    elif choice == 4:
        depth = random.choice((1, 5, 99, 101, 3000))
        fields.insert(at, b"\x7b" * depth + b"\x7c" * random.choice((depth, depth, 0, 1)))  # groups, in each other
    elif fields and choice == 5:
        fields[at] = varint(random.choice((0, 1, 2, 3, 5, 7, 9, 2**29 - 1)) << 3 | random.randrange(8)) + fields[at][1:]
    elif fields and fields[at][0] & 7 == 2:
        fields[at] = _within(random, fields[at])
    return b"".join(fields)


def _within(random: Random, field: bytes) -> bytes:
    """Goes into a field that has a length, or lets the length be wrong."""
    tag, (length, start) = field[:1], _read_varint(field, 1)
    if random.random() < 0.5:
        inner = mutated_wire(random, field[start:])
        return tag + varint(len(inner)) + inner
    wrong = max(0, length + random.choice((-1, 1, 100, 2**31 - 1, 2**32, 2**63)))
    return tag + random.choice((varint(wrong), varint(length)[:-1] + b"\x80\x00")) + field[start:]


def _unknown(random: Random) -> bytes:
    number, value = random.choice((4, 8, 15, 1000, 2**29 - 1)), random.randbytes(8)
    kind = random.choice((0, 1, 2, 5))
    return varint(number << 3 | kind) + {0: b"\x2a", 1: value, 2: b"\x08" + value, 5: value[:4]}[kind]


def fields_of(wire: bytes) -> list[bytes]:
    """Cuts a message into its fields; what is not one is the last."""
    fields, start = [], 0
    while start < len(wire):
        tag, at = _read_varint(wire, start)
        kind = tag & 7
        if kind == 0:
            _, end = _read_varint(wire, at)
        elif kind == 2:
            length, end = _read_varint(wire, at)
            end += length
        else:
            end = at + {1: 8, 5: 4}.get(kind, len(wire))
        fields.append(wire[start:end])
        start = end
    return fields


def varint(number: int) -> bytes:
    """Returns protobuf's form of a number, 0 or more."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data):
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            break
    return number, at
