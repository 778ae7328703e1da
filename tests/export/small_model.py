"""A LeNet-5 with seeded weights and what an export makes of it, made once for all tests."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from atelier.contract import Images, TensorSpec
from export.onnx_model import onnx_from_program
from export.parity import truth_of
from export.parity_inputs import ParityInputs, Truth
from export.playground import layer_files
from export.torch_program import program_bytes, program_from_model
from serving.manifest import ONNX_NAME, PROGRAM_NAME, Manifest, Probes
from tests.conftest import SHARED, made_in
from training.dataset import CLASSES
from training.models import LeNet, LeNet5, initialise, model_for
from training.recipes import RECIPES

MAX_BATCH_SIZE = 16


def seeded_model() -> LeNet5:
    model = LeNet5()
    initialise(model, seed=0)
    return model.eval()


def program_and_onnx(model: LeNet, max_batch_size: int = MAX_BATCH_SIZE) -> dict[str, bytes]:
    """Exported once in a run: that takes seconds, and most processes that test then never load an exporter."""
    about = f"{model} {max_batch_size} {[(name, hash_of(value)) for name, value in model.state_dict().items()]}"

    def make(root: Path) -> None:
        program = program_from_model(model, max_batch_size)
        model_onnx = onnx_from_program(
            program, classes=CLASSES, checkpoint_sha256="0" * 64, architecture="tutorial", precision="fp32"
        )
        (root / PROGRAM_NAME).write_bytes(program_bytes(program))
        (root / ONNX_NAME).write_bytes(model_onnx)

    root = made_in(Path(os.environ[SHARED]) / hashlib.sha256(about.encode()).hexdigest(), make)
    return {name: (root / name).read_bytes() for name in (PROGRAM_NAME, ONNX_NAME)}


def hash_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


@functools.cache
def exported_files() -> dict[str, bytes]:
    return program_and_onnx(seeded_model())


def version_for_servers() -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of a model with seeded weights that says something different of nearly every image."""
    model = model_for(dataclasses.replace(RECIPES["tutorial"], activation="relu"))
    initialise(model, seed=0)
    files = program_and_onnx(model.eval(), 64)
    files |= layer_files(model, model, files[ONNX_NAME])
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return files, dataclasses.replace(manifest_for(digests), max_batch_size=64, probes=probes_of(truth_of(model)))


@functools.cache
def truth() -> Truth:
    return truth_of(seeded_model())


def noise_images(num_images: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (num_images, 1, 28, 28), dtype=np.uint8)


def noise_inputs(num_images: int = 20) -> ParityInputs:
    images = noise_images(num_images)
    return ParityInputs(images=images, labels=truth()(images).argmax(1).astype(np.uint8), edge_names=())


@functools.cache
def probes() -> Probes:
    return probes_of(truth())


def probes_of(model: Truth) -> Probes:
    images = noise_images(64, seed=7)
    return Probes.of([f"noise {index}" for index in range(len(images))], images, model(images))


def manifest_for(digests: dict[str, str]) -> Manifest:
    return Manifest(
        model_name="lenet5",
        version=0,
        architecture="tutorial",
        precision="fp32",
        classes=CLASSES,
        input=TensorSpec(name="images", dtype="uint8", shape=(-1, 1, 28, 28)),
        output=TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),
        max_batch_size=MAX_BATCH_SIZE,
        opset=20,
        checkpoint_sha256="0" * 64,
        parity_passed=True,
        files=digests,
        probes=probes(),
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The weights and biases, without the constants of the graph."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: tensor for name, tensor in tensors.items() if name.endswith((".weight", ".bias"))}


def with_weights(model_bytes: bytes, changed: dict[str, NDArray[np.float32]]) -> bytes:
    """The same ONNX model with other values in some tensors."""
    model = onnx.load_from_string(model_bytes)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    return model.SerializeToString()


def perturbed(model_bytes: bytes, name: str, index: int, by: float = 1e-2) -> bytes:
    """The same ONNX model with one element of one tensor moved."""
    weight = weights_of(onnx.load_from_string(model_bytes))[name].copy()
    weight.flat[index] += by
    return with_weights(model_bytes, {name: weight})
