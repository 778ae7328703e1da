"""A training step as a CUDA graph: captured once for each batch size, without a trace, and replayed from then on.

The host then launches one thing a step, whatever the step consists of, and waits for nothing. What is captured must
read and write tensors that stay where they are, numbers that change from step to step included.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Before a capture, as PyTorch's notes on CUDA graphs ask for: libraries allocate in their first calls.
WARM_UP_STEPS = 3

Work = Callable[[], None]


def captured(
    run: Work, counter: Tensor, changing: Callable[[], list[Tensor]], graph_of: Callable[[Work], Work]
) -> Work:
    """Returns what replays `run`, which makes step number `counter`, (1,) int64.

    `changing` lists the tensors that it changes; they are then what they were before. `graph_of` records it.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in changing()}
    with _side_stream(counter.device):
        for _ in range(WARM_UP_STEPS):
            counter.zero_()  # whatever comes behind it, there are images in the first places
            run()
    _restore(changing(), before)
    return graph_of(run)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@torch.no_grad()
def _restore(tensors: list[Tensor], before: dict[int, Tensor]) -> None:
    for tensor in tensors:
        if id(tensor) in before:
            tensor.copy_(before[id(tensor)])
        else:
            tensor.zero_()  # what the optimiser only made in the warm-up, such as its momentum


def cuda_graph_of(run: Work) -> Work:
    """Records what `run` launches on the GPU, without running it; returns what launches all of it again."""
    graph = torch.cuda.CUDAGraph()
    # A graph of an earlier run that is freed now, by the collector of cycles, would make CUDA give up the capture.
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        gc.enable()
    return graph.replay
