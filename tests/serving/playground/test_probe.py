"""The maps that the page shows: the values of PyTorch's own modules, whatever the architecture and precision."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atelier.contract import TOLERANCES, Images
from atelier.errors import BadDataError, ResourceUnavailableError
from export.torch_program import inference_model
from serving.manifest import LAYERS_NAME, ONNX_NAME
from serving.models import ModelVersion
from serving.playground.errors import PageError
from serving.playground.probe import Probe
from tests.export.conftest import functions_read_once  # noqa: F401 - of these exports too
from tests.export.small_model import manifest_for, noise_images
from tests.serving.playground.versions import ARCHITECTURES, exported, seeded, version_in
from training.models import LeNet

NUM_IMAGES = 50


def values_of(model: LeNet, images: Images, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """What the modules of these names put out, in float64, by hooks: (N, ...)."""
    values: dict[str, NDArray[np.float64]] = {}
    truth = copy.deepcopy(model).double()

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            values[name] = output.numpy()

        return hook

    for name in names:
        if name != "input":
            truth.layers.get_submodule("rescale" if name == "pad" else name).register_forward_hook(keep(name))
    with torch.inference_mode():
        truth(torch.tensor(images))
    return values | {"input": images / 255}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision"),
    [*itertools.product(ARCHITECTURES, ["fp32"]), ("tutorial", "fp16"), ("classic", "int8"), ("modern", "tf32")],
)
def test_every_value_is_that_of_the_module_in_pytorch(architecture: str, precision: str, tmp_path: Path) -> None:
    probe = Probe(version_in(tmp_path, architecture, precision))
    layers = probe.table["layers"]
    images = noise_images(NUM_IMAGES)
    wanted = values_of(inference_model(seeded(architecture)), images, [layer["name"] for layer in layers])
    found = np.stack([probe.look(image[None]) for image in images])  # (N, num_values)
    assert found.dtype == np.float32 and found.shape == (NUM_IMAGES, probe.table["num_values"])
    tolerance = TOLERANCES["fp32" if precision == "tf32" else precision]  # CPUs know no TF32
    end = 0
    for layer in layers:
        truth = wanted[layer["name"]].reshape(NUM_IMAGES, -1)
        assert layer["start"] == end and truth[0].size == np.prod(layer["shape"]), layer["name"]
        end += truth[0].size
        share = np.abs(found[:, layer["start"] : end] - truth) / (tolerance.atol + tolerance.rtol * np.abs(truth))
        assert share.max() <= 1, (layer["name"], share.max())
    assert end == probe.table["num_values"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_logits_are_those_of_the_session_that_serves(precision: str, tmp_path: Path) -> None:
    probe = Probe(version_in(tmp_path, "tutorial", precision))
    serving = onnxruntime.InferenceSession(exported("tutorial", precision)[ONNX_NAME])
    for image in noise_images(10):
        [served] = serving.run(["logits"], {"images": image[None]})
        assert np.array_equal(probe.look(image[None])[-10:], served[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_the_models_and_the_table_says_which_maps_a_map_sees(architecture: str, tmp_path: Path) -> None:
    probe, model = Probe(version_in(tmp_path, architecture)), inference_model(seeded(architecture))
    state = model.state_dict()
    for layer in probe.table["layers"]:
        for kind in ("weight", "bias"):
            if layer.get(kind):
                assert np.array_equal(probe.weight(layer[kind]), state[f"layers.{layer['name']}.{kind}"]), layer
        if table := layer.get("table"):
            seen = [np.flatnonzero(kernels.any((1, 2))).tolist() for kernels in probe.weight(layer["weight"])]
            assert table == seen and architecture == "classic"
    assert probe.table["num_weights"] == len(probe.weights)


def test_int8_weights_are_those_that_it_multiplies_with(tmp_path: Path) -> None:
    probe = Probe(version_in(tmp_path, "tutorial", "int8"))
    exact = inference_model(seeded("tutorial")).state_dict()["layers.conv2.weight"].numpy()
    found = probe.weight("layers.conv2.weight_DequantizeLinear_Output")
    steps = np.abs(exact).max((1, 2, 3), keepdims=True) / 127  # one scale for each output map
    assert np.abs(found - exact).max() > 0 and (np.abs(found - exact) <= 0.51 * steps).all()


@pytest.mark.parametrize(
    ("architecture", "off"), [("tutorial", "conv2"), ("classic", "s2.scale"), ("modern", "linear1")]
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_maps_that_are_switched_off_are_those_of_a_model_without_their_weights(
    architecture: str, off: str, precision: str, tmp_path: Path
) -> None:
    probe, model = Probe(version_in(tmp_path, architecture, precision)), inference_model(seeded(architecture))
    layer = model.layers.get_submodule(off)
    with torch.no_grad():
        for weight in layer.parameters():
            weight[[1, 4]] = 0
    image = noise_images(1)
    changed = probe.changed(None, {off: {1, 4}})
    found = probe.look(image, changed)
    with torch.inference_mode():
        wanted = model.double()(torch.tensor(image)).numpy()[0]
    tolerance = TOLERANCES[precision]
    assert (np.abs(found[-10:] - wanted) <= tolerance.atol + tolerance.rtol * np.abs(wanted)).all()
    assert not np.array_equal(found, probe.look(image))  # that they are on again shows that nothing stays


@pytest.mark.parametrize("maps", [{"conv2": {16}}, {"pool1": {0}}, {"conv9": {0}}, {"conv2": {-1}}])
def test_maps_that_do_not_exist_are_refused(maps: dict[str, set[int]], tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"^BAD_MAP: .*there are conv1 \(0 to 5\), conv2 \(0 to 15\), linear1"):
        Probe(version_in(tmp_path, "tutorial")).changed(None, maps)


@pytest.mark.slow
@pytest.mark.parametrize("name", [ONNX_NAME, LAYERS_NAME])
def test_a_changed_file_is_refused(name: str, tmp_path: Path) -> None:
    version = version_in(tmp_path, "tutorial")
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadDataError, match=r"^HASH_MISMATCH"):
        Probe(version)


@pytest.mark.slow
def test_version_from_before_and_a_precision_of_gpus_say_what_to_do(tmp_path: Path) -> None:
    old = ModelVersion(directory=tmp_path, manifest=manifest_for({ONNX_NAME: "0" * 64}))
    with pytest.raises(BadDataError, match=r"^OLD_EXPORT: .*exported before the playground \(make export\)"):
        Probe(old)
    with pytest.raises(ResourceUnavailableError, match=r"^NO_KERNELS: .*bf16"):
        Probe(version_in(tmp_path, "tutorial", "bf16"))
