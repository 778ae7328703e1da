"""LeNet-5 as the tutorial has it (Dive into Deep Learning, section 7.6; LeCun et al., 1998).

`images` go in as stored: uint8, (N, 1, 28, 28). `logits` come out: (N, 10), in the dtype of the weights. Scaling to
[0, 1] happens here and nowhere else, so no program that runs the model can get it wrong.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

NUM_CLASSES = 10


class LeNet5(nn.Module):
    """61,706 parameters; 416,520 multiply-adds an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, kernel_size=5, padding=2),  # (N, 1, 28, 28) -> (N, 6, 28, 28)
                sigmoid1=nn.Sigmoid(),
                pool1=nn.AvgPool2d(kernel_size=2, stride=2),  # (N, 6, 14, 14)
                conv2=nn.Conv2d(6, 16, kernel_size=5),  # (N, 16, 10, 10), and no activation
                pool2=nn.AvgPool2d(kernel_size=2, stride=2),  # (N, 16, 5, 5)
                flatten=nn.Flatten(),  # (N, 400)
                linear1=nn.Linear(400, 120),  # (N, 120)
                sigmoid2=nn.Sigmoid(),
                linear2=nn.Linear(120, 84),  # (N, 84)
                sigmoid3=nn.Sigmoid(),
                linear3=nn.Linear(84, NUM_CLASSES),  # (N, 10)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) uint8 -> (N, 10) logits."""
        dtype = next(self.parameters()).dtype  # float32, or float64 for the ground truth
        scaled: Tensor = images.to(dtype) / 255  # (N, 1, 28, 28) in [0, 1]
        logits: Tensor = self.layers(scaled)  # (N, 10)
        return logits


ARCHITECTURES: dict[str, type[nn.Module]] = {"tutorial": LeNet5}


def initialise(model: nn.Module, seed: int) -> None:
    """Xavier-uniform weights (Glorot & Bengio, 2010), PyTorch's own biases, from `seed` alone."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
            nn.init.xavier_uniform_(layer.weight)
