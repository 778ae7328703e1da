"""Exported versions of all architectures with seeded weights: small, real, and made once."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import torch

from export.onnx_model import onnx_from_program, opset_of
from export.playground import layers_json
from export.precision import onnx_in
from export.torch_program import inference_model, program_from_model
from serving.manifest import LAYERS_NAME, ONNX_NAME, Manifest
from serving.models import ModelVersion
from tests.export.small_model import manifest_for, noise_images
from training.dataset import CLASSES
from training.models import LeNet, initialise, model_for
from training.recipes import RECIPES

ARCHITECTURES = ("tutorial", "classic", "modern")
KNOWN = RECIPES | {"replicate": dataclasses.replace(RECIPES["tutorial"], padding_mode="replicate")}


def seeded(architecture: str, seed: int = 0) -> LeNet:
    """A model whose biases, too, are not 0: the exporter leaves out those that are."""
    model = model_for(KNOWN[architecture])
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return model.eval()


@functools.cache
def exported(architecture: str, precision: str = "fp32") -> dict[str, bytes]:
    model = seeded(architecture)
    inferring = inference_model(model)
    program = program_from_model(inferring, 64)
    about = {"checkpoint_sha256": "0" * 64, "architecture": architecture, "precision": "fp32"}
    onnx_bytes = onnx_in(precision, onnx_from_program(program, classes=CLASSES, **about), noise_images(256, seed=3))
    return {ONNX_NAME: onnx_bytes, LAYERS_NAME: layers_json(model, inferring, onnx_bytes)}


def manifest_of(files: dict[str, bytes], architecture: str, precision: str) -> Manifest:
    manifest = manifest_for({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    return dataclasses.replace(
        manifest, version=1, architecture=architecture, precision=precision, opset=opset_of(precision)
    )


def version_in(directory: Path, architecture: str, precision: str = "fp32") -> ModelVersion:
    """Writes the files; reading them checks their digests."""
    files = exported(architecture, precision)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return ModelVersion(directory=directory, manifest=manifest_of(files, architecture, precision))
