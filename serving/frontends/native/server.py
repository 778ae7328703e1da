"""Serves with the front end in Rust (native/): sockets, protocols and batches there; here the model, once a batch."""

import logging
import os
import socket
import sys
from collections.abc import Sequence

import atelier_native

from atelier.errors import DeviceError, ProgramError
from atelier.program import say
from serving.access import Tokens, tls_of
from serving.config import ServerConfig
from serving.container_memory import ContainerMemory, Pressure
from serving.frontends.native.handover import (
    MAX_CONNECTIONS,
    decode,
    max_connections,
    measured_sizes,
    settings_for,
    version_for,
)
from serving.heap import Heap
from serving.listening import is_loopback
from serving.loading import Loader
from serving.models import ServedModel
from serving.pictures.costs import cost_so_far
from serving.pictures.kinds import check_raw_images
from serving.process import Process, labels_of
from serving.request_log import CallRecord, RequestLog

logger = logging.getLogger(__name__)

TICK_S = 0.25
SWITCH_S = 0.0005  # for so long the model may wait for Python's lock while other threads run; by default it is 5 ms


def serve(process: Process) -> None:
    """Serves until the supervisor says otherwise. Raises ProgramError if it cannot go on."""
    heap = Heap()
    sys.setswitchinterval(SWITCH_S)
    model = process.open_model()
    sockets = [*process.sockets, *(process.entrance.listening.sockets if process.entrance.listening else [])]
    server = NativeServer(
        process.config,
        model,
        sockets=sockets,
        metrics_sockets=process.metrics_sockets,
        num_restarts=process.num_restarts,
        page_address=process.page_address,
        page_token_sha256=process.entrance.token_sha256,
    )
    log = RequestLog(process.config, labels_of(model))
    if not process.num_restarts and (most := max_connections()) < MAX_CONNECTIONS:
        say(f"up to {most} connections at once, for it may open no more files (ulimit -n)")
    server.start()
    for each in sockets:  # Rust has its own: when that closes them in a drain, nobody keeps the port open
        each.close()
    process.tell_ready(model)
    try:
        _wait(server, process, Loader(process, server), log, heap)
    except DeviceError as failure:
        process.tell_failure(failure)
        raise
    finally:
        log.write(server.take_records())
        log.close()
        process.tell_answered(server.num_requests, server.num_images)
    server.close()


def _wait(server: "NativeServer", process: Process, loader: Loader, log: RequestLog, heap: Heap) -> None:
    is_stopping, memory = False, ContainerMemory()
    while not server.wait(TICK_S):
        process.tell_alive()
        log.write(server.take_records())
        heap.look()
        server.look()
        server.set_pressure(memory.pressure())
        while not is_stopping and (order := process.next_order()):
            loader.carry_out(order)
            if order.drain:
                is_stopping = True
                server.stop()


class NativeServer:
    """Serves a model behind the native front end: `start`, then `wait` until it says how it ended."""

    def __init__(
        self,
        config: ServerConfig,
        model: ServedModel,
        *,
        sockets: Sequence[socket.socket],
        metrics_sockets: Sequence[socket.socket] = (),
        num_restarts: int = 0,
        page_address: str = "",
        page_token_sha256: str = "",
    ) -> None:
        """The sockets listen, and stay the caller's; the digest is of one more token, beside those of the settings.

        `page_address` is where `/` leads a browser to, if there is a page.
        Raises ConfigurationError (BAD_TLS, BAD_TOKENS) for files that are not what they must be.
        """
        self.model = model
        self._previous: ServedModel | None = None
        self._config = config
        self._sockets, self._metrics_sockets = sockets, metrics_sockets
        self._is_replacing = num_restarts > 0
        settings = settings_for(config, model)
        settings |= {"num_restarts": num_restarts, "page_address": page_address}
        settings |= {"is_page_here": is_loopback(config.playground_host)}
        self._server = atelier_native.Server(
            settings, version_for(model, config), decode, cost_so_far, check_raw_images
        )
        self._tls = tls_of(config, lambda identity: self._server.set_identity(*identity))
        self._tokens = Tokens(config.tokens, page_token_sha256) if config.tokens else None
        self.look()

    def look(self) -> None:
        """Lets in whom the files of TLS and tokens name today."""
        if self._tls:
            self._tls.look()
        if self._tokens:
            self._server.set_tokens(self._tokens.digests())

    def start(self) -> None:
        """Accepts, warms up; then health says SERVING.

        What replaces another process is warm before it accepts: whoever has connected meanwhile waits a little longer,
        and is not told to come again.
        """
        if not self._is_replacing:
            self._accept()
        self.model.backend.warm_up()
        self._server.set_serving(measured_sizes(self.model))
        if self._is_replacing:
            self._accept()

    def _accept(self) -> None:
        self._server.start(_duplicates(self._sockets), _duplicates(self._metrics_sockets))

    def swap(self, model: ServedModel) -> None:
        """Warms it up, serves it from now on, and keeps the present one for calls that ask for it.

        The one that was kept until now is freed once its last call is answered.
        """
        model.backend.warm_up()
        self._server.swap(version_for(model, self._config), measured_sizes(model))
        self._previous, self.model = self.model, model

    def keep(self, model: ServedModel) -> None:
        """Warms it up, and serves it to calls that ask for it: the version before the present one."""
        model.backend.warm_up()
        self._server.keep(version_for(model, self._config), measured_sizes(model))
        self._previous = model

    def count_refused(self, word: str) -> None:
        """Counts a version that was refused."""
        self._server.count_refused_version(word)

    def set_pressure(self, pressure: Pressure) -> None:
        """Refuses what there is no memory for."""
        self._server.set_pressure(pressure)

    def close(self) -> None:
        """Frees the device, once all has been answered."""
        for model in filter(None, (self.model, self._previous)):
            model.backend.close()

    def stop(self) -> None:
        """Begins the drain."""
        self._server.stop()

    def wait(self, timeout_s: float) -> bool:
        """Returns whether all has been answered and closed. Raises ProgramError if something was not."""
        outcome = self._server.wait(timeout_s)
        if outcome:
            raise _failure_from(outcome)
        return outcome is not None

    def take_records(self) -> list[CallRecord]:
        """Returns the calls that have ended since the last time, if the settings want them."""
        records, num_lost = self._server.take_records()
        if num_lost:
            logger.warning("%d calls ended too fast to be told of", num_lost)
        return [CallRecord(*record) for record in records]

    @property
    def num_requests(self) -> int:
        """Requests answered so far."""
        return self._server.counts()[0]

    @property
    def num_images(self) -> int:
        """Images answered so far."""
        return self._server.counts()[1]

    @property
    def num_waiting(self) -> int:
        """Images that wait for a batch."""
        return self._server.counts()[2]


def _failure_from(outcome: str) -> ProgramError:
    word, _, what = outcome.partition(": ")
    if word.startswith("BACKEND_"):
        cure = "another process takes over; the errors above say why, nvidia-smi whether a GPU is in order"
        return DeviceError(word, what.partition(" (")[0], cure)
    cure = "raise --drain-timeout-s" if word == "DRAIN_TIMEOUT" else "start it again"
    return ProgramError(word, what, cure)


def _duplicates(sockets: Sequence[socket.socket]) -> list[int]:
    """Duplicates the sockets for Rust, which closes its own."""
    return [os.dup(each.fileno()) for each in sockets]
