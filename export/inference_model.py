"""Folds what only training needs into the layers that stay: a trained model as the runtimes compute it."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from training.model import LeNet
from training.partial_convolution import PartialConv2d


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
