"""Kinds of files and pictures that programs of ours read, with what reads them, and mutants of each.

Digests are made right again, for no mutant that fails at its digest gets any further.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import onnx
import torch
from torch import Tensor

from atelier.errors import AtelierError
from atelier.sealed import sealed
from serving.backends.onnx_check import check_onnx
from serving.backends.program_check import checked_program
from serving.manifest import MANIFEST_NAME, ONNX_NAME, PROGRAM_NAME, read_manifest, save_manifest
from serving.pictures.reading import Reading
from serving.pictures.worker import read_picture
from tests.export.small_model import exported_files, seeded_model, version_for_servers
from tests.fuzz.documents import mutated_document
from tests.fuzz.mutants import PICTURES, mutated_bytes, mutated_message, mutated_picture
from tests.idx_files import write_idx_files
from training.checkpoint import bytes_from, load_model
from training.dataset import load_dataset
from training.idx_files import FILES
from training.recipes import RECIPES
from training.run_record import RECORD_NAME, EpochMetrics, RunRecord, json_from, load_record, tensors_name

READINGS = [Reading(False, False), Reading(True, False), Reading(False, True)]
GRAPH = "archive/models/model.json"


@dataclass(frozen=True)
class Kind:
    """A kind of file: some that are whole, what reads one, and what it raises for those that it refuses."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    mutant: Callable[[Random], bytes]
    refusals: tuple[type[Exception], ...] = (AtelierError,)

    def is_read(self, data: bytes) -> bool:
        """Returns whether it is read, and not refused. Raises what nothing of ours should raise."""
        try:
            self.read(data)
        except self.refusals:
            return False
        return True


def picture(_directory: Path) -> Kind:
    """Makes pictures; a byte before each says how it is read."""
    return Kind(
        seeds=[bytes([index % 3]) + each for index, each in enumerate(PICTURES)],
        read=lambda data: read_picture(data[1:], 0, READINGS[data[0] % 3] if data else READINGS[0]),
        mutant=lambda random: random.randbytes(1) + mutated_picture(random),
    )


def data_set(directory: Path) -> Kind:
    """Makes one of the four files of a data set; a byte before it says which."""
    write_idx_files(directory, num_train=3, num_test=3)
    paths = [directory / file.name for file in FILES]
    whole = [path.read_bytes() for path in paths]
    seeds = [bytes([index]) + data for index, data in enumerate([*whole, *map(gzip.compress, whole)])]

    def read(data: bytes) -> None:
        index = data[0] % 4 if data else 0
        paths[index].write_bytes(data[1:])
        try:
            load_dataset(directory, verify=False, fetch=False)
        finally:
            paths[index].write_bytes(whole[index])

    def mutant(random: Random) -> bytes:
        index = random.randrange(4)
        data = bytearray(whole[index])
        if random.random() < 0.5:
            data[random.randrange(min(16, len(data)))] = random.choice((0, 1, 3, 4, 8, 28, 255))  # the header
        changed = mutated_bytes(random, bytes(data)) if random.random() < 0.7 else bytes(data)
        changed = gzip.compress(changed, 1) if random.random() < 0.3 else changed
        return bytes([index]) + (mutated_bytes(random, changed) if random.random() < 0.2 else changed)

    return Kind(seeds, read, mutant)


def manifest(directory: Path) -> Kind:
    """Makes manifests, sealed anew."""
    version_dir = directory / "lenet5" / "1"
    version_dir.mkdir(parents=True)
    save_manifest(dataclasses.replace(version_for_servers()[1], version=1), version_dir)
    return _sealed_documents(version_dir / MANIFEST_NAME, lambda: read_manifest(version_dir))


def checkpoint(directory: Path) -> Kind:
    """Makes the records of checkpoints, sealed anew."""
    path = directory / RECORD_NAME
    path.write_bytes(json_from(run_record(), "0" * 64))
    return _sealed_documents(path, lambda: load_record(directory))


def _sealed_documents(path: Path, load: Callable[[], object]) -> Kind:
    document = json.loads(path.read_bytes())
    document.pop("digest")

    def read(data: bytes) -> None:
        try:
            found = json.loads(data)
            data = sealed(found) if isinstance(found, dict) else data
        except (ValueError, RecursionError):  # as it came
            pass
        path.write_bytes(data)
        load()

    return Kind([json.dumps(document).encode()], read, lambda random: mutated_document(random, document))


def weights(directory: Path) -> Kind:
    """Makes weights that the record of the checkpoint names: of wrong names, shapes, types or bytes."""
    state = {name: tensor.clone() for name, tensor in seeded_model().state_dict().items()}

    def read(data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        path = directory / tensors_name("weights", sha256)
        path.write_bytes(data)
        (directory / RECORD_NAME).write_bytes(json_from(run_record(), sha256))
        try:
            load_model(directory)
        finally:
            path.unlink()

    def mutant(random: Random) -> bytes:
        if random.random() < 0.3:
            return mutated_bytes(random, bytes_from(state))
        return bytes_from(_changed_state(random, state))

    return Kind([bytes_from(state)], read, mutant)


def _changed_state(random: Random, state: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = dict(state)
    for _ in range(random.choice((1, 1, 3))):
        name = random.choice(list(changed))
        tensor, choice = changed.pop(name), random.randrange(6)
        if choice == 0:
            changed[random.choice(("", "x", name + ".", "layers.0.weight"))] = tensor
        elif choice == 1:
            changed[name] = tensor.reshape(-1) if tensor.ndim > 1 else tensor.reshape(1, -1)
        elif choice == 2:
            changed[name] = tensor.to(random.choice((torch.float16, torch.float64, torch.int8, torch.bool)))
        elif choice == 3:
            changed[name] = torch.full(tensor.shape, float("nan"))
        elif choice == 4:
            changed[name] = tensor[:0].clone()
    return changed


def onnx_model(_directory: Path) -> Kind:
    """Makes ONNX models."""
    model = exported_files()[ONNX_NAME]
    parsed = onnx.load_from_string(model)
    for tensor in parsed.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    return Kind([model], lambda data: check_onnx(data, 20, 64), lambda random: mutated_message(random, parsed))


def program(_directory: Path) -> Kind:
    """Makes torch programs: the graph of one, in an archive that is whole, or else the archive."""
    whole = exported_files()[PROGRAM_NAME]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(entries[GRAPH])

    def read(data: bytes) -> None:
        if not data.startswith(b"PK"):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in (entries | {GRAPH: data}).items():
                    archive.writestr(name, content)
            data = file.getvalue()
        checked_program(data)

    def mutant(random: Random) -> bytes:
        return mutated_bytes(random, whole) if random.random() < 0.3 else mutated_document(random, document)

    return Kind([entries[GRAPH], whole], read, mutant, refusals=(Exception,))  # the backend refuses after any of them


def run_record() -> RunRecord:
    """What a checkpoint of one epoch says of its run."""
    metrics = EpochMetrics(epoch=1, train_loss=0.5, train_acc=0.8, test_acc=0.8, step_seconds=1.0, seconds=2.0)
    return RunRecord(
        recipe=dataclasses.replace(RECIPES["tutorial"], num_epochs=1),
        seed=0,
        completed_epochs=1,
        metrics=(metrics,),
        dataset_digests={"train-images-idx3-ubyte": "0" * 64},
        dataset_verified=True,
        num_train_images=60000,
        versions={"torch": "2.15.0"},
        hardware="two cores",
        device="cpu",
        num_threads=2,
        created="2026-01-01T00:00:00+00:00",
        wall_seconds=1.25,
    )


KINDS: dict[str, Callable[[Path], Kind]] = {
    "picture": picture,
    "data set": data_set,
    "manifest": manifest,
    "checkpoint": checkpoint,
    "weights": weights,
    "ONNX model": onnx_model,
    "program": program,
}
