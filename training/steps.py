"""One training step after the other: gather, forward, loss, backward, update; on CUDA as one graph.

Everything that a step reads or writes lies in tensors that stay where they are: the epoch's order, the number of the
step, the losses. So on a GPU the whole step is captured once (per batch size) as a CUDA graph and then replayed: the
host launches one thing a step and waits for nothing. On the CPU the very same function runs as it is.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.blocks import LeNet5InBlocks
from training.model import LeNet5
from training.peers import ALONE, Peers
from training.split import Split

WARM_UP_STEPS = (
    3  # before a capture, as PyTorch's notes on CUDA graphs ask for: libraries allocate in their first calls
)


class Steps:
    """The steps of a run with plain stochastic gradient descent, or any optimiser without a schedule of its own."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        split: Split,
        batch_size: int,
        *,
        precision: str = "fp32",
        peers: Peers = ALONE,
    ) -> None:
        device, num_images = split.images.device, len(split.images)
        self.model, self.optimizer, self.split, self.batch_size = model, optimizer, split, batch_size
        self.precision, self.peers = precision, peers
        self.sizes = [len(batch) for batch in torch.split(torch.empty(num_images), batch_size)]  # S of them
        # Measured on CPUs alone: a GPU keeps the model as it is.
        in_blocks = device.type == "cpu" and LeNet5InBlocks.can_compute(model)
        self._forward = peers.shared(LeNet5InBlocks(cast(LeNet5, model)) if in_blocks else model)
        self._order = torch.zeros(num_images, dtype=torch.int64, device=device)  # (N,)
        self._places = torch.arange(min(batch_size, num_images), device=device)  # (B,)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # (1,): number of the next step
        self._numbers = torch.arange(len(self.sizes), device=device)  # (S,)
        self._losses = torch.zeros(len(self.sizes), device=device)  # (S,)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._replays: dict[tuple[float, ...], Callable[[], None]] = {}
        self.is_captured = device.type == "cuda" and peers.size == 1

    def begin(self, order: Tensor) -> None:
        """An epoch in this order, (N,) int64."""
        self._order.copy_(order)
        self._step.zero_()
        self._losses.zero_()
        self._num_correct.zero_()

    def take(self, size: int) -> None:
        """The next step, on the next `size` images; on a GPU it is only launched."""
        if not self.is_captured:
            self._run(size)
            return
        key = (size, *(group["lr"] for group in self.optimizer.param_groups))  # a graph holds its step size as a number
        if key not in self._replays:
            self._replays[key] = self._captured(size)
        self._replays[key]()

    def results(self) -> tuple[list[float], int]:
        """Each step's mean loss and how many images were right; waits for the device, and for the peers."""
        self.peers.add_up(self._losses)
        self.peers.add_up(self._num_correct)
        return self._losses.tolist(), int(self._num_correct)

    def _run(self, size: int) -> None:
        places = self._step * self.batch_size + self._places[:size]  # (B,)
        indices = self._order[places][self.peers.share]  # (B,) of images, or this process's part of them
        images, labels = self.split.images[indices], self.split.labels[indices]  # (B, 1, 28, 28), (B,)
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            logits = self._forward(images)  # (B, 10)
        loss = self._loss(logits.float(), labels, size)  # () mean over the batch, this process's share of it
        (loss * self.peers.size).backward()  # type: ignore[no-untyped-call] # the peers' gradients are averaged
        self.optimizer.step()
        # Not by index: PyTorch's deterministic way to do that sorts, which is many launches for one number.
        self._losses.copy_(torch.where(self._numbers == self._step, loss.detach(), self._losses))
        self._num_correct += (logits.argmax(dim=1) == labels).sum()
        self._step += 1

    def _loss(self, logits: Tensor, labels: Tensor, size: int) -> Tensor:
        if self.peers.size == 1:
            return cross_entropy(logits, labels)
        return cross_entropy(logits, labels, reduction="sum") / size  # shares may differ by an image

    def _captured(self, size: int) -> Callable[[], None]:
        """The step as a graph; weights, optimiser and counters are then what they were before."""
        before = self._remembered()
        step, losses, num_correct = self._step.clone(), self._losses.clone(), self._num_correct.clone()
        self._warm_up(size)
        self._restore(before)
        replay = self._graph_of(size)
        self._step.copy_(step)
        self._losses.copy_(losses)
        self._num_correct.copy_(num_correct)
        return replay

    def _remembered(self) -> dict[int, Tensor]:
        """Copies of all that a step changes, by the tensor's identity."""
        return {id(tensor): tensor.detach().clone() for tensor in self._changing()}

    def _changing(self) -> list[Tensor]:
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.state_dict(keep_vars=True).values(), *(value for value in states if torch.is_tensor(value))]

    @torch.no_grad()
    def _restore(self, before: dict[int, Tensor]) -> None:
        for tensor in self._changing():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()  # what the optimiser only made in the warm-up, such as its momentum

    def _warm_up(self, size: int) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._step.zero_()  # whatever comes behind it, there are images in the first places
                self._run(size)
        torch.cuda.current_stream().wait_stream(stream)

    def _graph_of(self, size: int) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # the gradients then lie in the graph's own memory
        with torch.cuda.graph(graph):
            self._run(size)
        return graph.replay
