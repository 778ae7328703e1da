"""Every architecture and option, as a user meets it: trained, exported through the gate, and served."""

import copy
import gzip
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from atelier.client import Client
from atelier.program import run_program
from export.export import main as export_main
from loadtest.server_process import server_process
from serving.manifest import ONNX_NAME
from tests.idx_files import idx_bytes
from training.checkpoint import load_model
from training.dataset import FashionMNIST, load_dataset
from training.idx_files import FILES
from training.models import LeNet
from training.recipes import ACTIVATIONS, PADDING_MODES, POOLINGS
from training.run_record import load_record
from training.train import main as train_main

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_TEST = 4096, 512

LENETS = ("tutorial", "classic")
# Both with every activation, and every two options together at least once. `modern` comes with its recipe, below.
VARIANTS = [
    (architecture, activation, POOLINGS[(i + j) % 2], PADDING_MODES[(i + j // 2) % 2])
    for i, architecture in enumerate(LENETS)
    for j, activation in enumerate(ACTIVATIONS)
]


@pytest.fixture(scope="module")
def real_images(data: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first real images of either kind, so that an epoch takes a second."""
    directory = tmp_path_factory.mktemp("real")
    arrays = (
        *(data.train_images[:NUM_TRAIN, 0], data.train_labels[:NUM_TRAIN]),
        *(data.test_images[:NUM_TEST, 0], data.test_labels[:NUM_TEST]),
    )
    for file, array in zip(FILES, arrays, strict=True):
        (directory / f"{file.name}.gz").write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))
    return directory


def test_chosen_variants_hold_every_pair_of_choices() -> None:
    choices = (LENETS, ACTIVATIONS, POOLINGS, PADDING_MODES)
    for first, second in itertools.combinations(range(len(choices)), 2):
        pairs = {(variant[first], variant[second]) for variant in VARIANTS}
        assert pairs == set(itertools.product(choices[first], choices[second])), (first, second)


def train_export_and_serve(real_images: Path, directory: Path, *options: str) -> LeNet:
    """The model of the checkpoint, once the server has given its labels, in float64, to every test image."""
    checkpoint_dir, repository = directory / "checkpoint", directory / "models"
    where = ["--data-dir", str(real_images), "--unverified-data", "--checkpoint-dir", str(checkpoint_dir)]
    assert run_program(train_main, [*where, "--epochs", "1", "--device", "cpu", "--threads", "1", *options]) == 0
    assert (
        run_program(export_main, [*where, "--repository", str(repository), "--max-batch-size", "64", "--near-chance"])
        == 0
    )

    images = load_dataset(real_images, verify=False).test_images  # (512, 1, 28, 28)
    with (
        server_process("serving", "--repository", str(repository), "--port", "0", "--device", "cpu") as server,
        Client(server.target) as client,
    ):
        served = client.classify(images, timeout_s=30).labels
    model, _ = load_model(checkpoint_dir)
    with torch.inference_mode():
        wanted = copy.deepcopy(model).double()(torch.tensor(images)).argmax(1).numpy()
    assert np.array_equal(served, wanted)
    return model


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_variant_is_trained_exported_through_the_gate_and_served(
    variant: tuple[str, str, str, str], real_images: Path, tmp_path: Path
) -> None:
    options = zip(("--architecture", "--activation", "--pooling", "--padding-mode"), variant, strict=True)
    train_export_and_serve(real_images, tmp_path, "--learning-rate", "0.1", *itertools.chain(*options))
    recipe = load_record(tmp_path / "checkpoint")[0].recipe
    assert (recipe.architecture, recipe.activation, recipe.pooling, recipe.padding_mode) == variant


@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_recipe_is_trained_exported_through_the_gate_and_served(recipe: str, real_images: Path, tmp_path: Path) -> None:
    model = train_export_and_serve(real_images, tmp_path, "--recipe", recipe, "--validation-images", "500")
    has_normalisation = any("norm" in name or "running" in name for name, _ in model.named_buffers())
    assert has_normalisation == (recipe != "classic")
    exported = onnx.load_from_string((tmp_path / "models" / "lenet5" / "1" / ONNX_NAME).read_bytes())
    assert "BatchNormalization" not in {node.op_type for node in exported.graph.node}
