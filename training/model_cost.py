"""Cost of a model: its layers, for `--summary`, and what a training step cannot be faster than.

    python -m training.model_cost        (one JSON document on stdout)

Counted: the multiply-adds and bytes of a step, and the kernels that it launches. Measured, on a GPU: how long a graph
of as many kernels takes that do next to nothing, for no arithmetic makes a step faster than its launches.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from atelier.errors import ResourceUnavailableError
from atelier.program import run_program
from atelier.tables import aligned
from training.device import choose_device, hardware_of, make_deterministic, set_precision
from training.models import LeNet, initialise, model_for
from training.models.partial_convolution import PartialConv2d
from training.recipes import RECIPES, Recipe
from training.split import Split
from training.steps import Steps

# Layers that slide a window over the image. A padding layer widens it: its window is one pixel.
WINDOWED = nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d
PADDING = nn.ZeroPad2d | nn.ReplicationPad2d
FORWARD_AND_BACKWARD = 3  # multiply-adds of a step over those of its forward half: by inputs and by weights go back too
NUM_REPLAYS = 200


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


# --- The floor of a step ----------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Prints the floor of the tutorial's step."""
    parser = argparse.ArgumentParser(
        prog="python -m training.model_cost", description="Print what a training step needs at least."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    device = choose_device(parser.parse_args(arguments).device)
    make_deterministic(0)
    set_precision("fp32", device)
    recipe = RECIPES["tutorial"]
    model = model_for(recipe)
    initialise(model, 0)
    multiply_adds = sum(layer.num_multiply_adds for layer in summarize(model))
    num_launches = launches_of_a_step(model, recipe, device)
    document: dict[str, Any] = {
        "hardware": hardware_of(device),
        "batch_size": recipe.batch_size,
        "multiply_adds_per_step": FORWARD_AND_BACKWARD * multiply_adds * recipe.batch_size,
        "image_bytes_per_step": 784 * recipe.batch_size,
        "launches_per_step": num_launches,
    }
    if device.type == "cuda":
        seconds = seconds_of_empty_graph(num_launches, device)
        document |= {"launch_floor_us": 1e6 * seconds, "launch_floor_examples_per_s": recipe.batch_size / seconds}
    print(json.dumps(document))
    return 0


def launches_of_a_step(model: LeNet, recipe: Recipe, device: torch.device) -> int:
    """Counts kernels, copies and fills on a GPU; on a CPU, the operators that are called."""
    batch_size = recipe.batch_size
    images = torch.zeros(batch_size, 1, 28, 28, dtype=torch.uint8, device=device)
    split = Split(images=images, labels=torch.zeros(batch_size, dtype=torch.int64, device=device))
    model.to(device)
    steps = Steps(model, recipe, split)
    steps.is_captured = False
    for _ in range(3):
        steps.begin(torch.arange(batch_size), 0, 1)
        steps.take(batch_size)
    steps.begin(torch.arange(batch_size), 0, 1)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiled:
        steps.take(batch_size)
        if device.type == "cuda":
            torch.cuda.synchronize()
    if device.type == "cuda":
        num_launches = sum(str(event.device_type).endswith("CUDA") for event in profiled.events() or ())
        if not num_launches:
            cure = "NVIDIA's driver lets only root profile, unless NVreg_RestrictProfilingToAdminUsers=0 is set"
            raise ResourceUnavailableError("NO_PROFILE", "the profiler saw no kernel of the step", cure)
        return num_launches
    return sum(event.name.startswith("aten::") for event in profiled.events() or ())


def seconds_of_empty_graph(num_kernels: int, device: torch.device) -> float:
    """Times a replay of a graph of so many kernels that each add 1 to one number, one after the other."""
    number = torch.zeros(1, device=device)
    number += 1  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_kernels):
            number += 1
    graph.replay()
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(NUM_REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - started_s) / NUM_REPLAYS


if __name__ == "__main__":
    sys.exit(run_program(main))
