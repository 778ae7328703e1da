"""Stands for the process that serves: what is around its versions, without gRPC."""

import asyncio
import dataclasses
import math
from typing import TYPE_CHECKING

from atelier.errors import DeviceError
from serving.backends.base import Backend
from serving.errors import NotServingError
from serving.frontends.grpcio.versions import Versions
from serving.models import ServedModel
from tests.serving.fake_backend import MANIFEST
from tests.serving.simulation.device import SimulatedDevice
from tests.serving.simulation.rules import ensure

if TYPE_CHECKING:
    from tests.serving.simulation.life import Life

DRAINING = NotServingError("DRAINING", "the server is shutting down")
TIMED_OUT = NotServingError("DRAIN_TIMEOUT", "the server shut down first")


class Process:
    """Lives from its start to the end of its drain."""

    def __init__(self, life: "Life", version: int, previous: int) -> None:
        self.life, self.version = life, version
        self.devices: list[SimulatedDevice] = []
        self.refusal: NotServingError | None = None
        self.failure = ""
        self.drains_from_s = math.inf
        self.is_ready = self.has_timed_out = self.is_closing = False
        self.is_stopping = asyncio.Event()
        self.versions = Versions(
            self._model(version)[1], life.config, on_failure=self._on_failure, make_engine=life.make_engine
        )
        self._loads: list[asyncio.Task[None]] = []
        self._loading = asyncio.Lock()
        self._previous = previous
        self._num_ordered = 0  # swaps, before it was ready

    def _model(self, version: int) -> tuple[SimulatedDevice, ServedModel]:
        device = SimulatedDevice(self.life, self, version)
        self.devices.append(device)
        manifest = dataclasses.replace(MANIFEST, version=version)
        return device, ServedModel(manifest=manifest, backend=device, sha256="a" * 64)

    @property
    def loaded(self) -> list[Backend]:
        """The devices of the versions that calls may ask for."""
        return [served.engine.model.backend for served in self.versions.loaded]

    @property
    def is_idle(self) -> bool:
        """It serves, nothing is being loaded, and nothing is on a device."""
        is_serving = self.is_ready and not self.is_stopping.is_set() and all(load.done() for load in self._loads)
        return is_serving and not any(device.num_on_device for device in self.devices)

    async def live(self) -> None:
        """Starts, serves, and drains."""
        await self.versions.current.engine.start()
        self.is_ready = self.devices[0].is_loaded = True
        if self._previous:
            self._loads.append(self.life.spawn(self._keep(self._previous)))
        self._loads += [self.life.spawn(self._swap()) for _ in range(self._num_ordered)]
        await self.is_stopping.wait()
        self.refusal, self.drains_from_s = DRAINING, self.life.loop.now_s
        try:
            async with asyncio.timeout(self.life.scenario.drain_timeout_s):
                await self.versions.drain(DRAINING)
        except TimeoutError:
            self.has_timed_out = True
            self.versions.abandon(TIMED_OUT)
        self._check_drained()
        self.is_closing = True
        await self.versions.close()
        self._end()

    def stop(self, failure: str = "") -> None:
        """Begins the drain."""
        self.failure = self.failure or failure
        self.is_stopping.set()

    def swap(self) -> None:
        """Begins to load the next version, once the process is ready: before that the supervisor orders nothing."""
        if self.is_ready:
            self._loads.append(self.life.spawn(self._swap()))
        else:
            self._num_ordered += 1

    async def _swap(self) -> None:
        async with self._loading:
            life = self.life
            life.num_versions += 1
            number = life.num_versions
            if life.random.is_one_in(life.scenario.cold):
                life.cold.add(number)
            (device, model), before = self._model(number), self.versions.loaded
            try:
                await self.versions.swap(model)
            except RuntimeError:
                ensure(number in life.cold, "a version could not be warmed up:", number)
                ensure(self.versions.loaded == before, "a version that could not be warmed up has changed something")
                ensure(device.is_ended, "a device's thread is left behind:", number)
                self.devices.remove(device)
                return
            device.is_loaded = not self.is_closing  # or the process ends first
            ensure(self.versions.previous is before[0], "the version before is another:", number)
            life.previous, self.version = self.version, number
            life.version = number
            life.note(lambda: f"swapped to version {number}")

    async def _keep(self, number: int) -> None:
        async with self._loading:
            device, model = self._model(number)
            await self.versions.keep(model)
            device.is_loaded = not self.is_closing  # or the process ends first

    def _on_failure(self, failure: DeviceError) -> None:
        self.stop(failure.word)

    def check(self) -> None:
        """Holds whenever all that is due has run."""
        is_late = self.life.loop.now_s > self.drains_from_s + self.life.scenario.patience_s
        ensure(not is_late, "the drain does not end")
        if self.is_closing:
            return
        open_by_device = {engine.model.backend: engine.num_unanswered for engine in self.versions.engines}
        for device in self.devices:
            device.check()
            if device in open_by_device:
                ensure(open_by_device[device] == device.num_open, "unanswered, as is counted:", open_by_device[device])

    def _check_drained(self) -> None:
        for call in self.life.calls:
            if call.request is not None and call.device in self.devices:
                ensure(call.request.future.done(), "the drain has lost a call:", call)

    def _end(self) -> None:
        """All that is left ends with the process."""
        for device in self.devices:
            device.is_dead = True
            may_be_left = device.failure or device.is_busy or not device.is_loaded
            ensure(device.is_closed or may_be_left, "a device was not freed:", device.version)
        for task in self._loads:
            task.cancel()
