"""The program computes what the model does, also where layers were folded away."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from atelier.errors import BadDataError
from export.torch_program import inference_model, program_bytes, program_from_model
from serving.manifest import PROGRAM_NAME
from tests.export.small_model import MAX_BATCH_SIZE, exported_files, noise_images, seeded_model
from training.models import initialise, model_for
from training.models.partial_convolution import PartialConv2d
from training.recipes import RECIPES

IMAGES = torch.tensor(noise_images(8))


def test_model_with_nothing_to_fold_keeps_its_weights_bit_for_bit() -> None:
    model = seeded_model()
    folded = inference_model(model).state_dict()
    assert list(folded) == list(model.state_dict())
    assert all(torch.equal(tensor, folded[name]) for name, tensor in model.state_dict().items())


def test_partial_convolution_becomes_an_ordinary_one_of_the_same_answers() -> None:
    model = model_for(dataclasses.replace(RECIPES["tutorial"], architecture="classic", activation="relu")).double()
    initialise(model, seed=0)
    folded = inference_model(model)
    assert any(isinstance(layer, PartialConv2d) for layer in model.modules())
    assert not any(isinstance(layer, PartialConv2d) for layer in folded.modules())
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-12, atol=1e-12)


def test_normalisation_that_cannot_be_folded_is_an_error() -> None:
    model = seeded_model()
    model.layers = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(1))
    model.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match="behind ReLU cannot be folded"):
        inference_model(model)


def test_normalisation_is_folded_away_and_the_answers_stay() -> None:
    model = model_for(RECIPES["modern"]).double()
    initialise(model, seed=0)
    model.train()(IMAGES)  # so that the statistics are not 0 and 1
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    model.eval()
    folded = inference_model(model)
    assert not any("Norm" in type(layer).__name__ for layer in folded.modules())
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-10, atol=1e-10)
    assert any("Norm" in type(layer).__name__ for layer in model.modules())  # the model itself is left alone


def test_normalisation_that_turns_the_largest_into_the_smallest_is_not_folded_across_a_pooling() -> None:
    model = model_for(RECIPES["modern"])
    norm1 = model.get_submodule("layers.norm1")
    with torch.no_grad():
        norm1.get_parameter("weight")[3] = -1
    with pytest.raises(TypeError, match="norm1 has a negative scale: it cannot be folded across MaxPool2d"):
        inference_model(model)


def test_normalisation_is_not_folded_across_an_average_over_padding() -> None:
    model = model_for(dataclasses.replace(RECIPES["modern"], pooling="avg"))
    model.get_submodule("layers.pool1").padding = 1  # type: ignore[assignment] # an int to the layer
    with pytest.raises(TypeError, match="norm1 cannot be folded across AvgPool2d"):
        inference_model(model)


def test_program_answers_as_the_model_does_at_every_batch_size() -> None:
    program = torch.export.load(io.BytesIO(exported_files()[PROGRAM_NAME])).module()
    for batch_size in (1, 2, 3, MAX_BATCH_SIZE):
        images = torch.tensor(noise_images(batch_size))
        with torch.inference_mode():
            np.testing.assert_allclose(program(images), seeded_model()(images), rtol=1e-6, atol=1e-6)


def test_program_for_single_images_can_be_made() -> None:
    program = program_from_model(seeded_model(), max_batch_size=1)
    logits = program.module().forward(torch.tensor(noise_images(1)))
    assert logits.shape == (1, 10)


@pytest.mark.fault("E3")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    model = seeded_model()
    model.get_parameter("layers.linear2.bias").data[3] = value
    with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.linear2\.bias"):
        program_from_model(model, MAX_BATCH_SIZE)


def test_program_file_holds_no_path_of_this_machine() -> None:
    with zipfile.ZipFile(io.BytesIO(exported_files()[PROGRAM_NAME])) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"model.py" not in content
    assert b"site-packages" not in content


@pytest.mark.fault("E19")
def test_same_weights_give_the_same_program_file() -> None:
    assert program_bytes(program_from_model(seeded_model(), MAX_BATCH_SIZE)) == exported_files()[PROGRAM_NAME]
