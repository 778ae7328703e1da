"""Batch normalisation of a batch that several processes share: by the statistics of the whole batch, in each of them.

Otherwise a process would normalise its share by the share's own statistics, and two processes would train another
network than one does. PyTorch's SyncBatchNorm does this on GPUs only; this is the same on any device.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from training.peers import Peers


class SharedBatchNorm(nn.BatchNorm2d):
    """`norm` itself, its weights and statistics, but for what a batch is; for (N, C) as for (N, C, H, W)."""

    running_mean: Tensor  # (C,); where a norm has none, it is no norm of ours
    running_var: Tensor  # (C,)
    num_batches_tracked: Tensor  # ()
    momentum: float

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, peers: Peers) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.peers = peers
        self.weight, self.bias = norm.weight, norm.bias
        self._buffers.update(norm._buffers)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype; computed in the weights' dtype. N may be 0: fewer images than peers."""
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values, shape = x.to(self.weight.dtype), (1, -1, *(1,) * (x.dim() - 2))
        others = [dim for dim in range(x.dim()) if dim != 1]  # all but the channels
        count = values.new_full((1,), x.numel() / x.shape[1])  # (1,) values of a channel
        sums = self.peers.total(torch.cat([values.sum(others), count]))  # (C + 1,)
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()  # (C,), ()
        centred = values - mean.view(shape)
        variance = self.peers.total(centred.square().sum(others)) / count  # (C,)
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked += 1


def share_statistics(model: nn.Module, peers: Peers) -> None:
    """From here on each normalisation in `model` is over the batch of all processes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SharedBatchNorm(child, peers))
