"""Artifacts of which one bit is flipped, or the end is missing, are refused by the right word, each kind of them.

ATELIER_NUM_FLIPS says how many of each kind: 10,000 before a release, in some minutes.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from atelier.errors import BadDataError
from export.engine_options import EngineOptions
from export.repository import publish
from export.rtx_engine import rtx_engines_from_onnx
from serving.config import ServerConfig
from serving.manifest import MANIFEST_NAME, ONNX_NAME, PROGRAM_NAME, RTX_ENGINE_NAME
from serving.models import read_version
from tests.export.small_model import seeded_model, version_for_servers
from tests.tensorrt.bindings import rtx_bindings
from training.checkpoint import load_checkpoint, save_checkpoint
from training.recipes import RECIPES
from training.run_record import RECORD_NAME, EpochMetrics, RunRecord, load_record, weights_name

NUM_FLIPS = int(os.environ.get("ATELIER_NUM_FLIPS", "200"))
FILES = {MANIFEST_NAME: "auto", ONNX_NAME: "onnxruntime", PROGRAM_NAME: "torch", RTX_ENGINE_NAME: "tensorrt"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with every kind of file that a server loads."""
    rtx_bindings()
    repository = tmp_path_factory.mktemp("flips") / "models"
    files, manifest = version_for_servers()
    options = EngineOptions(precision="fp32", max_batch_size=64)
    engines, specs = rtx_engines_from_onnx(files[ONNX_NAME], manifest.files[ONNX_NAME], options)
    files |= engines
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    publish(repository / "lenet5", files, dataclasses.replace(manifest, files=digests, engines=tuple(specs)))
    return repository


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("flips") / "checkpoint"
    directory.mkdir()
    metrics = EpochMetrics(epoch=1, train_loss=0.5, train_acc=0.8, test_acc=0.8, step_seconds=1.0, seconds=2.0)
    record = RunRecord(
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
    save_checkpoint(directory, seeded_model().state_dict(), record)
    return directory


def words_of_damaged(path: Path, load: Callable[[], object]) -> set[str]:
    """Flips a bit at a time, and cuts every tenth time; returns the words of the refusals, and "" for what passes."""
    good, random, words = path.read_bytes(), Random(path.name), set()
    load()
    for number in range(NUM_FLIPS):
        damaged = bytearray(good)
        if number % 10 == 0:
            del damaged[random.randrange(len(good)) :]
        else:
            position = random.randrange(8 * len(good))
            damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            load()
            words.add("")
        except BadDataError as error:
            words.add(error.word)
    path.write_bytes(good)
    load()
    return words


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_version_is_served(repository: Path, name: str) -> None:
    config = ServerConfig(repository=repository, backend=FILES[name])
    found = words_of_damaged(repository / "lenet5" / "1" / name, lambda: read_version(config))
    assert found == {"BAD_MANIFEST" if name == MANIFEST_NAME else "HASH_MISMATCH"}


def test_no_damaged_checkpoint_is_loaded(checkpoint_dir: Path) -> None:
    for name in (RECORD_NAME, weights_name(load_record(checkpoint_dir).sha256)):
        found = words_of_damaged(checkpoint_dir / name, lambda: load_checkpoint(checkpoint_dir))
        assert found == {"BAD_CHECKPOINT"}, name
