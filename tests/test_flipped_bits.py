"""Artifacts of which one bit is flipped, or the end is missing, are refused by the right word, each kind of them."""

import dataclasses
import hashlib
from collections import Counter
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
from tests.fuzz.files import run_record
from tests.reliability.plugin import Figure
from tests.tensorrt.bindings import rtx_bindings
from training.checkpoint import load_checkpoint, save_checkpoint
from training.run_record import RECORD_NAME, load_record, weights_name

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
    save_checkpoint(directory, seeded_model().state_dict(), run_record())
    return directory


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


@pytest.mark.fault("E4", "E5", "E11")
@pytest.mark.goal("G17", of="flips and cuts of a file", ci=200, release=10_000)
@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_version_is_served(repository: Path, name: str, size: int, figure: Figure) -> None:
    config = ServerConfig(repository=repository, backend=FILES[name])
    found = words_of_damaged(repository / "lenet5" / "1" / name, size, lambda: read_version(config))
    figure(told(found))
    assert set(found) == {"BAD_MANIFEST" if name == MANIFEST_NAME else "HASH_MISMATCH"}


@pytest.mark.fault("E1")
@pytest.mark.goal("G17", of="flips and cuts of a file", ci=200, release=10_000)
@pytest.mark.parametrize("name", [RECORD_NAME, "weights"])
def test_no_damaged_checkpoint_is_loaded(checkpoint_dir: Path, name: str, size: int, figure: Figure) -> None:
    path = checkpoint_dir / (RECORD_NAME if name == RECORD_NAME else weights_name(load_record(checkpoint_dir).sha256))
    found = words_of_damaged(path, size, lambda: load_checkpoint(checkpoint_dir))
    figure(told(found))
    assert set(found) == {"BAD_CHECKPOINT"}
