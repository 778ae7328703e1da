"""LeNet-5 as the tutorial has it (Dive into Deep Learning, section 7.6), and what all architectures share.

`images` go in as stored: uint8, (N, 1, 28, 28). `logits` come out: (N, 10), in the dtype of the weights. Scaling to
[0, 1] happens here and nowhere else, so no program that runs the model can get it wrong.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from atelier.contract import NUM_CLASSES
from training.models.partial_convolution import PartialConv2d
from training.recipes import PaddingMode

WeightedLayer = nn.Conv2d | PartialConv2d | nn.Linear


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x): maps 1 to 1 and -1 to -1, where it bends most (LeCun, 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps any shape, element by element."""
        return 1.7159 * torch.tanh(x * (2 / 3))


ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "scaled_tanh": ScaledTanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}
POOLING_LAYERS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
PADDING_LAYERS: dict[str, type[nn.Module]] = {"zeros": nn.ZeroPad2d, "replicate": nn.ReplicationPad2d}


class LeNet(nn.Module):
    """Base of all architectures: images go in, logits come out, and `layers` lie between."""

    layers: nn.Sequential  # (N, 1, 28, 28) in [0, 1] -> (N, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, 1, 28, 28) uint8 to (N, 10) logits."""
        dtype = next(self.parameters()).dtype  # float32, or float64 for the ground truth
        scaled: Tensor = images.to(dtype) / 255  # (N, 1, 28, 28) in [0, 1]
        logits: Tensor = self.layers(scaled)  # (N, 10)
        return logits

    @staticmethod
    def initialise_layer(layer: WeightedLayer) -> None:
        """Draws Xavier-uniform weights (Glorot & Bengio, 2010), PyTorch's own biases."""
        layer.reset_parameters()
        nn.init.xavier_uniform_(layer.weight)


class LeNet5(LeNet):
    """The tutorial's: 61,706 parameters; 416,520 multiply-adds an image."""

    def __init__(self, activation: str = "sigmoid", pooling: str = "avg", padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        activate, pool = ACTIVATION_LAYERS[activation], POOLING_LAYERS[pooling]
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
