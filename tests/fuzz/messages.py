"""Methods of a server and mutants of their messages, each by its number."""

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2 as health
from grpc_reflection.v1alpha import reflection_pb2 as reflection

from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from tests.fuzz.mutants import PICTURES, mutated_message

TOO_LONG = re.compile(rb"[\x80-\xff]{9}[\x02-\x7f]")  # a varint of more than 64 bits
IMAGE = bytes(range(256)) * 3 + bytes(16)  # 784


@dataclass(frozen=True)
class Method:
    """A method, messages that it answers, and its share of all mutants."""

    path: str
    corpus: Sequence[Message]
    share: float

    def mutant(self, seed: int, number: int) -> bytes:
        """Makes the mutant of this seed and number: the same each time."""
        random = Random(seed << 40 | number)
        return mutated_message(random, random.choice(self.corpus))

    @cached_property
    def honest(self) -> bytes:
        """A message that is as it should be."""
        return self.corpus[-1].SerializeToString()

    @cached_property
    def name(self) -> str:
        """The method's own name."""
        return self.path.rpartition("/")[2]


CLASSIFY = [
    pb.ClassifyRequest(),
    pb.ClassifyRequest(images=IMAGE, top_k=3),
    pb.ClassifyRequest(images=IMAGE * 3, model_name="lenet5", model_version="1"),
    pb.ClassifyRequest(pictures=PICTURES[:2], invert=True),
    pb.ClassifyRequest(pictures=PICTURES[5:9], top_k=10),
    pb.ClassifyRequest(pictures=PICTURES[2:3], prepare=True),
]


def _infer(name: str, datatype: str, shape: Sequence[int], *, raw: bytes = b"", **contents: object) -> Message:
    request = oip.ModelInferRequest(model_name="lenet5", id="7", outputs=[{"name": "logits"}])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw:
        request.raw_input_contents.append(raw)
    else:
        request.inputs[0].contents.CopyFrom(oip.InferTensorContents(**contents))  # type: ignore[arg-type]
    return request


def _elements(pictures: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)


def _with_parameters() -> Message:
    request = oip.ModelInferRequest(model_name="lenet5", inputs=[{"name": "images", "datatype": "UINT8"}])
    request.inputs[0].shape.extend((2, 1, 28, 28))
    request.raw_input_contents.append(IMAGE * 2)
    request.parameters["timeout"].int64_param = 5_000_000
    request.parameters["invert"].bool_param = False
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    return request


INFER = [
    _infer("images", "UINT8", (1, 1, 28, 28), raw=IMAGE),
    _infer("images", "UINT8", (1, 1, 28, 28), uint_contents=list(IMAGE)),
    _infer("pictures", "BYTES", (2,), raw=_elements(PICTURES[:2])),
    _infer("pictures", "BYTES", (2, 1), bytes_contents=PICTURES[4:6]),
    _with_parameters(),
]
_REFLECTION = [
    reflection.ServerReflectionRequest(list_services=""),
    reflection.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.Classify"),
    reflection.ServerReflectionRequest(file_by_filename="atelier/wire/classifier.proto"),
]
METHODS = [
    Method(f"/{SERVICE}/Classify", CLASSIFY, 0.44),
    Method(f"/{OPEN_INFERENCE}/ModelInfer", INFER, 0.4),
    Method(f"/{SERVICE}/GetModel", [pb.GetModelRequest(), pb.GetModelRequest(model_name="lenet5")], 0.04),
    Method(f"/{OPEN_INFERENCE}/ModelMetadata", [oip.ModelMetadataRequest(name="lenet5", version="1")], 0.03),
    Method(f"/{OPEN_INFERENCE}/RepositoryIndex", [oip.RepositoryIndexRequest(ready=True)], 0.03),
    Method("/grpc.health.v1.Health/Check", [health.HealthCheckRequest(service=SERVICE)], 0.03),
    Method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", _REFLECTION, 0.03),
]


def is_lax(wire: bytes, kind: Message) -> bool:
    """Returns whether Google's library takes a known field for unknown, or 64 bits of a longer number.

    To it a field of a wrong type is unknown, and so is an entry of a map with more than key and value. prost, which is
    in the native front end, refuses the one and reads the other.
    """
    message = type(kind)()
    try:
        message.ParseFromString(wire)
    except DecodeError:
        return False
    return bool(TOO_LONG.search(wire)) or _has_mistyped(message)


def _has_mistyped(message: Message) -> bool:
    unknown: Any = UnknownFieldSet(message)
    if any(field.field_number in message.DESCRIPTOR.fields_by_number for field in unknown):
        return True
    return any(_has_mistyped(inner) for field, value in message.ListFields() for inner in _messages_in(field, value))


def _messages_in(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    if field.message_type is None:
        return ()
    if field.message_type.GetOptions().map_entry:
        return value.values() if field.message_type.fields_by_name["value"].message_type else ()
    return value if field.is_repeated else (value,)
