"""A training played back in the served graph: its values are those of the model as it was after each epoch."""

import asyncio
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.client import AsyncClient
from atelier.contract import TOLERANCES
from export.onnx_model import onnx_from_program
from export.playground import epoch_files, layer_files, weights_in
from export.precision import onnx_in
from export.torch_program import inference_model, program_from_model
from serving.config import ServerConfig
from serving.manifest import EPOCHS_NAME, ONNX_NAME
from serving.models import ModelVersion
from serving.playground.errors import PageError
from serving.playground.looks import Looks, Question
from serving.playground.probe import Probe
from serving.playground.versions import Versions
from tests.export.conftest import functions_read_once  # noqa: F401 - of these exports too
from tests.export.small_model import noise_images
from tests.idx_files import write_idx_files
from tests.serving.playground.versions import ARCHITECTURES, manifest_of, version_in
from tests.training.conftest import call_trainer
from training.checkpoint import load_epochs, load_model
from training.dataset import CLASSES
from training.models import LeNet, model_for
from training.run_record import load_record

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains a recipe for two epochs, and keeps them."""
    data_dir = tmp_path_factory.mktemp("data")
    write_idx_files(data_dir)
    directories: dict[str, Path] = {}

    def train(recipe: str) -> Path:
        if recipe not in directories:
            directories[recipe] = tmp_path_factory.mktemp(recipe)
            options = f"--recipe {recipe} --keep-epochs --learning-rate 0.1 --set num_validation_images=100".split()
            assert call_trainer(data_dir, directories[recipe], *options) == 0
        return directories[recipe]

    return train


@functools.cache
def files_from(checkpoint_dir: Path, precision: str) -> dict[str, bytes]:
    """What an export makes of it, without the gate."""
    model, checkpoint = load_model(checkpoint_dir)
    inferring = inference_model(model)
    architecture = checkpoint.recipe.architecture
    about = {"checkpoint_sha256": checkpoint.sha256, "architecture": architecture, "precision": "fp32"}
    fp32_onnx = onnx_from_program(program_from_model(inferring, 64), classes=CLASSES, **about)
    files = {ONNX_NAME: onnx_in(precision, fp32_onnx, noise_images(256))}
    files |= layer_files(model, inferring, files[ONNX_NAME])
    return files | epoch_files(model, checkpoint_dir, checkpoint, weights_in(files), precision)


def version_from(checkpoint_dir: Path, directory: Path, precision: str) -> ModelVersion:
    files = files_from(checkpoint_dir, precision)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    architecture = load_record(checkpoint_dir).record.recipe.architecture
    return ModelVersion(directory=directory, manifest=manifest_of(files, architecture, precision))


def model_after(checkpoint_dir: Path, epoch: int) -> LeNet:
    _, checkpoint = load_model(checkpoint_dir)
    model = model_for(checkpoint.recipe)
    model.load_state_dict(load_epochs(checkpoint_dir, checkpoint)[epoch])
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision"), [*((name, "fp32") for name in ARCHITECTURES), ("tutorial", "fp16")]
)
def test_values_are_those_of_the_model_after_that_epoch(
    trained: Trained, architecture: str, precision: str, tmp_path: Path
) -> None:
    checkpoint_dir, image = trained(architecture), noise_images(1)
    probe = Probe(version_from(checkpoint_dir, tmp_path, precision))
    assert probe.epochs.numbers == [0, 1, 2]
    for epoch in (0, 1, 2):
        changed = probe.changed(epoch, {})
        folded = inference_model(model_after(checkpoint_dir, epoch)).state_dict()
        for name, weight in changed.items():
            assert np.array_equal(weight, folded[name]), (epoch, name)
        with torch.inference_mode():
            wanted = model_after(checkpoint_dir, epoch).double()(torch.tensor(image)).numpy()[0]
        tolerance = TOLERANCES[precision]
        found = probe.look(image, changed)[-10:]
        assert (np.abs(found - wanted) <= tolerance.atol + tolerance.rtol * np.abs(wanted)).all(), epoch
    assert np.allclose(probe.look(image, probe.changed(2, {})), probe.look(image), atol=1e-3)  # the last is served


def test_epochs_and_switched_off_maps_go_together(trained: Trained, tmp_path: Path) -> None:
    probe = Probe(version_from(trained("tutorial"), tmp_path, "fp32"))
    changed = probe.changed(1, {"conv1": {2}})
    weight = changed["layers.conv1.weight"]
    assert not weight[2].any() and np.array_equal(weight[3], probe.changed(1, {})["layers.conv1.weight"][3])


def test_page_is_told_of_the_epochs_and_their_curves(trained: Trained, tmp_path: Path) -> None:
    version = version_from(trained("tutorial"), tmp_path, "fp32")

    async def asked() -> tuple[dict[str, Any], bytes, bytes, bytes]:
        async with AsyncClient("127.0.0.1:1") as client:  # where nobody answers
            looks = Looks(client, Versions(ServerConfig(repository=tmp_path), [version]))
            frame = await looks.look(noise_images(1), Question(epoch=1))
            return await looks.network(None), looks.weights(None, 1), looks.weights(None, None), frame

    network, weights, served_weights, frame = asyncio.run(asked())
    assert network["epochs"] == [0, 1, 2]
    record = load_model(trained("tutorial"))[1]
    assert network["history"][0] == {"epoch": 0, "train_loss": None, "train_acc": None, "test_acc": None}
    assert network["history"][2]["test_acc"] == record.metrics[1].test_acc
    assert len(weights) == 4 * network["num_weights"] and weights != served_weights
    header = json.loads(frame[4 : 4 + int.from_bytes(frame[:4], "little")])
    assert header["answer"] is None and header["refusal"] is None  # nobody serves that


@pytest.mark.slow
def test_versions_without_epochs_say_how_to_get_them(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"^NO_EPOCH: this version has no epoch 1 \(train with --keep-epochs\)"):
        Probe(version_in(tmp_path, "tutorial")).changed(1, {})
    probe = Probe(version_from(trained("tutorial"), tmp_path, "fp32"))
    with pytest.raises(PageError, match=r"^NO_EPOCH: this version has no epoch 3 \(there are 0 to 2\)"):
        probe.changed(3, {})
    version = version_from(trained("tutorial"), tmp_path, "int8")
    assert EPOCHS_NAME not in version.manifest.files and Probe(version).epochs.numbers == []


def test_same_epochs_are_the_same_bytes(trained: Trained) -> None:
    files, (model, checkpoint) = files_from(trained("tutorial"), "fp32"), load_model(trained("tutorial"))
    again = epoch_files(model, trained("tutorial"), checkpoint, weights_in(files), "fp32")
    assert again == {EPOCHS_NAME: files[EPOCHS_NAME]}
