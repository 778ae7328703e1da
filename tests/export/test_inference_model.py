"""What is folded away at export computes the same."""

import dataclasses

import pytest
import torch
from torch import nn

from export.inference_model import inference_model
from tests.export.small_model import noise_images, seeded_model
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
