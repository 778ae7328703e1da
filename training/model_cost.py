"""Cost of a model: its layers, for `--summary`, with what each computes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atelier.tables import aligned
from training.models.partial_convolution import PartialConv2d

# Layers that slide a window over the image. A padding layer widens it: its window is one pixel.
WINDOWED = nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d
PADDING = nn.ZeroPad2d | nn.ReplicationPad2d


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer's output for a (1, 1, 28, 28) input, and its cost."""

    name: str
    kind: str  # "Conv2d"
    output_shape: tuple[int, ...]
    formula: str  # the output's width and height from the input's: "floor((28 + 2*2 - 5)/1) + 1 = 28"; or ""
    num_parameters: int
    num_multiply_adds: int


def summarize(model: nn.Module) -> list[LayerSummary]:
    """Lists the layers of `model` that hold no other layers, in the order in which they run."""
    layers: list[LayerSummary] = []

    def note(name: str, layer: nn.Module, images: Tensor, output: Tensor) -> None:
        layers.append(
            LayerSummary(
                name=name,
                kind=type(layer).__name__,
                output_shape=tuple(output.shape),
                formula=_formula(layer, images, output),
                num_parameters=sum(parameter.numel() for parameter in layer.parameters()),
                num_multiply_adds=_num_multiply_adds(layer, output),
            )
        )

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, inputs[0], output))
        for name, layer in model.named_modules()
        if not list(layer.children())
    ]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))  # (1, 10)
    for hook in hooks:
        hook.remove()
    return layers


def _formula(layer: nn.Module, images: Tensor, output: Tensor) -> str:
    """Returns floor((in + 2p - k)/s) + 1 with the layer's numbers; images are square, and so are windows."""
    if isinstance(layer, WINDOWED):
        padding, kernel_size, stride = map(_first, (layer.padding, layer.kernel_size, layer.stride))
    elif isinstance(layer, PartialConv2d):
        padding, kernel_size, stride = 0, layer.kernel_size, 1
    elif isinstance(layer, PADDING):
        padding, kernel_size, stride = layer.padding[0], 1, 1
    else:
        return ""
    size = images.shape[-1]
    if (size + 2 * padding - kernel_size) // stride + 1 != output.shape[-1]:
        raise AssertionError(f"{layer} makes {output.shape[-1]} of {size}, which is not what the formula says")
    return f"floor(({size} + 2*{padding} - {kernel_size})/{stride}) + 1 = {output.shape[-1]}"


def _first(sizes: Any) -> int:
    """Returns the one number of a height and a width that are the same."""
    return int(sizes[0] if isinstance(sizes, tuple) else sizes)


def _num_multiply_adds(layer: nn.Module, output: Tensor) -> int:
    """Products per image: each element of the output is a sum of so many. Absent connections are not counted."""
    if isinstance(layer, PartialConv2d):
        return output[0, 0].numel() * layer.weight.numel()
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    return 0


def table_from(layers: list[LayerSummary]) -> str:
    """Renders one line per layer, and one of totals."""
    rows = [("layer", "type", "output shape", "floor((in + 2p - k)/s) + 1", "parameters", "multiply-adds")]
    for layer in layers:
        cost = (f"{layer.num_parameters:,}", f"{layer.num_multiply_adds:,}")
        rows.append((layer.name, layer.kind, str(layer.output_shape), layer.formula, *cost))
    num_parameters = sum(layer.num_parameters for layer in layers)
    num_multiply_adds = sum(layer.num_multiply_adds for layer in layers)
    return aligned([*rows, ("total", "", "", "", f"{num_parameters:,}", f"{num_multiply_adds:,}")])
