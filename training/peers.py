"""The processes that train one model together: those that `torchrun` started, or this one alone.

Each takes its part of every batch and averages the gradients with the others, so that together they make the steps that
one process would make. `torchrun` tells each its place in the environment; there is no launcher of our own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Peers:
    """This process's place among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The first one speaks and writes for all."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Of a batch: every `size`-th image."""
        return slice(self.rank, None, self.size)

    def shared(self, model: nn.Module) -> nn.Module:
        """The model to call: it averages the gradients. All begin with the first one's weights."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def add_up(self, tensor: Tensor) -> None:
        """Makes `tensor`, in each process, the sum of all processes' tensors."""
        if self.size > 1:
            distributed.all_reduce(tensor)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, for gradients to flow back through."""
        if self.size == 1:
            return tensor
        total: Tensor = _Total.apply(tensor)
        return total

    def tell(self, message: bytes, device: torch.device) -> bytes:
        """The first one's message, in every process. Bytes and no objects: those would have to be unpickled."""
        if self.size == 1:
            return message
        length = torch.tensor([len(message)], device=device)
        distributed.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.is_first:
            data.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else data)
        distributed.broadcast(data, 0)
        return bytes(data.cpu().numpy())

    def tell_tensors(self, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The first one's tensors, in every process; the others' own do not matter."""
        if self.size == 1:
            return tensors
        message = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}) if self.is_first else b""
        return load(self.tell(message, device))


class _Total(torch.autograd.Function):
    """What each process's tensor does to the sum, it does to the loss of every process."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


ALONE = Peers()


def local_rank() -> int:
    """Which GPU of its machine is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def peers_on(device: torch.device) -> Iterator[Peers]:
    """Joins the processes that `torchrun` started, over NCCL between GPUs and Gloo between CPUs; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        distributed.init_process_group("nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")
    try:
        yield Peers(rank=distributed.get_rank(), size=size)
    finally:
        distributed.destroy_process_group()
