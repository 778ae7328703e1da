"""LeNet-5: as the tutorial has it (Dive into Deep Learning, section 7.6), and as it was in 1998.

`images` go in as stored: uint8, (N, 1, 28, 28). `logits` come out: (N, 10), in the dtype of the weights. Scaling to
[0, 1] happens here and nowhere else, so no program that runs the model can get it wrong.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE 86 (11), 1998.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from atelier.contract import NUM_CLASSES
from training.partial_convolution import C3_TABLE, PartialConv2d
from training.recipes import PaddingMode, Recipe

WeightedLayer = nn.Conv2d | PartialConv2d | nn.Linear
NormT = TypeVar("NormT", nn.BatchNorm1d, nn.BatchNorm2d)


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x): maps 1 to 1 and -1 to -1, where it bends most (LeCun, 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; element by element."""
        return 1.7159 * torch.tanh(x * (2 / 3))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "scaled_tanh": ScaledTanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}
POOLINGS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
PADDINGS: dict[str, type[nn.Module]] = {"zeros": nn.ZeroPad2d, "replicate": nn.ReplicationPad2d}


class LeNet(nn.Module):
    """What all architectures share: images go in, logits come out, and `layers` lie between."""

    layers: nn.Sequential  # (N, 1, 28, 28) in [0, 1] -> (N, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) uint8 -> (N, 10) logits."""
        dtype = next(self.parameters()).dtype  # float32, or float64 for the ground truth
        scaled: Tensor = images.to(dtype) / 255  # (N, 1, 28, 28) in [0, 1]
        logits: Tensor = self.layers(scaled)  # (N, 10)
        return logits

    @staticmethod
    def initialise_layer(layer: WeightedLayer) -> None:
        """Xavier-uniform weights (Glorot & Bengio, 2010), PyTorch's own biases."""
        layer.reset_parameters()
        nn.init.xavier_uniform_(layer.weight)


class LeNet5(LeNet):
    """The tutorial's: 61,706 parameters; 416,520 multiply-adds an image."""

    def __init__(self, activation: str = "sigmoid", pooling: str = "avg", padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        activate, pool = ACTIVATIONS[activation], POOLINGS[pooling]
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, kernel_size=5, padding=2, padding_mode=padding_mode),  # (N, 6, 28, 28)
                activation1=activate(),
                pool1=pool(kernel_size=2, stride=2),  # (N, 6, 14, 14)
                conv2=nn.Conv2d(6, 16, kernel_size=5),  # (N, 16, 10, 10), and no activation
                pool2=pool(kernel_size=2, stride=2),  # (N, 16, 5, 5)
                flatten=nn.Flatten(),  # (N, 400)
                linear1=nn.Linear(400, 120),  # (N, 120)
                activation2=activate(),
                linear2=nn.Linear(120, 84),  # (N, 84)
                activation3=activate(),
                linear3=nn.Linear(84, NUM_CLASSES),  # (N, 10)
            )
        )


class ClassicLeNet5(LeNet):
    """The one of 1998, layer by layer: 60,850 parameters; 328,096 multiply-adds an image.

    Two things differ. The output layer is linear: the paper's holds drawings of digits to compare F6 with, and there
    are none of garments. And the images are 28x28 and are padded here to the paper's 32x32.
    """

    def __init__(
        self, activation: str = "scaled_tanh", pooling: str = "avg", padding_mode: PaddingMode = "zeros"
    ) -> None:
        super().__init__()
        activate, pool = ACTIVATIONS[activation], POOLINGS[pooling]
        self.layers = nn.Sequential(
            OrderedDict(
                pad=PADDINGS[padding_mode](2),  # (N, 1, 32, 32)
                rescale=Rescale(-0.1, 1.175),  # the paper's values of background and foreground
                c1=nn.Conv2d(1, 6, kernel_size=5),  # (N, 6, 28, 28)
                activation1=activate(),
                s2=Subsampling(6, pool),  # (N, 6, 14, 14)
                activation2=activate(),
                c3=PartialConv2d(6, C3_TABLE, kernel_size=5),  # (N, 16, 10, 10); 1,516 parameters
                activation3=activate(),
                s4=Subsampling(16, pool),  # (N, 16, 5, 5)
                activation4=activate(),
                c5=nn.Conv2d(16, 120, kernel_size=5),  # (N, 120, 1, 1)
                activation5=activate(),
                flatten=nn.Flatten(),  # (N, 120)
                f6=nn.Linear(120, 84),  # (N, 84)
                activation6=activate(),
                output=nn.Linear(84, NUM_CLASSES),  # (N, 10)
            )
        )

    @staticmethod
    def initialise_layer(layer: WeightedLayer) -> None:
        """Uniform with standard deviation 1 / sqrt(F), F being the number of inputs of a unit; biases 0.

        LeCun, Bottou, Orr, Mueller: Efficient BackProp (1998), section 4.6. The paper on LeNet-5 has the bound 2.4 / F,
        so small that it needs the paper's second-order step sizes. S2 and S4 begin as plain pooling.
        """
        if isinstance(layer, PartialConv2d):
            layer.reset_parameters()
            return
        num_inputs = layer.weight[0].numel()
        if num_inputs == 1:
            nn.init.ones_(layer.weight)
        else:
            nn.init.uniform_(layer.weight, -math.sqrt(3 / num_inputs), math.sqrt(3 / num_inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Rescale(nn.Module):
    """[0, 1] to [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; element by element."""
        return x * (self.high - self.low) + self.low


class Subsampling(nn.Sequential):
    """Pooling over 2x2, then a trained coefficient and a trained bias for each map (layers S2 and S4)."""

    def __init__(self, num_maps: int, pool: type[nn.AvgPool2d] | type[nn.MaxPool2d]) -> None:
        super().__init__(
            OrderedDict(
                pool=pool(kernel_size=2, stride=2),  # (N, C, H, W) -> (N, C, H/2, W/2)
                scale=nn.Conv2d(num_maps, num_maps, kernel_size=1, groups=num_maps),  # the same shape
            )
        )


class ModernLeNet5(LeNet):
    """LeNet-5's shape, with today's means: 60,194 parameters, and 176 scales of normalisations that stay 1.

    Of the tutorial's 61,706 parameters 48,120 are in the first dense layer. Here most of them are in the second
    convolution, which sees the whole of each map (padding) and is pooled to 3x3. 6.1 million multiply-adds an image.

    Pooling comes first, then normalisation with a trained shift alone, then the activation: a quarter and a sixteenth
    of the work for both, and maxima of what is yet unbounded (airbench: Jordan, 94 % on CIFAR-10 in 3.29 s, 2024).
    """

    def __init__(self, activation: str = "gelu", pooling: str = "max", padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        activate, pool = ACTIVATIONS[activation], POOLINGS[pooling]

        def conv(num_inputs: int, num_outputs: int) -> nn.Conv2d:
            return nn.Conv2d(num_inputs, num_outputs, 5, padding=2, padding_mode=padding_mode, bias=False)

        self.layers = nn.Sequential(
            OrderedDict(
                conv1=conv(1, 24),  # (N, 24, 28, 28)
                pool1=pool(kernel_size=2, stride=2),  # (N, 24, 14, 14)
                norm1=shifted(nn.BatchNorm2d(24)),
                activation1=activate(),
                conv2=conv(24, 48),  # (N, 48, 14, 14)
                pool2=pool(kernel_size=4, stride=4),  # (N, 48, 3, 3)
                norm2=shifted(nn.BatchNorm2d(48)),
                activation2=activate(),
                flatten=nn.Flatten(),  # (N, 432)
                linear1=nn.Linear(432, 64, bias=False),  # (N, 64)
                norm3=shifted(nn.BatchNorm1d(64)),
                activation3=activate(),
                linear2=nn.Linear(64, 40, bias=False),  # (N, 40)
                norm4=shifted(nn.BatchNorm1d(40)),
                activation4=activate(),
                linear3=nn.Linear(40, NUM_CLASSES),  # (N, 10)
            )
        )

    @staticmethod
    def initialise_layer(layer: WeightedLayer) -> None:
        """PyTorch's own: uniform within 1 / sqrt(F), F being the number of inputs of a unit."""
        layer.reset_parameters()


def shifted(normalisation: NormT) -> NormT:
    """The normalisation, whose scale stays 1: so it can be folded into what is before a pooling of maxima, too."""
    normalisation.weight.requires_grad_(False)
    return normalisation


ARCHITECTURES: dict[str, Callable[[str, str, PaddingMode], LeNet]] = {
    "tutorial": LeNet5,
    "classic": ClassicLeNet5,
    "modern": ModernLeNet5,
}


def model_for(recipe: Recipe) -> LeNet:
    """The recipe's model, with weights that are yet to be initialised."""
    return ARCHITECTURES[recipe.architecture](recipe.activation, recipe.pooling, recipe.padding_mode)


def initialise(model: LeNet, seed: int) -> None:
    """The architecture's own initial weights, from `seed` alone."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, WeightedLayer):
            model.initialise_layer(layer)
