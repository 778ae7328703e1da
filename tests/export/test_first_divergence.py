import copy
import io

import onnx
import pytest
import torch
from torch import nn

from atelier.contract import TOLERANCES
from export.first_divergence import Divergence, explain_failure, first_divergence, onnx_values, program_values
from export.parity import run_gate
from export.torch_program import inference_model
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME, PROGRAM_NAME
from tests.export.small_model import (
    exported_files,
    noise_images,
    noise_inputs,
    perturbed,
    program_and_onnx,
    seeded_model,
    truth,
    weights_of,
)
from training.models import initialise, model_for
from training.recipes import RECIPES

FP32 = TOLERANCES["fp32"]
IMAGE = noise_images(1)
ONNX = exported_files()[ONNX_NAME]


def divergence_of_program(model: nn.Module, program: bytes) -> Divergence | None:
    return first_divergence(model, program_values(torch.export.load(io.BytesIO(program)), IMAGE), IMAGE, FP32)


def divergence_of_onnx(model: nn.Module, onnx_bytes: bytes) -> Divergence | None:
    return first_divergence(model, onnx_values(onnx_bytes, IMAGE), IMAGE, FP32)


def test_good_models_diverge_nowhere() -> None:
    assert divergence_of_onnx(seeded_model(), ONNX) is None
    assert divergence_of_program(seeded_model(), exported_files()[PROGRAM_NAME]) is None


@pytest.mark.parametrize("name", weights_of(onnx.load_from_string(ONNX)))
def test_the_layer_of_a_moved_onnx_weight_is_named(name: str) -> None:
    divergence = divergence_of_onnx(seeded_model(), perturbed(ONNX, name, 0, by=0.1))
    assert isinstance(divergence, Divergence)
    assert divergence.layer == name.rpartition(".")[0]
    assert divergence.max_abs_diff > 1e-5


def test_the_layer_of_a_moved_program_weight_is_named() -> None:
    moved = copy.deepcopy(seeded_model())
    moved.get_parameter("layers.conv2.bias").data += 0.1
    divergence = divergence_of_program(seeded_model(), program_and_onnx(moved)[PROGRAM_NAME])
    assert isinstance(divergence, Divergence)
    assert (divergence.layer, divergence.value) == ("layers.conv2", "conv2d_1")


def test_a_layer_that_yields_no_number_is_named() -> None:
    broken = perturbed(ONNX, "layers.linear1.bias", 0, by=float("nan"))
    divergence = divergence_of_onnx(seeded_model(), broken)
    assert isinstance(divergence, Divergence)
    assert divergence.layer == "layers.linear1"


def test_a_failed_report_is_explained_in_words() -> None:
    broken = perturbed(ONNX, "layers.conv1.bias", 0, by=0.1)
    report = run_gate(truth(), [OnnxRuntimeBackend(broken, max_batch_size=2)], noise_inputs(4), "fp32")
    explained = explain_failure(report, seeded_model(), {ONNX_NAME: broken}, noise_inputs(4))
    assert explained.startswith("first diverging layer layers.conv1 (value conv2d, max_abs_diff 0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "weight"),
    [("classic", "layers.c3.weight"), ("classic", "layers.s4.scale.weight"), ("modern", "layers.conv2.weight")],
)
def test_the_layer_is_named_in_other_architectures_too_and_in_what_was_folded(recipe: str, weight: str) -> None:
    trained = model_for(RECIPES[recipe])
    initialise(trained, seed=0)
    model = inference_model(trained.eval())
    good = program_and_onnx(model)
    assert divergence_of_onnx(model, good[ONNX_NAME]) is None
    divergence = divergence_of_onnx(model, perturbed(good[ONNX_NAME], weight, 0, by=0.5))
    assert isinstance(divergence, Divergence)
    assert divergence.layer == weight.rpartition(".")[0]
