"""Spoils versions of a model, each in its way: a server must refuse every one of them by its word."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from serving.manifest import ONNX_NAME, Manifest


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


def shifted_model(file: bytes) -> bytes:
    """Returns the ONNX model with its classes moved on by one."""
    return with_last_layer(file, lambda tensor: np.roll(tensor, 1, axis=0))


@dataclass(frozen=True, kw_only=True)
class Spoil:
    """One way to make a version bad, and the word that it is refused with; what is not given stays as it is."""

    word: str
    file: Callable[[bytes, Random], bytes | None] = lambda file, _random: file  # as it lies there
    model: Callable[[bytes, Random], bytes] = lambda file, _random: file  # another, under its own right digest
    fields: Callable[[Manifest, Random], dict[str, Any]] = lambda _manifest, _random: {}  # of the manifest, anew
    text: Callable[[str, Random], str] = lambda text, _random: text  # of the manifest as it is written


def _with_a_flipped_bit(file: bytes, random: Random) -> bytes:
    damaged = bytearray(file)
    damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _with_nudged_weights(file: bytes, random: Random) -> bytes:
    factor = 1 + random.choice((-1, 1)) * random.uniform(0.01, 0.1)
    return with_last_layer(file, lambda tensor: (tensor * factor).astype(tensor.dtype))


def _with_an_endless_loop(file: bytes, _random: Random) -> bytes:
    model = onnx.load_from_string(file)
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=onnx.GraphProto(name="body")))
    return model.SerializeToString()


def _with_weights_elsewhere(file: bytes, _random: Random) -> bytes:
    model = onnx.load_from_string(file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../other/weights")
    return model.SerializeToString()


def _with_4_gb_of_nothing(file: bytes, _random: Random) -> bytes:
    model = onnx.load_from_string(file)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 30]), "size"))
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["size"], ["bomb"]))
    return model.SerializeToString()


def _text_with_a_flipped_bit(text: str, random: Random) -> str:
    position = random.randrange(len(text))
    return text[:position] + chr(ord(text[position]) ^ 1 << random.randrange(7)) + text[position + 1 :]


def _edited(text: str, **fields: object) -> str:
    return json.dumps(json.loads(text) | fields)


NO_PROBES = {"names": [], "images": "", "logits": []}
BAD_KINDS = {
    "flipped bit": Spoil(word="HASH_MISMATCH", file=_with_a_flipped_bit),
    "cut short": Spoil(word="HASH_MISMATCH", file=lambda file, random: file[: random.randrange(len(file))]),
    "missing file": Spoil(word="NO_ARTIFACT", file=lambda *_: None),
    "other digest": Spoil(
        word="HASH_MISMATCH", fields=lambda _, random: {"files": {ONNX_NAME: f"{random.getrandbits(256):064x}"}}
    ),
    "old format": Spoil(word="OLD_MANIFEST", text=lambda text, _: _edited(text, format=1)),
    "half a manifest": Spoil(word="BAD_MANIFEST", text=lambda text, random: text[: random.randrange(len(text) - 2)]),
    "no probes": Spoil(word="BAD_MANIFEST", text=lambda text, _: _edited(text, probes=NO_PROBES)),
    "renamed": Spoil(word="BAD_MANIFEST", fields=lambda manifest, _: {"version": manifest.version + 1}),
    "unproven": Spoil(word="PARITY_FAILED", fields=lambda *_: {"parity_passed": False}),
    "other weights": Spoil(word="PARITY_HERE", model=lambda file, _: shifted_model(file)),
    "nudged weights": Spoil(word="PARITY_HERE", model=_with_nudged_weights),
    "no model": Spoil(word="BAD_MODEL", model=lambda _, random: random.randbytes(1000)),
    "endless loop": Spoil(word="BAD_MODEL", model=_with_an_endless_loop),
    "weights elsewhere": Spoil(word="BAD_MODEL", model=_with_weights_elsewhere),
    "bomb": Spoil(word="BAD_MODEL", model=_with_4_gb_of_nothing),
    "no numbers": Spoil(
        word="NON_FINITE", model=lambda file, _: with_last_layer(file, lambda tensor: np.full_like(tensor, np.nan))
    ),
    "flipped bit in the manifest": Spoil(word="BAD_MANIFEST", text=_text_with_a_flipped_bit),
    "other classes": Spoil(word="OTHER_CONTRACT", fields=lambda manifest, _: {"classes": manifest.classes[::-1]}),
    "other shape": Spoil(
        word="OTHER_CONTRACT", fields=lambda manifest, _: {"input": replace(manifest.input, shape=(-1, 1, 32, 32))}
    ),
}
