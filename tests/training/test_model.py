"""The architectures and their options, and what `--summary` says of them."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from atelier.errors import ConfigurationError
from tests.training.conftest import call_trainer
from training import recipes
from training.checkpoint import load_model
from training.model_cost import summarize, table_from
from training.models import MODELS, initialise, model_for
from training.models.lenet import ACTIVATION_LAYERS, PADDING_LAYERS, POOLING_LAYERS, ScaledTanh
from training.models.partial_convolution import C3_TABLE, PartialConv2d
from training.recipes import RECIPES

CLASSIC = dataclasses.replace(RECIPES["tutorial"], architecture="classic", activation="scaled_tanh")
IMAGES = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_names_that_are_known_without_torch_are_those_of_the_models() -> None:
    assert tuple(MODELS) == recipes.ARCHITECTURES
    assert tuple(ACTIVATION_LAYERS) == recipes.ACTIVATIONS
    assert tuple(POOLING_LAYERS) == recipes.POOLINGS
    assert tuple(PADDING_LAYERS) == recipes.PADDING_MODES


def test_table_of_partial_connections_is_the_papers() -> None:
    sizes = [len(inputs) for inputs in C3_TABLE]
    assert sizes == [3] * 6 + [4] * 9 + [6]
    for inputs in C3_TABLE:
        assert list(inputs) == sorted(set(inputs)) and set(inputs) <= set(range(6))
    assert len(set(C3_TABLE)) == 16  # "forced to extract different features": no two see the same
    assert [sum(number in inputs for inputs in C3_TABLE) for number in range(6)] == [10] * 6


def test_partial_convolution_is_a_convolution_of_each_output_map_with_its_own_inputs() -> None:
    layer = PartialConv2d(6, C3_TABLE, kernel_size=5).double()
    nn.init.normal_(layer.bias)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 1_516
    maps = torch.randn(2, 6, 14, 14, dtype=torch.float64)
    found, kernel = layer(maps), 0
    assert found.shape == (2, 16, 10, 10)
    for output, inputs in enumerate(C3_TABLE):
        weight = layer.weight[kernel : kernel + len(inputs)][None]  # (1, inputs, 5, 5)
        wanted = conv2d(maps[:, list(inputs)], weight, layer.bias[output : output + 1])  # (2, 1, 10, 10)
        torch.testing.assert_close(found[:, output : output + 1], wanted)
        kernel += len(inputs)
    assert kernel == len(layer.weight) == 60


def test_absent_connections_carry_nothing_and_every_present_one_learns() -> None:
    layer = PartialConv2d(6, C3_TABLE, kernel_size=5)
    maps = torch.ones(1, 6, 14, 14, requires_grad=True)
    layer(maps)[:, 0].sum().backward()
    assert maps.grad is not None
    reached = maps.grad[0].abs().sum((1, 2)) > 0  # (6,): output map 0 sees the inputs 0, 1, 2
    assert reached.tolist() == [True] * 3 + [False] * 3
    layer(maps).sum().backward()
    assert layer.weight.grad is not None and bool((layer.weight.grad.abs().sum((1, 2)) > 0).all())


def test_classic_layers_have_the_sizes_of_1998() -> None:
    layers = {layer.name.removeprefix("layers."): layer for layer in summarize(model_for(CLASSIC))}
    shapes = {
        "pad": (1, 1, 32, 32),
        "c1": (1, 6, 28, 28),
        "s2.scale": (1, 6, 14, 14),
        "c3": (1, 16, 10, 10),
        "s4.scale": (1, 16, 5, 5),
        "c5": (1, 120, 1, 1),
        "f6": (1, 84),
        "output": (1, 10),
    }
    assert {name: layers[name].output_shape for name in shapes} == shapes
    num_parameters = [layers[name].num_parameters for name in shapes]
    assert num_parameters == [0, 156, 12, 1_516, 32, 48_120, 10_164, 850]
    assert sum(layer.num_parameters for layer in layers.values()) == 60_850
    assert layers["c3"].num_multiply_adds == 60 * 25 * 100  # connections, weights of each, positions


def test_summary_tells_each_shape_by_the_formula_with_its_numbers() -> None:
    formulas = {layer.name: layer.formula for layer in summarize(model_for(CLASSIC))}
    assert formulas["layers.pad"] == "floor((28 + 2*2 - 1)/1) + 1 = 32"
    assert formulas["layers.c1"] == "floor((32 + 2*0 - 5)/1) + 1 = 28"
    assert formulas["layers.s2.pool"] == "floor((28 + 2*0 - 2)/2) + 1 = 14"
    assert formulas["layers.c3"] == "floor((14 + 2*0 - 5)/1) + 1 = 10"
    assert formulas["layers.f6"] == ""
    layers = summarize(model_for(RECIPES["tutorial"]))
    assert layers[0].formula == "floor((28 + 2*2 - 5)/1) + 1 = 28"
    assert "floor((28 + 2*2 - 5)/1) + 1 = 28" in table_from(layers)


def test_scaled_tanh_keeps_plus_and_minus_one() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    torch.testing.assert_close(ScaledTanh()(x), torch.tensor([-1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", recipes.ARCHITECTURES)
def test_every_option_changes_the_answers(architecture: str) -> None:
    plain = dataclasses.replace(RECIPES["tutorial"], architecture=architecture)
    variants = [plain, *(dataclasses.replace(plain, activation=name) for name in recipes.ACTIVATIONS[1:])]
    variants += [dataclasses.replace(plain, pooling="max"), dataclasses.replace(plain, padding_mode="replicate")]
    answers = []
    for recipe in variants:
        model = model_for(recipe)
        initialise(model, seed=0)
        answers.append(model.eval()(IMAGES))
    for number, answer in enumerate(answers):
        assert answer.shape == (4, 10)
        assert not any(torch.equal(answer, other) for other in answers[:number])


def test_signals_of_the_classic_network_neither_vanish_nor_explode() -> None:
    model = model_for(CLASSIC)
    initialise(model, seed=0)
    stds = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, inputs, output: stds.append(output.std().item()))
    model(IMAGES)
    assert min(stds) > 0.1 and max(stds) < 2


@pytest.mark.parametrize("field", ["architecture", "activation", "pooling", "padding_mode"])
def test_unknown_choice_is_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"BAD_RECIPE: {field} .* is 'resnet' \(it must be one of \w+, \w+"):
        dataclasses.replace(RECIPES["tutorial"], **{field: "resnet"})  # type: ignore[arg-type]


def test_architecture_and_options_survive_a_checkpoint_and_a_resumed_run(
    data_dir: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "architecture=classic", "--set", "activation=relu", "--set", "pooling=max"]
    options += ["--learning-rate", "0.1"]
    assert call_trainer(data_dir, run_dir, *options) == 0
    model, checkpoint = load_model(run_dir)
    assert [type(layer) for layer in model.modules()].count(nn.ReLU) == 6
    assert (checkpoint.recipe.architecture, checkpoint.recipe.pooling) == ("classic", "max")
    changed = ["--epochs", "3", *options, "--set", "pooling=avg", "--resume"]
    assert call_trainer(data_dir, run_dir, *changed) == os.EX_CONFIG
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: CONFIG_MISMATCH: cannot resume") and "pooling avg != max" in error


def test_diverging_run_says_which_option_to_use(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--learning-rate", "1e38") == os.EX_DATAERR
    assert "set a lower --learning-rate" in capsys.readouterr().err
