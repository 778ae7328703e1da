"""What is saved comes back exactly, and nothing else comes back at all."""

import hashlib
import json
import pickle
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from atelier.errors import BadDataError, MissingInputError
from atelier.files import write_atomically
from atelier.program import run_program
from atelier.sealed import unsealed
from tests.sealed_files import edit_sealed
from training.checkpoint import load_checkpoint, load_model, save_checkpoint
from training.config import TrainConfig
from training.models import LeNet5, initialise
from training.run_record import RECORD_NAME, RunRecord, load_record, tensors_name
from training.session import start_of

State = dict[str, Tensor]


def weights_of(seed: int) -> State:
    model = LeNet5()
    initialise(model, seed)
    return model.state_dict()


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def edit_record(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    edit_sealed(directory / RECORD_NAME, edit)


def put_weights(directory: Path, data: bytes) -> None:
    """Makes `data` the weights, digest and all."""
    sha256 = hashlib.sha256(data).hexdigest()
    (directory / tensors_name("weights", sha256)).write_bytes(data)
    edit_record(directory, lambda document: document.update(weights=tensors_name("weights", sha256), sha256=sha256))


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `num_bytes`: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def record(finished_run: Path) -> RunRecord:
    return load_record(finished_run)[0]


def test_saved_weights_and_record_come_back_exactly(tmp_path: Path, record: RunRecord) -> None:
    weights = weights_of(1)
    save_checkpoint(tmp_path, weights, record)
    checkpoint = load_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in weights.items())
    assert load_record(tmp_path) == (record, checkpoint.sha256, "")
    assert checkpoint.metrics == record.metrics
    assert checkpoint.recipe.architecture == "tutorial"


def test_loaded_model_is_ready_to_answer(finished_run: Path) -> None:
    model, checkpoint = load_model(finished_run)
    assert not model.training
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)
    assert list(checkpoint.state_dict) and checkpoint.is_complete


@pytest.mark.fault("T2")
def test_new_checkpoint_replaces_the_old_one_and_what_killed_writers_left(tmp_path: Path, record: RunRecord) -> None:
    save_checkpoint(tmp_path, weights_of(0), record)
    (tmp_path / ".weights-0.safetensors.12345678.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, weights_of(1), record)
    assert sorted(files_in(tmp_path)) == [RECORD_NAME, tensors_name("weights", load_checkpoint(tmp_path).sha256)]


def test_same_weights_make_the_same_bytes(tmp_path: Path, record: RunRecord) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, weights_of(0), record)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


# --- Disks that fill up ----------------------------------------------------------------------------------------------


@pytest.mark.fault("T4")
def test_full_disk_leaves_the_old_checkpoint_byte_for_byte(tmp_path: Path, record: RunRecord) -> None:
    save_checkpoint(tmp_path, weights_of(0), record)
    before = files_in(tmp_path)
    for limit in (0, 1, 100_000):
        with file_size_limit(limit), pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(tmp_path, weights_of(1), record)
        assert str(tmp_path) in str(caught.value)
        assert files_in(tmp_path) == before


@pytest.mark.fault("T4")
def test_full_disk_ends_the_trainer_with_exit_code_74(
    trained_dir: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_in(trained_dir)
    with file_size_limit(100_000):
        assert train("--again") == 74
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: NO_SPACE: cannot write {trained_dir}/weights-")
    before[".lock"] = (trained_dir / ".lock").read_bytes()  # the two runs' process
    assert files_in(trained_dir) == before


def test_unwritable_directory_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        write_atomically(tmp_path / "nowhere/file", b"data")
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError, match="directory"):
        write_atomically(tmp_path / "directory", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


# --- Files that are not what they were -------------------------------------------------------------------------------


def test_no_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"NO_CHECKPOINT: .*checkpoint\.json does not exist") as failure:
        load_checkpoint(tmp_path)
    assert f"--checkpoint-dir {tmp_path}" in str(failure.value) and "makes one)" in str(failure.value)


@pytest.mark.fault("E1")
def test_every_flipped_bit_of_the_weights_is_refused(trained_dir: Path) -> None:
    sha256 = load_record(trained_dir).sha256
    path = trained_dir / tensors_name("weights", sha256)
    good = path.read_bytes()
    for position in random.Random(0).sample(range(8 * len(good)), 100):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*has SHA-256"):
            load_checkpoint(trained_dir)


@pytest.mark.fault("E1")
@pytest.mark.parametrize("num_bytes", [0, 7, 1000])
def test_truncated_weights_are_refused_even_with_their_own_digest(trained_dir: Path, num_bytes: int) -> None:
    put_weights(trained_dir, save(weights_of(0))[:num_bytes])
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*is not a safetensors file"):
        load_checkpoint(trained_dir)


def test_missing_weights_are_named(trained_dir: Path) -> None:
    record, sha256, _ = load_record(trained_dir)
    path = trained_dir / tensors_name("weights", sha256)
    path.unlink()
    with pytest.raises(BadDataError, match=rf"{path.name} does not exist, but checkpoint\.json names it"):
        load_checkpoint(trained_dir)
    with pytest.raises(BadDataError, match="BAD_CHECKPOINT"):  # and is not taken for a finished run either
        config = TrainConfig(recipe=record.recipe, seed=record.seed, checkpoint_dir=trained_dir)
        start_of(config, record.seed, trained_dir, record.dataset_digests)


class Canary:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return write_canary, ("canary",)


def write_canary(name: str) -> None:
    Path(name).write_text("sang")


@pytest.mark.fault("T14")
def test_pickle_in_place_of_the_weights_is_not_run(trained_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_dir)
    data = pickle.dumps(Canary())
    put_weights(trained_dir, data)
    with pytest.raises(BadDataError, match="is not a safetensors file"):
        load_checkpoint(trained_dir)
    assert not Path("canary").exists()
    pickle.loads(data)  # noqa: S301 - the canary can sing
    assert Path("canary").exists()


def without(name: str) -> State:
    return {key: tensor for key, tensor in weights_of(0).items() if key != name}


@pytest.mark.fault("E2")
@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (without("layers.conv1.bias"), "missing layers.conv1.bias"),
        (weights_of(0) | {"layers.extra": torch.zeros(3)}, "unexpected layers.extra"),
        (
            weights_of(0) | {"layers.linear3.bias": torch.zeros(11)},
            r"layers.linear3.bias is torch.float32 \(11,\), not torch.float32 \(10,\)",
        ),
        (
            weights_of(0) | {"layers.linear3.bias": torch.zeros(10, dtype=torch.float64)},
            "layers.linear3.bias is torch.float64",
        ),
    ],
)
def test_weights_of_another_architecture_are_listed(trained_dir: Path, weights: State, complaint: str) -> None:
    put_weights(trained_dir, save(weights))
    with pytest.raises(BadDataError, match=f"BAD_CHECKPOINT: .*does not fit 'tutorial': {complaint}"):
        load_model(trained_dir)


@pytest.mark.fault("T10", "E3")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_neither_loaded_nor_saved(
    trained_dir: Path, record: RunRecord, value: float
) -> None:
    weights = weights_of(0)
    weights["layers.conv2.weight"][3, 2, 1, 0] = value
    before = files_in(trained_dir)
    with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.conv2\.weight"):
        save_checkpoint(trained_dir, weights, record)
    assert files_in(trained_dir) == before
    put_weights(trained_dir, save(weights))
    with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.conv2\.weight"):
        load_checkpoint(trained_dir)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document.pop("format"),
        lambda document: document.update(format=3),
        lambda document: document.update(weights="../weights-000000000000.safetensors"),
        lambda document: document.update(sha256="0" * 64),
        lambda document: document.update(sha256=7),
        lambda document: document.pop("seed"),
        lambda document: document.update(surprise=1),
        lambda document: document.update(seed="0"),
        lambda document: document.update(dataset_verified=1),
        lambda document: document.update(hardware=None),
        lambda document: document["metrics"][0].update(train_loss="low"),
        lambda document: document["versions"].update(torch=2),
        lambda document: document.update(recipe=[]),
        lambda document: document["recipe"].update(batch_size=0),
        lambda document: document.update(completed_epochs=3),
        lambda document: document["metrics"][0].pop("test_acc"),
    ],
)
def test_record_that_is_not_one_of_ours_is_refused(trained_dir: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    edit_record(trained_dir, edit)
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*checkpoint\.json is malformed"):
        load_checkpoint(trained_dir)


def test_record_of_an_earlier_release_has_no_digest_and_is_read(trained_dir: Path) -> None:
    before = load_record(trained_dir)
    path = trained_dir / RECORD_NAME
    path.write_text(json.dumps(unsealed(path.read_bytes()) | {"format": 1}))
    assert load_record(trained_dir) == before
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 2}))
    with pytest.raises(BadDataError, match=r"BAD_CHECKPOINT: .*it has format 2"):
        load_record(trained_dir)


NEUTRAL = {"optimizer": "sgd", "cutout": 0, "teacher": "", "teacher_epochs": 0, "distillation_weight": 0.0}


def test_record_with_fields_that_recipes_once_had_is_read_if_they_did_nothing(trained_dir: Path) -> None:
    before = load_record(trained_dir)
    edit_record(trained_dir, lambda document: document["recipe"].update(NEUTRAL, distillation_temperature=3.0))
    assert load_record(trained_dir) == before


@pytest.mark.parametrize(("field", "value"), [("optimizer", "adamw"), ("cutout", 8), ("teacher", "teacher")])
def test_record_of_a_run_with_a_removed_feature_is_refused_by_its_name(
    trained_dir: Path, field: str, value: object
) -> None:
    edit_record(trained_dir, lambda document: document["recipe"].update(NEUTRAL | {field: value}))
    with pytest.raises(BadDataError, match=rf"BAD_CHECKPOINT: .* is of a run with {field} {value}, which this version"):
        load_checkpoint(trained_dir)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_record_that_is_not_json_of_ours_is_refused(trained_dir: Path, data: bytes) -> None:
    (trained_dir / RECORD_NAME).write_bytes(data)
    assert run_program(lambda _: len(load_checkpoint(trained_dir).sha256), []) == 65
