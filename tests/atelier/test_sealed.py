"""A sealed file is read only as it was written, and a record only with the types it was declared with."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from atelier.sealed import is_sealed, parsed, record_from, sealed, unsealed


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str


@dataclass(frozen=True, kw_only=True)
class Record:
    text: str = ""
    number: int = 0
    ratio: float = 0.0
    flag: bool = False
    maybe: float | None = None
    level: Literal["low", "high"] = "low"
    rows: tuple[tuple[float, ...], ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    part: Part = Part(name="")
    parts: tuple[Part, ...] = ()


FULL = Record(text="a", maybe=1.5, rows=((1.0, 2e-9),), counts={"a": 1}, part=Part(name="b"), parts=(Part(name="c"),))


def test_what_is_sealed_comes_back() -> None:
    assert record_from(Record, unsealed(sealed(vars(FULL)))) == FULL
    assert record_from(Record, {}) == Record(part=Part(name=""))


def test_digest_is_of_the_file_with_zeros_in_its_place() -> None:
    data = sealed({"a": 1})
    found = re.search(rb"[0-9a-f]{64}", data)
    assert found is not None
    assert hashlib.sha256(data.replace(found[0], b"0" * 64)).hexdigest().encode() == found[0]


@pytest.mark.fault("E5")
def test_every_bit_counts_and_every_byte() -> None:
    data = sealed({"a": 1.0, "b": "é", "c": [1e-05]})
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match="digest"):
            unsealed(bytes(flipped))
    for changed in [data[:length] for length in range(len(data))] + [data + b"\n", b" " + data, data[:-1]]:
        with pytest.raises(ValueError, match="digest"):
            unsealed(changed)


def test_json_without_a_seal_is_not_sealed() -> None:
    assert not is_sealed(b'{"a": 1}\n')
    with pytest.raises(ValueError, match="does not end with its digest"):
        unsealed(b'{"a": 1}\n')


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000])
def test_what_is_no_json_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(data)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"text": 1}, "Record.text is '1', which is no str"),
        ({"number": 1.0}, "Record.number"),
        ({"number": True}, "Record.number"),
        ({"flag": 1}, "Record.flag"),
        ({"ratio": "1"}, "Record.ratio"),
        ({"ratio": float("nan")}, "Record.ratio"),
        ({"ratio": float("-inf")}, "Record.ratio"),
        ({"ratio": 10**400}, "Record.ratio"),
        ({"ratio": True}, "Record.ratio"),
        ({"maybe": "x"}, "Record.maybe"),
        ({"level": "middle"}, "Record.level"),
        ({"level": []}, "Record.level"),
        ({"rows": [[1.0], 2.0]}, r"Record.rows\[1\]"),
        ({"rows": "ab"}, "Record.rows"),
        ({"counts": {"a": "b"}}, "Record.counts.a"),
        ({"counts": []}, "Record.counts"),
        ({"part": None}, "Record.part"),
        ({"part": {}}, "Record.part lacks name"),
        ({"parts": [{"name": "a"}, {"name": 1}]}, r"Record.parts\[1\].name"),
        ({"surprise": 1}, "Record has the unknown fields surprise"),
        ([], "Record is"),
    ],
)
def test_other_types_missing_and_unknown_fields_are_refused(document: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        record_from(Record, document)
