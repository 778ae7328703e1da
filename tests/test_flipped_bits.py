"""Artifacts of which one bit is flipped, or the end is missing, are refused by the right word, each kind of them."""

import dataclasses
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from atelier.errors import BadDataError
from export.engine_options import EngineOptions
from export.repository import publish
from export.rtx_engine import rtx_engines_from_onnx
from serving.config import ServerConfig
from serving.manifest import (
    EPOCHS_NAME,
    LAYERS_NAME,
    LITERT_NAME,
    MANIFEST_NAME,
    ONNX_NAME,
    PROGRAM_NAME,
    RTX_ENGINE_NAME,
)
from serving.models import read_version
from tests.export.small_model import seeded_model, version_for_servers
from tests.fuzz.files import run_record
from tests.reliability.plugin import Figure
from tests.tensorrt.bindings import rtx_bindings
from training.checkpoint import keep_epoch, load_checkpoint, load_epochs, load_training_state, save_checkpoint
from training.run_record import RECORD_NAME, load_record

# What a server reads for a backend, and what its page reads beside that.
FILES = {
    MANIFEST_NAME: "auto",
    ONNX_NAME: "onnxruntime",
    PROGRAM_NAME: "torch",
    RTX_ENGINE_NAME: "tensorrt",
    LITERT_NAME: "litert",
    LAYERS_NAME: "onnxruntime",
    EPOCHS_NAME: "onnxruntime",
}
TFLITE = Path(__file__).parent / "serving" / "seeded_model.tflite"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with every kind of file that a server loads."""
    rtx_bindings()
    repository = tmp_path_factory.mktemp("flips") / "models"
    files, manifest = version_for_servers()
    options = EngineOptions(precision="fp32", max_batch_size=64)
    engines, specs = rtx_engines_from_onnx(files[ONNX_NAME], manifest.files[ONNX_NAME], options)
    files |= engines | {LITERT_NAME: TFLITE.read_bytes(), EPOCHS_NAME: npz()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    publish(repository / "lenet5", files, dataclasses.replace(manifest, files=digests, engines=tuple(specs)))
    return repository


def npz() -> bytes:
    """Weights by epochs, as the exporter writes them."""
    buffer = io.BytesIO()
    np.savez(buffer, epochs=np.arange(2), weight=np.random.default_rng(0).random((2, 6, 1, 5, 5), np.float32))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record, weights, the training's state, and the weights of an epoch that is kept."""
    directory = tmp_path_factory.mktemp("flips") / "checkpoint"
    directory.mkdir()
    weights = seeded_model().state_dict()
    record = keep_epoch(directory, run_record(), {name: -tensor for name, tensor in weights.items()})
    save_checkpoint(directory, weights, record, {name: 2 * tensor for name, tensor in weights.items()})
    return directory


# The files of a checkpoint, and what reads each.
CHECKPOINT_FILES: dict[str, Callable[[Path], object]] = {
    RECORD_NAME: load_checkpoint,
    "weights-*": load_checkpoint,
    "state-*": load_training_state,
    "epoch-*": lambda directory: load_epochs(directory, load_record(directory).record),
}


def words_of_damaged(path: Path, num_flips: int, load: Callable[[], object]) -> Counter[str]:
    """Flips a bit at a time, and cuts every tenth time; counts the words of the refusals, and "" for what passes."""
    good, random, words = path.read_bytes(), Random(path.name), Counter[str]()
    load()
    for number in range(num_flips):
        damaged = bytearray(good)
        if number % 10 == 0:
            del damaged[random.randrange(len(good)) :]
        else:
            position = random.randrange(8 * len(good))
            damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            load()
            words[""] += 1
        except BadDataError as error:
            words[error.word] += 1
    path.write_bytes(good)
    load()
    return words


def told(words: Counter[str]) -> str:
    return f"{words['']:,} of {words.total():,} accepted"


def refusal_of_swapped(one: Path, other: Path, load: Callable[[], object]) -> str:
    """Exchanges two files; returns the word of the refusal."""
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    try:
        with pytest.raises(BadDataError) as caught:
            load()
    finally:
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])
    load()
    return caught.value.word


def read_for(repository: Path, name: str) -> bytes:
    """What a server, or its page, reads of a version for this file."""
    version = read_version(ServerConfig(repository=repository, backend=FILES[name]))
    return b"" if name == MANIFEST_NAME else version.read(name)


@pytest.mark.slow
@pytest.mark.fault("E4", "E5", "E11")
@pytest.mark.goal("G17", of="flips and cuts of a file", ci=200, release=10_000)
@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_version_is_served(repository: Path, name: str, size: int, figure: Figure) -> None:
    found = words_of_damaged(repository / "lenet5" / "1" / name, size, lambda: read_for(repository, name))
    figure(told(found))
    assert set(found) == {"BAD_MANIFEST" if name == MANIFEST_NAME else "HASH_MISMATCH"}


@pytest.mark.fault("E4", "E11")
@pytest.mark.goal("G17", of="swaps of two files of a version", ci=0, release=0)
def test_no_two_files_of_a_version_are_taken_for_each_other(repository: Path, figure: Figure) -> None:
    version_dir, pairs = repository / "lenet5" / "1", list(itertools.combinations(FILES, 2))
    for one, other in pairs:
        name = other if one == MANIFEST_NAME else one
        word = refusal_of_swapped(version_dir / one, version_dir / other, lambda name=name: read_for(repository, name))  # type: ignore[misc]
        words = ("BAD_MANIFEST", "OLD_MANIFEST") if one == MANIFEST_NAME else ("HASH_MISMATCH",)
        assert word in words, (one, other)
    figure(f"0 of {len(pairs)} accepted")


def only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


@pytest.mark.fault("E1")
@pytest.mark.goal("G17", of="flips and cuts of a file", ci=200, release=10_000)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_no_damaged_checkpoint_is_loaded(checkpoint_dir: Path, name: str, size: int, figure: Figure) -> None:
    load = CHECKPOINT_FILES[name]
    found = words_of_damaged(only(checkpoint_dir, name), size, lambda: load(checkpoint_dir))
    figure(told(found))
    assert set(found) == {"BAD_CHECKPOINT"}


@pytest.mark.fault("E1")
@pytest.mark.goal("G17", of="swaps of two files of a checkpoint", ci=0, release=0)
def test_no_two_files_of_a_checkpoint_are_taken_for_each_other(checkpoint_dir: Path, figure: Figure) -> None:
    pairs, words = list(itertools.combinations(CHECKPOINT_FILES, 2)), set()
    for one, other in pairs:
        load = CHECKPOINT_FILES[one]
        paths = only(checkpoint_dir, one), only(checkpoint_dir, other)
        words.add(refusal_of_swapped(*paths, lambda load=load: load(checkpoint_dir)))  # type: ignore[misc]
    figure(f"0 of {len(pairs)} accepted")
    assert words == {"BAD_CHECKPOINT"}
