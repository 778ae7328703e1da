"""Spoils versions of a model, each in its way: a server must refuse every one of them by its word."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from serving.manifest import ONNX_NAME


def digests(file: bytes) -> dict[str, str]:
    """Returns the manifest's `files` of a version that has this ONNX model alone."""
    return {ONNX_NAME: hashlib.sha256(file).hexdigest()}


def with_last_layer(file: bytes, change: Callable[[Any], Any]) -> bytes:
    """Returns the ONNX model with other weights and biases in the layer that computes the logits."""
    model = onnx.load_from_string(file)
    names = next(node.input[1:] for node in model.graph.node if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return model.SerializeToString()


@dataclass
class Bad:
    """Holds a version while it is made one that must be refused."""

    file: bytes | None
    document: dict[str, Any]  # the manifest's fields
    other_file: bytes  # another model
    random: Random
    rewrite: Callable[[str], str] = lambda text: text  # of the manifest as it is written

    def replace_file(self, file: bytes) -> None:
        """Puts another model there, under its own right digest."""
        self.file, self.document["files"] = file, digests(file)


def _flip_a_bit(bad: Bad) -> None:
    damaged = bytearray(bad.file or b"")
    damaged[bad.random.randrange(len(damaged))] ^= 1 << bad.random.randrange(8)
    bad.file = bytes(damaged)


def _cut_short(bad: Bad) -> None:
    bad.file = (bad.file or b"")[: bad.random.randrange(len(bad.file or b""))]


def _take_file_away(bad: Bad) -> None:
    bad.file = None


def _name_other_digest(bad: Bad) -> None:
    bad.document["files"] = {ONNX_NAME: f"{bad.random.getrandbits(256):064x}"}


def _write_old_format(bad: Bad) -> None:
    bad.rewrite = lambda text: json.dumps(json.loads(text) | {"format": 1})


def _write_half(bad: Bad) -> None:
    bad.rewrite = lambda text: text[: bad.random.randrange(len(text) - 2)]


def _leave_probes_out(bad: Bad) -> None:
    bad.rewrite = lambda text: json.dumps(json.loads(text) | {"probes": {"names": [], "images": "", "logits": []}})


def _name_other_version(bad: Bad) -> None:
    bad.document["version"] += 1


def _leave_unproven(bad: Bad) -> None:
    bad.document["parity_passed"] = False


def _nudge_weights(bad: Bad) -> None:
    factor = 1 + bad.random.choice((-1, 1)) * bad.random.uniform(0.01, 0.1)
    bad.replace_file(with_last_layer(bad.file or b"", lambda tensor: (tensor * factor).astype(tensor.dtype)))


def _loop_without_end(bad: Bad) -> None:
    model = onnx.load_from_string(bad.file or b"")
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=onnx.GraphProto(name="body")))
    bad.replace_file(model.SerializeToString())


def _keep_weights_elsewhere(bad: Bad) -> None:
    model = onnx.load_from_string(bad.file or b"")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../other/weights")
    bad.replace_file(model.SerializeToString())


def _make_4_gb_of_nothing(bad: Bad) -> None:
    model = onnx.load_from_string(bad.file or b"")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 30]), "size"))
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["size"], ["bomb"]))
    bad.replace_file(model.SerializeToString())


def _hold_no_numbers(bad: Bad) -> None:
    bad.replace_file(with_last_layer(bad.file or b"", lambda tensor: np.full_like(tensor, np.nan)))


def _flip_a_bit_of_the_manifest(bad: Bad) -> None:
    def flipped(text: str) -> str:
        position = bad.random.randrange(len(text))
        return text[:position] + chr(ord(text[position]) ^ 1 << bad.random.randrange(7)) + text[position + 1 :]

    bad.rewrite = flipped


def _have_other_classes(bad: Bad) -> None:
    bad.document["classes"] = bad.document["classes"][::-1]


def _have_other_shape(bad: Bad) -> None:
    bad.document["input"] = dataclasses.replace(bad.document["input"], shape=(-1, 1, 32, 32))


# What makes it so, and the word that it is refused with.
BAD_KINDS: dict[str, tuple[Callable[[Bad], None], str]] = {
    "flipped bit": (_flip_a_bit, "HASH_MISMATCH"),
    "cut short": (_cut_short, "HASH_MISMATCH"),
    "missing file": (_take_file_away, "NO_ARTIFACT"),
    "other digest": (_name_other_digest, "HASH_MISMATCH"),
    "old format": (_write_old_format, "OLD_MANIFEST"),
    "half a manifest": (_write_half, "BAD_MANIFEST"),
    "no probes": (_leave_probes_out, "BAD_MANIFEST"),
    "renamed": (_name_other_version, "BAD_MANIFEST"),
    "unproven": (_leave_unproven, "PARITY_FAILED"),
    "other weights": (lambda bad: bad.replace_file(bad.other_file), "PARITY_HERE"),
    "nudged weights": (_nudge_weights, "PARITY_HERE"),
    "no model": (lambda bad: bad.replace_file(bad.random.randbytes(1000)), "BAD_MODEL"),
    "endless loop": (_loop_without_end, "BAD_MODEL"),
    "weights elsewhere": (_keep_weights_elsewhere, "BAD_MODEL"),
    "bomb": (_make_4_gb_of_nothing, "BAD_MODEL"),
    "no numbers": (_hold_no_numbers, "NON_FINITE"),
    "flipped bit in the manifest": (_flip_a_bit_of_the_manifest, "BAD_MANIFEST"),
    "other classes": (_have_other_classes, "OTHER_CONTRACT"),
    "other shape": (_have_other_shape, "OTHER_CONTRACT"),
}
