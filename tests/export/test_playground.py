"""What is written of networks beyond the three: paddings of another kind, and layers that nobody described."""

import dataclasses
import json
from typing import Any

import pytest
from torch import nn

from export.playground import layer_files
from export.torch_program import inference_model
from serving.manifest import LAYERS_NAME, ONNX_NAME
from tests.export.small_model import program_and_onnx, seeded_model
from training.models import LeNet, model_for
from training.recipes import RECIPES


def table_of(model: LeNet) -> dict[str, Any]:
    inferring = inference_model(model)
    files = layer_files(model, inferring, program_and_onnx(inferring)[ONNX_NAME])
    document: dict[str, Any] = json.loads(files[LAYERS_NAME])
    return {layer["name"]: layer for layer in document["layers"]}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["tutorial", "classic"])
def test_replicated_border_is_part_of_the_convolution_or_a_layer_of_its_own(architecture: str) -> None:
    recipe = dataclasses.replace(RECIPES[architecture], padding_mode="replicate", pooling="max", activation="gelu")
    layers = table_of(model_for(recipe).eval())
    padded = layers["conv1" if architecture == "tutorial" else "pad"]
    assert (padded["padding"], padded["padding_mode"]) == ([2, 2], "replicate")
    pool = layers["pool1" if architecture == "tutorial" else "s2.pool"]
    assert (pool["kind"], pool["mode"], pool["kernel"], pool["stride"]) == ("pool", "max", [2, 2], [2, 2])
    assert layers["activation1"]["function"] == "gelu"
    assert [*layers][-1] in ("linear3", "output") and [*layers.values()][-1]["value"] == "logits"


@pytest.mark.parametrize("strange", [nn.LeakyReLU(), nn.Sequential(nn.Sigmoid(), nn.Tanh())])
def test_network_with_an_unknown_layer_is_exported_without_a_table_and_says_so(
    strange: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    model, exported = seeded_model(), program_and_onnx(seeded_model())[ONNX_NAME]
    model.layers.activation1 = strange
    assert layer_files(model, model, exported) == {}
    printed = capsys.readouterr().out
    assert "note: no page will look inside this version: UNKNOWN_LAYER: layer activation1" in printed
    assert "describe it in export/playground.py" in printed
