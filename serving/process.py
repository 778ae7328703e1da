"""Describes the process that serves: what the supervisor gives it, and what the two say to each other."""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from atelier import __version__
from atelier.errors import DeviceError, ProgramError
from atelier.program import run_program, say
from serving.children import STACKS_SIGNAL
from serving.config import ServerConfig
from serving.models import ModelVersion, ServedModel
from serving.playground.entrance import Entrance
from serving.trial import Trial, load_runtime


@dataclass(frozen=True, kw_only=True)
class Order:
    """Says what the supervisor wants: one of these."""

    drain: bool = False
    load: int = 0  # a version, to be served from now on
    sha256: str = ""  # of its manifest
    refused: str = ""  # the word for which the supervisor has refused a version, to be counted


@dataclass(frozen=True, kw_only=True)
class Process:
    """Holds what a front end serves with; its methods speak to the supervisor and never wait for it."""

    config: ServerConfig
    version: ModelVersion
    previous: ModelVersion | None  # for calls that ask for it, if the version was swapped for it
    addresses: list[str]  # as gRPC's targets, ports chosen
    sockets: list[socket.socket]  # that listen there, or keep the ports
    metrics_sockets: list[socket.socket]
    entrance: Entrance  # of the page's process
    page_address: str  # empty if there is no page
    num_restarts: int  # of the processes before this one
    link: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)  # of what is said

    def open_model(self) -> ServedModel:
        """Opens the model on its device; the first process prints which."""
        model = self.version.open(self.config)
        if not self.num_restarts:
            for line in model.introduction:
                say(line)
        return model

    def try_version(self) -> bool:
        """Has another process try the version that the first process is to open; false if it is told to drain.

        Called while there is one thread. What a process that replaces another opens has been tried. Raises as `Trial`.
        """
        if self.num_restarts or not self.version.is_read:
            return True
        load_runtime(self.config)  # once, for both processes
        trial = Trial(self.version, self.config)
        if self.link in wait([trial.link, self.link], trial.left_s):
            trial.end()
            return False
        trial.conclude()
        return True

    def tell_ready(self, model: ServedModel) -> None:
        """Says that it serves, and what."""
        most = self.config.max_queue_size
        limits = f"batches of up to {model.backend.max_batch_size} images, up to {most} waiting"
        self._tell(limits=limits, labels=labels_of(model))

    def tell_alive(self) -> None:
        """Says that it has not hung; once a second is enough."""
        self._tell(is_alive=True)

    def tell_failure(self, failure: ProgramError) -> None:
        """Says that it cannot go on, and ends by itself."""
        self._tell(failure=failure.word, has_lost_device=isinstance(failure, DeviceError))

    def tell_answered(self, num_requests: int, num_images: int) -> None:
        """Says, at the end, what it has answered."""
        self._tell(num_requests=num_requests, num_images=num_images)

    def tell_swapped(self) -> None:
        """Says that the version it was told to load is the one that it serves."""
        self._tell(swapped=True)

    def tell_refused(self, why: str) -> None:
        """Says why it does not serve the version that it was told to load."""
        self._tell(refused=why)

    def next_order(self) -> Order | None:
        """Returns what the supervisor wants, if anything; its death is an order to drain."""
        if not self.link.poll():
            return None
        try:
            return Order(**json.loads(self.link.recv_bytes()))
        except (EOFError, OSError):
            return Order(drain=True)

    def _tell(self, **message: object) -> None:
        with contextlib.suppress(OSError), self.lock:  # the supervisor is dead, or does not read
            self.link.send_bytes(json.dumps(message).encode())


# A front end: serves until it is told to stop, then drains. Raises ProgramError if it cannot go on.
Serve = Callable[[Process], None]


def run_process(serve: Serve, process: Process) -> int:
    """Runs a front end in the forked process; returns its exit code. Errors end as one line on stderr."""
    os.set_blocking(process.link.fileno(), False)
    if sys.stderr is not None:  # closed by who started it
        faulthandler.register(STACKS_SIGNAL)

    def main(_arguments: list[str]) -> int:
        if process.try_version():
            serve(process)
        return os.EX_OK

    is_debugging = logging.getLogger().isEnabledFor(logging.INFO)
    return run_program(main, ["--debug"] if is_debugging else [], extras="serve")


def labels_of(model: ServedModel) -> dict[str, str]:
    """Returns what the metrics page says of a server."""
    manifest, backend = model.manifest, model.backend
    return {
        "version": __version__,
        "model": manifest.model_name,
        "model_version": str(manifest.version),
        "backend": backend.name,
        "device": backend.device,
        "precision": manifest.precision,
    }
