"""Old clients meet a new server: what a release has on the wire is never changed, only added to.

At a release, `python -m tests.test_wire` writes the fields of today to tests/released_fields.txt.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from atelier.wire import classifier_pb2, open_inference_pb2

RELEASED = Path(__file__).with_name("released_fields.txt")
FILES: tuple[FileDescriptor, ...] = (classifier_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR)
LINE = re.compile(r"(?P<place>\S+) = (?P<number>\d+): (?P<kind>.+)")


def messages_in(parent: FileDescriptor | Descriptor) -> Iterator[Descriptor]:
    nested = parent.message_types_by_name if isinstance(parent, FileDescriptor) else parent.nested_types_by_name
    for message in nested.values():
        yield message
        yield from messages_in(message)


def kind_of(field: FieldDescriptor) -> str:
    """What its bytes mean: `repeated message inference.Tensor`, `uint32`."""
    types = {value: name for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    words = ["repeated"] if field.is_repeated else []
    words.append(types[field.type].removeprefix("TYPE_").lower())
    if field.message_type is not None:
        words.append(field.message_type.full_name)
    if field.containing_oneof is not None and not field.containing_oneof.name.startswith("_"):
        words.append(f"of {field.containing_oneof.name}")
    return " ".join(words)


def fields_of_today() -> list[str]:
    """A line for each field of each message, and for each method of each service."""
    lines = []
    for file in FILES:
        for message in messages_in(file):
            lines += [f"{field.full_name} = {field.number}: {kind_of(field)}" for field in message.fields]
        for service in file.services_by_name.values():
            for method in service.methods:
                streams = f"{'stream ' * method.client_streaming}{method.input_type.full_name}"
                answers = f"{'stream ' * method.server_streaming}{method.output_type.full_name}"
                lines.append(f"/{service.full_name}/{method.name}: {streams} -> {answers}")
    return sorted(lines)


def broken(released: list[str], today: list[str]) -> list[str]:
    """The released lines that old clients would miss, or find with another meaning."""
    return sorted(set(released) - set(today))


def released_fields() -> list[str]:
    return RELEASED.read_text().splitlines()


@pytest.mark.fault("O15")
def test_what_was_released_is_on_the_wire_as_it_was() -> None:
    assert len(released_fields()) > 60
    assert broken(released_fields(), fields_of_today()) == []


@pytest.mark.fault("O15")
def test_field_that_gets_another_number_type_or_name_is_found_and_a_new_one_is_not() -> None:
    released, today = released_fields(), fields_of_today()
    line = next(line for line in released if LINE.fullmatch(line))
    for changed in (line.replace(" = ", " = 9"), line + "s", line.replace(".", ".x", 1)):
        assert broken(released, [changed if each == line else each for each in today]) == [line]
    assert broken(released, [*today, "atelier.v1.ClassifyRequest.novelty = 99: bool"]) == []


if __name__ == "__main__":
    RELEASED.write_text("\n".join(fields_of_today()) + "\n")
