"""What a training step cannot be faster than: `python -m training.floor`, one JSON document on stdout.

Counted: the multiply-adds and bytes of a step, and the kernels that it launches. Measured, on a GPU: how long a graph
of as many kernels takes that do next to nothing, for no arithmetic makes a step faster than its launches.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from atelier.errors import ResourceUnavailableError
from atelier.program import run_program
from training.device import choose_device, hardware_of, make_deterministic, set_precision
from training.model import LeNet, initialise, model_for
from training.recipes import RECIPES, Recipe
from training.split import Split
from training.steps import Steps
from training.summary import summarize

FORWARD_AND_BACKWARD = 3  # multiply-adds of a step over those of its forward half: by inputs and by weights go back too
NUM_REPLAYS = 200


def main(arguments: list[str]) -> int:
    """Prints the floor of the tutorial's step."""
    parser = argparse.ArgumentParser(prog="python -m training.floor", description=(__doc__ or "").partition("\n")[0])
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
    """Kernels, copies and fills on a GPU; on a CPU, the operators that are called."""
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
    """A replay of a graph of so many kernels that each add 1 to one number, one after the other."""
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
