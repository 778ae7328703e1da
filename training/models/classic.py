"""LeNet-5 as it was in 1998, table of partial connections and all.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE 86 (11), 1998.
"""

import math
from collections import OrderedDict

from torch import Tensor, nn

from atelier.contract import NUM_CLASSES
from training.models.lenet import ACTIVATION_LAYERS, PADDING_LAYERS, POOLING_LAYERS, LeNet, WeightedLayer
from training.models.partial_convolution import C3_TABLE, PartialConv2d
from training.recipes import PaddingMode


class ClassicLeNet5(LeNet):
    """The one of 1998, layer by layer: 60,850 parameters; 328,096 multiply-adds an image.

    Two things differ. The output layer is linear: the paper's holds drawings of digits to compare F6 with, and there
    are none of garments. And the images are 28x28 and are padded here to the paper's 32x32.
    """

    def __init__(
        self, activation: str = "scaled_tanh", pooling: str = "avg", padding_mode: PaddingMode = "zeros"
    ) -> None:
        super().__init__()
        activate, pool = ACTIVATION_LAYERS[activation], POOLING_LAYERS[pooling]
        self.layers = nn.Sequential(
            OrderedDict(
                pad=PADDING_LAYERS[padding_mode](2),  # (N, 1, 32, 32)
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
        """Draws uniform weights with standard deviation 1 / sqrt(F), F being the number of inputs of a unit; biases 0.

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
        """Maps any shape, element by element."""
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
