"""Makes the model a `torch.export` program: one graph of ATen operators for any batch size, without Python.

First, what only training needs is folded into the layers that stay. Everything else is made from the program, and the
torch backend serves it.
"""

import copy
import io

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from training.checkpoint import check_finite
from training.models import LeNet
from training.models.partial_convolution import PartialConv2d


def inference_model(model: LeNet) -> LeNet:
    """Builds the same function of the images of ordinary layers: every runtime knows those, and runs them fastest.

    A batch normalisation, with its statistics fixed, scales and shifts what the layer before it puts out: that layer's
    weights take it over. So they do across a pooling: the mean of scaled numbers is the scaled mean, and the largest of
    them is the scaled largest, unless the scale is negative. Raises TypeError if this cannot be. A partial
    convolution becomes one whose absent connections are zeros. The new weights are computed in float64 and rounded
    once, to the dtype of the model.
    """
    dtype = next(model.parameters()).dtype
    folded = copy.deepcopy(model).double().eval()
    _fold(folded)
    return folded.to(dtype)


def _fold(parent: nn.Module) -> None:
    """Folds, in place, what follows upon another layer in `parent` or in one of the layers in it."""
    before = ""
    pooling: nn.Module | None = None  # between `before` and a normalisation
    for name, layer in list(parent.named_children()):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if isinstance(pooling, nn.AvgPool2d) and pooling.padding != 0:
                raise TypeError(f"{name} cannot be folded across {pooling}: the zeros around are not shifted")
            if isinstance(pooling, nn.MaxPool2d) and bool((layer.weight < 0).any()):
                raise TypeError(f"{name} has a negative scale: it cannot be folded across {pooling}")
            setattr(parent, before, _fused(parent.get_submodule(before), layer))
            delattr(parent, name)
            continue
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            pooling = layer
            continue
        if isinstance(layer, PartialConv2d):
            setattr(parent, name, layer.dense())
        _fold(layer)
        before, pooling = name, None


def _fused(layer: nn.Module, normalisation: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return fuse_conv_bn_eval(layer, normalisation)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, normalisation)
    raise TypeError(f"a normalisation behind {type(layer).__name__} cannot be folded, only behind Conv2d and Linear")


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
