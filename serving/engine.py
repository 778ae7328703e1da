"""Runs a model version on its device, answering images in dynamic batches; no protocol in it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from atelier.contract import Images
from atelier.errors import DeviceError
from serving.batching.batcher import Batcher
from serving.batching.device import Executor
from serving.batching.queue import BatchQueue
from serving.batching.request import Answer
from serving.batching.watchdog import Probe
from serving.config import ServerConfig
from serving.metrics import NO_METRICS, Metrics
from serving.models import ServedModel, load_model


class Engine(Batcher):
    """Batches for one model, on one event loop: `start`, `classify` as often as wanted, `drain`, `close`."""

    def __init__(
        self,
        model: ServedModel,
        config: ServerConfig,
        *,
        metrics: Metrics = NO_METRICS,
        on_failure: Callable[[DeviceError], None] = lambda _failure: None,
        make_queue: Callable[..., BatchQueue] = BatchQueue,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        """`on_failure` is told when the device is given up; by then all that was accepted has been answered.

        Queue, clock and executor are the batcher's: a simulation has its own.
        """
        self.model = model
        queue = make_queue(
            max_batch_size=model.backend.max_batch_size,
            max_queue_size=config.max_queue_size,
            max_queue_delay_us=config.limits.max_queue_delay_us,
        )
        super().__init__(
            model.backend,
            queue,
            hang_timeout_s=config.hang_timeout_s,
            on_failure=on_failure,
            metrics=metrics,
            probe=Probe(model.manifest.probes.one(), config.limits.probe_after_s),
            clock=clock,
            executor=executor,
        )

    @classmethod
    async def open(
        cls, repository: Path, version: int | None = None, *, backend: str = "auto", device: str = "auto"
    ) -> "Engine":
        """Opens a version of the repository, the newest if none is named, and warms it up.

        For programs that have no server's settings; raises ProgramError.
        """
        config = ServerConfig(repository=repository, model_version=version, backend=backend, device=device)
        engine = cls(await asyncio.to_thread(load_model, config), config)
        await engine.start()
        return engine

    async def classify(self, images: Images, deadline_s: float, peer: str = "") -> Answer:
        """Answers (N, 1, 28, 28) uint8 with (N, 10) float32 logits; `deadline_s` is on the monotonic clock.

        No `peer` takes more than its share of a queue that others need too. Raises OverloadedError, ExpiredError,
        NotServingError and BackendError. A caller that is cancelled gives up its place in the queue.
        """
        return await self.answer_to(self.submit(images, deadline_s, peer))
