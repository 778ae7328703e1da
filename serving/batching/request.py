"""Holds a request on its way through the batches: its images, its parts, its answer."""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from atelier.contract import Images, Logits


class Answer(NamedTuple):
    """Holds what a request's future resolves to."""

    logits: Logits  # (N, 10) float32
    queue_us: int
    inference_us: int
    batch_size: int  # images, those of other requests too

    @classmethod
    def joined(cls, parts: "list[Answer]") -> "Answer":
        """Joins the answers to a split request: longest wait, sum of the batches' run times, largest batch."""
        logits = np.concatenate([part.logits for part in parts])
        queue_us, batch_size = max(part.queue_us for part in parts), max(part.batch_size for part in parts)
        return cls(logits, queue_us, sum(part.inference_us for part in parts), batch_size)


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One client's images and the future that its answer goes to."""

    images: Images  # (N, 1, 28, 28) uint8
    future: "asyncio.Future[Answer]"
    arrived_s: float
    deadline_s: float
    peer: str = ""  # the client's connection: whose share of the queue it takes
    num_taken: int = 0  # images that are already part of a batch
    parts: list[Answer] = field(default_factory=list)  # what the batches so far answered; used only when split

    @property
    def num_waiting(self) -> int:
        """Images that no batch has taken yet."""
        return len(self.images) - self.num_taken


class Part(NamedTuple):
    """The images `start` to `stop` of a request, as they lie in one batch."""

    request: Request
    start: int
    stop: int

    @property
    def images(self) -> Images:
        """(stop - start, 1, 28, 28) uint8, a view."""
        return self.request.images[self.start : self.stop]

    @property
    def is_whole(self) -> bool:
        """The part is all of its request: it was not split."""
        return self.stop - self.start == len(self.request.images)
