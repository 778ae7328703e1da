"""What `--summary` prints: a model's layers, and what they cost."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer's output for a (1, 1, 28, 28) input, and its cost."""

    name: str
    kind: str  # "Conv2d"
    output_shape: tuple[int, ...]
    num_parameters: int
    num_multiply_adds: int


def summarize(model: nn.Module) -> list[LayerSummary]:
    """The layers of `model` that hold no other layers, in the order in which they run."""
    layers: list[LayerSummary] = []

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        layers.append(
            LayerSummary(
                name=name,
                kind=type(layer).__name__,
                output_shape=tuple(output.shape),
                num_parameters=sum(parameter.numel() for parameter in layer.parameters()),
                num_multiply_adds=_num_multiply_adds(layer, output),
            )
        )

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda layer, _inputs, output, name=name: note(name, layer, output))
        for name, layer in leaves
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))  # (1, 10)
    for hook in hooks:
        hook.remove()
    return layers


def _num_multiply_adds(layer: nn.Module, output: Tensor) -> int:
    """Products per image: each element of the output is a sum of so many."""
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    return 0


def table_from(layers: list[LayerSummary]) -> str:
    """One line per layer, and one of totals."""
    lines = [f"{'layer':<18} {'type':<10} {'output shape':<16} {'parameters':>10} {'multiply-adds':>13}"]
    for layer in layers:
        cost = f"{layer.num_parameters:>10,} {layer.num_multiply_adds:>13,}"
        lines.append(f"{layer.name:<18} {layer.kind:<10} {layer.output_shape!s:<16} {cost}")
    num_parameters = sum(layer.num_parameters for layer in layers)
    num_multiply_adds = sum(layer.num_multiply_adds for layer in layers)
    lines.append(f"{'total':<18} {'':<10} {'':<16} {num_parameters:>10,} {num_multiply_adds:>13,}")
    return "\n".join(lines)
