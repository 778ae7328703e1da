"""Publishes versions to swap between, and versions that must be refused, all made from one that was exported.

Odd versions are the exported model; even ones are the same with its classes moved on by one, so that an answer tells
which of the two has given it.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
from google.protobuf.message import DecodeError

from atelier.wire import classifier_pb2 as pb
from loadtest.load.protocols import Checked, Classify, Reference
from loadtest.restarts.bad_versions import BAD_KINDS, digests, shifted_model
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
        return shifted_model(file), dataclasses.replace(manifest, probes=probes)

    def publish(self, number: int) -> None:
        """Publishes a good version, and takes away those that nobody needs any more."""
        file, manifest = self._plain if number % 2 else self._shifted
        self._write(number, file, dataclasses.replace(manifest, version=number, files=digests(file)))
        shutil.rmtree(self._dir(number - NUM_KEPT), ignore_errors=True)

    def publish_bad(self, number: int, kind: str, random: Random) -> str:
        """Publishes a version of one of BAD_KINDS; returns the word with which it must be refused."""
        spoil, (file, manifest) = BAD_KINDS[kind], self._plain
        model = spoil.model(file, random)
        manifest = dataclasses.replace(manifest, version=number, files=digests(model))
        manifest = dataclasses.replace(manifest, **spoil.fields(manifest, random))
        self._write(number, spoil.file(model, random), manifest, lambda text: spoil.text(text, random))
        return spoil.word

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
