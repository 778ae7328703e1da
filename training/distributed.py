"""Several processes that train one model together: those that `torchrun` started, or this one alone.

Each takes its share of every batch and adds its gradients to the others', so that together they make the steps that
one process would make. `torchrun` tells each its place in the environment; there is no launcher of our own. Nothing
outside knows how many there are: alone, each function here gives back what it was given.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as group
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from training.trainer_process import is_first


def local_rank() -> int:
    """Returns which GPU of its machine is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the processes that `torchrun` started, over NCCL between GPUs and Gloo between CPUs; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        group.init_process_group("nccl", device_id=device)
    else:
        group.init_process_group("gloo")
    try:
        yield
    finally:
        group.destroy_process_group()


def size() -> int:
    """Returns how many processes share a batch."""
    return group.get_world_size() if group.is_initialized() else 1


def share() -> slice:
    """Returns this process's part of a batch: every `size`-th image."""
    return slice(group.get_rank() if size() > 1 else 0, None, size())


def add_up(tensor: Tensor) -> None:
    """Makes `tensor`, in each process, the sum of all processes' tensors."""
    if size() > 1:
        group.all_reduce(tensor)


def add_up_gradients(model: nn.Module) -> None:
    """Makes each gradient the sum of all processes' ones, in one message."""
    if size() == 1:
        return
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    add_up(together)
    for gradient, part in zip(gradients, torch.split(together, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def told(message: bytes) -> bytes:
    """Returns the first one's message, in every process. Bytes and no objects: those would have to be unpickled."""
    if size() == 1:
        return message
    device = torch.device("cuda" if group.get_backend() == "nccl" else "cpu")
    length = torch.tensor([len(message)], device=device)
    group.broadcast(length, 0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if is_first() and message:
        data.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
    group.broadcast(data, 0)
    return bytes(data.cpu().numpy())


def told_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the first one's tensors, in every process; the others' own do not matter."""
    if size() == 1:
        return tensors
    message = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}) if is_first() else b""
    return load(told(message))


# --- Batch normalisation -------------------------------------------------------------------------------------------


class _Total(torch.autograd.Function):
    """A sum over processes, through which each process's tensor acts on the loss of every process."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        add_up(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        add_up(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalises by the statistics of the whole batch, in each process; for (N, C) as for (N, C, H, W).

    By its share's own statistics two processes would train another network than one does. PyTorch's SyncBatchNorm does
    this on GPUs only. Weights and statistics are those of `norm`.
    """

    running_mean: Tensor  # (C,); no norm of ours is without
    running_var: Tensor  # (C,)
    num_batches_tracked: Tensor  # ()
    momentum: float

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self._buffers.update(norm._buffers)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps shape and dtype; computed in the weights' dtype. N may be 0: fewer images than processes."""
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values, shape = x.to(self.weight.dtype), (1, -1, *(1,) * (x.dim() - 2))
        others = [dim for dim in range(x.dim()) if dim != 1]  # all but the channels
        count = values.new_full((1,), x.numel() / x.shape[1])  # (1,) values of a channel
        sums: Tensor = _Total.apply(torch.cat([values.sum(others), count]))  # (C + 1,)
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()  # (C,), ()
        centred = values - mean.view(shape)
        squares: Tensor = _Total.apply(centred.square().sum(others))  # (C,)
        variance = squares / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked += 1


def share_statistics(model: nn.Module) -> None:
    """Makes each normalisation in `model` one over the batch of all processes."""
    if size() == 1:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SharedBatchNorm(child))
