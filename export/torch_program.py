"""Exports the model as a `torch.export` program: one graph of ATen operators for any batch size, without Python.

Everything else is made from the program, and the torch backend serves it.
"""

import io

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from training.checkpoint import check_finite


def program_from_model(model: nn.Module, max_batch_size: int) -> ExportedProgram:
    """Exports `images` (N, 1, 28, 28) uint8 -> logits (N, 10) in the weights' dtype, 1 <= N <= max_batch_size.

    Raises BadDataError NON_FINITE if a weight is NaN or infinite.
    """
    check_finite(model.state_dict(), "the model to export")
    # An example of one image would make 1 a constant of the graph: torch.export specialises sizes 0 and 1.
    example = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    batch = Dim("batch", min=1, max=max(len(example), max_batch_size))
    program = torch.export.export(model.eval(), (example,), dynamic_shapes={"images": {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds the paths of this machine
    return program


def program_bytes(program: ExportedProgram) -> bytes:
    """Saves the program as a `.pt2` file: raw weights and a graph in JSON."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()
