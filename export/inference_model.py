"""A trained model as the runtimes compute it: what only training needs is folded into the layers that stay."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from training.model import LeNet
from training.partial_convolution import PartialConv2d


def inference_model(model: LeNet) -> LeNet:
    """The same function of the images in ordinary layers: every runtime knows those, and runs them fastest.

    A batch normalisation, with its statistics fixed, scales and shifts what the layer before it puts out: that layer's
    weights take it over. A partial convolution becomes one whose absent connections are zeros. The new weights are
    computed in float64 and rounded once, to the dtype of the model.
    """
    dtype = next(model.parameters()).dtype
    folded = copy.deepcopy(model).double().eval()
    _fold(folded)
    return folded.to(dtype)


def _fold(parent: nn.Module) -> None:
    """Folds, in place, what follows upon another layer in `parent` or in one of the layers in it."""
    before = ""
    for name, layer in list(parent.named_children()):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(parent, before, _fused(parent.get_submodule(before), layer))
            delattr(parent, name)
            continue
        if isinstance(layer, PartialConv2d):
            setattr(parent, name, layer.dense())
        _fold(layer)
        before = name


def _fused(layer: nn.Module, normalisation: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return fuse_conv_bn_eval(layer, normalisation)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, normalisation)
    raise TypeError(f"a normalisation behind {type(layer).__name__} cannot be folded, only behind Conv2d and Linear")
