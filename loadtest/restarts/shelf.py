"""Publishes versions to swap between, and versions that must be refused, all made from one that was exported.

Odd versions are the exported model; even ones are the same with its classes moved on by one, so that an answer tells
which of the two has given it.
"""

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from atelier.wire import classifier_pb2 as pb
from loadtest.load.protocols import Checked, Classify, Reference
from serving.manifest import (
    MANIFEST_NAME,
    MODEL_NAME,
    ONNX_NAME,
    Manifest,
    Probes,
    find_version,
    read_verified,
    save_manifest,
)

NUM_KEPT = 3  # versions in the repository: the newest, the one before it, and one that may be being read


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedVersion(Classify):
    """Classify, whose answers must be right for the version that they name."""

    shifted: Reference  # of even versions

    def reference_of(self, version: str) -> Reference:
        """Does what Classify's does."""
        return self.reference if int(version) % 2 else self.shifted

    def check(self, reply: bytes, indices: list[int]) -> Checked:  # type: ignore[override]
        """Does what ServerProtocol's does."""
        try:
            version = pb.ClassifyResponse.FromString(reply).model_version
        except DecodeError:
            return Checked(f"{len(reply)} bytes that are no ClassifyResponse")
        right = Classify(target=self.target, reference=self.reference_of(version))
        checked = right.check(reply, indices)
        return checked._replace(fault=f"version {version}: {checked.fault}") if checked.fault else checked


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A repository of its own, to which versions are published as the exporter does: whole, by a rename."""

    repository: Path
    source: Path  # the repository whose newest version is the model

    @cached_property
    def _plain(self) -> tuple[bytes, Manifest]:
        version_dir, manifest = find_version(self.source)
        file = read_verified(version_dir, manifest, ONNX_NAME)
        return file, dataclasses.replace(manifest, files={}, engines=())

    @cached_property
    def _shifted(self) -> tuple[bytes, Manifest]:
        file, manifest = self._plain
        images, logits = manifest.probes.arrays()
        probes = Probes.of(manifest.probes.names, images, np.roll(logits, 1, axis=1))
        return _with_last_layer(file, lambda tensor: np.roll(tensor, 1, axis=0)), dataclasses.replace(
            manifest, probes=probes
        )

    def publish(self, number: int) -> None:
        """Publishes a good version, and takes away those that nobody needs any more."""
        file, manifest = self._plain if number % 2 else self._shifted
        self._write(number, file, dataclasses.replace(manifest, version=number, files=_digests(file)))
        shutil.rmtree(self._dir(number - NUM_KEPT), ignore_errors=True)

    def publish_bad(self, number: int, kind: str, random: Random) -> str:
        """Publishes a version of one of BAD_KINDS; returns the word with which it must be refused."""
        spoil, word = BAD_KINDS[kind]
        file, manifest = self._plain
        bad = Bad(file, vars(copy.deepcopy(dataclasses.replace(manifest, version=number))), self._shifted[0], random)
        bad.document["files"] = _digests(file)
        spoil(bad)
        self._write(number, bad.file, Manifest(**bad.document), rewrite=bad.rewrite)
        return word

    def withdraw(self, number: int) -> None:
        """Takes a version away."""
        shutil.rmtree(self._dir(number))

    def _dir(self, number: int) -> Path:
        return self.repository / MODEL_NAME / str(number)

    def _write(
        self, number: int, file: bytes | None, manifest: Manifest, rewrite: Callable[[str], str] = lambda text: text
    ) -> None:
        building = self.repository / MODEL_NAME / ".building"
        building.mkdir(parents=True)
        if file is not None:
            (building / ONNX_NAME).write_bytes(file)
        save_manifest(manifest, building)
        document = building / MANIFEST_NAME
        document.write_text(rewrite(document.read_text()))
        building.rename(self._dir(number))


def shifted(reference: Reference) -> Reference:
    """Returns what even versions answer."""
    return dataclasses.replace(reference, logits=np.roll(reference.logits, 1, axis=1))


def _digests(file: bytes) -> dict[str, str]:
    return {ONNX_NAME: hashlib.sha256(file).hexdigest()}


def _with_last_layer(file: bytes, change: Callable[[Any], Any]) -> bytes:
    """Returns the ONNX model with other weights and biases in the layer that computes the logits."""
    model = onnx.load_from_string(file)
    names = next(node.input[1:] for node in model.graph.node if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return model.SerializeToString()


# --- What must be refused --------------------------------------------------------------------------------------------


@dataclass
class Bad:
    """A version on its way to being one that must be refused."""

    file: bytes | None
    document: dict[str, Any]  # the manifest's fields
    other_file: bytes  # another model
    random: Random
    rewrite: Callable[[str], str] = lambda text: text  # of the manifest as it is written

    def replace_file(self, file: bytes) -> None:
        """Puts another model there, under its own right digest."""
        self.file, self.document["files"] = file, _digests(file)


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
    bad.replace_file(_with_last_layer(bad.file or b"", lambda tensor: (tensor * factor).astype(tensor.dtype)))


def _loop_without_end(bad: Bad) -> None:
    model = onnx.load_from_string(bad.file or b"")
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], [], body=onnx.GraphProto(name="body")))
    bad.replace_file(model.SerializeToString())


def _hold_no_numbers(bad: Bad) -> None:
    bad.replace_file(_with_last_layer(bad.file or b"", lambda tensor: np.full_like(tensor, np.nan)))


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
    "no numbers": (_hold_no_numbers, "NON_FINITE"),
    "flipped bit in the manifest": (_flip_a_bit_of_the_manifest, "BAD_MANIFEST"),
    "other classes": (_have_other_classes, "OTHER_CONTRACT"),
    "other shape": (_have_other_shape, "OTHER_CONTRACT"),
}
