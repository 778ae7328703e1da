"""Every recipe, as a user meets it: trained, exported through the gate, and served; every option up to the gate."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from atelier.client import Client
from atelier.program import run_program
from export.export import main as export_main
from loadtest.server_process import server_process
from serving.manifest import ONNX_NAME, load_manifest
from tests.export.conftest import functions_read_once  # noqa: F401 - of these exports too
from tests.idx_files import write_first_images
from training.checkpoint import load_model
from training.dataset import FashionMNIST, load_dataset
from training.recipes import ACTIVATIONS, PADDING_MODES, POOLINGS
from training.run_record import load_record
from training.train import main as train_main

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_TEST = 1024, 256

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
    write_first_images(directory, data, num_train=NUM_TRAIN, num_test=NUM_TEST)
    return directory


def test_chosen_variants_hold_every_pair_of_choices() -> None:
    choices = (LENETS, ACTIVATIONS, POOLINGS, PADDING_MODES)
    for first, second in itertools.combinations(range(len(choices)), 2):
        pairs = {(variant[first], variant[second]) for variant in VARIANTS}
        assert pairs == set(itertools.product(choices[first], choices[second])), (first, second)


def trained_and_exported(real_images: Path, directory: Path, *options: str) -> Path:
    """The version that an export has published, once every runtime gave the same answers as the model in float64."""
    where = ["--data-dir", str(real_images), "--unverified-data", "--checkpoint-dir", str(directory / "checkpoint")]
    short = ["--epochs", "1", "--device", "cpu", "--threads", "1", "--no-figures"]
    assert run_program(train_main, [*where, *short, *options]) == 0
    repository = ["--repository", str(directory / "models")]
    assert run_program(export_main, [*where, *repository, "--max-batch-size", "64", "--untrained"]) == 0
    return directory / "models" / "lenet5" / "1"


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_variant_is_trained_and_passes_the_gate_on_the_runtime_that_serves(
    variant: tuple[str, str, str, str], real_images: Path, tmp_path: Path
) -> None:
    names = ("architecture", "activation", "pooling", "padding_mode")
    options = [("--set", f"{name}={value}") for name, value in zip(names, variant, strict=True)]
    version_dir = trained_and_exported(real_images, tmp_path, "--learning-rate", "0.1", *itertools.chain(*options))
    recipe = load_record(tmp_path / "checkpoint")[0].recipe
    assert (recipe.architecture, recipe.activation, recipe.pooling, recipe.padding_mode) == variant
    report = json.loads((version_dir / "parity.json").read_bytes())
    proven = {runtime["runtime"] for runtime in report["runtimes"] if runtime["passed"]}
    assert proven >= {"torch", "onnxruntime"}
    assert load_manifest(version_dir).parity_passed


@pytest.mark.parametrize("recipe", ["tutorial", "classic", "modern"])
def test_recipe_is_trained_exported_through_the_gate_and_served(recipe: str, real_images: Path, tmp_path: Path) -> None:
    version_dir = trained_and_exported(real_images, tmp_path, "--recipe", recipe, "--set", "num_validation_images=100")
    model, _ = load_model(tmp_path / "checkpoint")
    images = load_dataset(real_images, verify=False).test_images  # (256, 1, 28, 28)
    settings = ("--repository", str(tmp_path / "models"), "--port", "0", "--device", "cpu")
    with server_process("serving", *settings) as server, Client(server.target) as client:
        served = client.classify(images, timeout_s=30).labels
    with torch.inference_mode():
        wanted = model.double()(torch.tensor(images)).argmax(1).numpy()
    assert np.array_equal(served, wanted)

    has_normalisation = any("norm" in name or "running" in name for name, _ in model.named_buffers())
    assert has_normalisation == (recipe == "modern")
    exported = onnx.load_from_string((version_dir / ONNX_NAME).read_bytes())
    assert "BatchNormalization" not in {node.op_type for node in exported.graph.node}
