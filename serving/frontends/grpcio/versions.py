"""Holds the versions that are loaded: the current one, and the one before it for calls that ask for it."""

import asyncio
import gc
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from atelier.contract import Images
from atelier.errors import DeviceError
from serving.batching.request import Answer
from serving.config import ServerConfig
from serving.engine import Engine
from serving.errors import NotServingError, UnknownModelError
from serving.frontends.grpcio.responses import ResponseWriter
from serving.frontends.messages import description_of, model_config
from serving.metrics import NO_METRICS, Metrics
from serving.models import ServedModel
from serving.request_log import Ran, ran

RETIRED = NotServingError("RETIRED", "this version is not served any more", "ask for the current one")


class Served:
    """A version and its engine. A call takes it once, and holds it (`with`): so no answer mixes two versions."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        manifest = engine.model.manifest
        self.engine = engine
        self.name, self.version, self.classes = manifest.model_name, str(manifest.version), manifest.classes
        self.writer = ResponseWriter(self.name, self.version, self.classes)
        self.description = description_of(engine.model, config)
        self.config = model_config(engine.model, config)
        self._has_records = config.has_records
        self._num_calls = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __enter__(self) -> Self:
        self._num_calls += 1
        self._is_idle.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._num_calls -= 1
        if not self._num_calls:
            self._is_idle.set()

    async def classify(self, images: Images, deadline_s: float, peer: str) -> Answer:
        """Answers as `Engine.classify`, and notes what the model did for the call."""
        answer = await self.engine.classify(images, deadline_s, peer)
        if self._has_records:
            ran.set(Ran(self.version, len(images), answer.queue_us, answer.inference_us, answer.batch_size))
        return answer

    async def end(self) -> None:
        """Frees the device once no call holds it."""
        await self._is_idle.wait()
        await self.engine.drain(RETIRED)
        await self.engine.close()


class Versions:
    """Lives on the event loop, as its engines do."""

    def __init__(
        self,
        model: ServedModel,
        config: ServerConfig,
        *,
        metrics: Metrics = NO_METRICS,
        on_failure: Callable[[DeviceError], None] = lambda _failure: None,
        make_engine: Callable[..., Engine] = Engine,
    ) -> None:
        """`on_failure` is told when a device is given up."""
        self._config = config
        self._make_engine = partial(make_engine, config=config, metrics=metrics, on_failure=on_failure)
        self.current = self._served(model)
        self.previous: Served | None = None
        self._num_images_of_ended = 0
        self._ending: dict[asyncio.Task[None], Served] = {}

    @property
    def loaded(self) -> list[Served]:
        """All that calls may ask for, the newest first."""
        return [self.current, *([self.previous] if self.previous else [])]

    @property
    def engines(self) -> list[Engine]:
        """All that are not closed: also those of versions that only calls under way still hold."""
        return [served.engine for served in (*self.loaded, *self._ending.values())]

    @property
    def num_images(self) -> int:
        """Images answered so far, by all versions."""
        return self._num_images_of_ended + sum(engine.num_answered for engine in self.engines)

    def find(self, name: str, version: str) -> Served:
        """Returns what a call gets that asks for this model and version; empty words ask for any.

        Raises UnknownModelError.
        """
        current, previous = self.current, self.previous
        if name and name != current.name:
            what = f"model {name[:64]!r} is not served here"
            raise UnknownModelError("UNKNOWN_MODEL", what, f"ask for {current.name!r}")
        if not version or version == current.version:
            return current
        if previous is not None and version == previous.version:
            return previous
        what = f"version {version[:64]!r} of {current.name} is not served here"
        known = f"{current.version!r}" + (f" or {previous.version!r}" if previous else "")
        raise UnknownModelError("UNKNOWN_VERSION", what, f"ask for {known}, or leave it empty")

    async def swap(self, model: ServedModel) -> None:
        """Warms it up, then serves it; the current one becomes the previous one, and that ends."""
        served = self._served(model)
        await served.engine.start()
        ended, self.previous, self.current = self.previous, self.current, served
        if ended is not None:
            task = asyncio.create_task(ended.end())
            self._ending[task] = ended
            task.add_done_callback(self._note_ended)

    async def keep(self, model: ServedModel) -> None:
        """Warms it up, then serves it as the previous one."""
        served = self._served(model)
        await served.engine.start()
        self.previous = served

    async def drain(self, reason: NotServingError) -> None:
        """Refuses new requests for this reason, and returns once every accepted one is answered."""
        await asyncio.gather(*(engine.drain(reason) for engine in self.engines))

    def abandon(self, reason: NotServingError) -> int:
        """Fails every accepted request that is not answered, and refuses new ones; returns how many these were."""
        num_unanswered = sum(engine.num_unanswered for engine in self.engines)
        for engine in self.engines:
            engine.abandon(reason)
        return num_unanswered

    async def close(self) -> None:
        """Frees the devices; a batch that takes longer than a second is left behind."""
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def _served(self, model: ServedModel) -> Served:
        return Served(self._make_engine(model), self._config)

    def _note_ended(self, task: "asyncio.Task[None]") -> None:
        self._num_images_of_ended += self._ending.pop(task).engine.num_answered
        gc.collect()  # an engine and what it is told by hold each other, and collections are rare here: see serve.py
