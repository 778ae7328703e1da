"""A worker process: a server from its start to its drain, as its supervisor tells it.

Its memory is watched. Every bound that a server can set on one call, strangers can multiply: gRPC keeps the unfinished
messages of every stream of every connection, and has no bound on their sum. So a worker that has grown too much stops
accepting, answers what it has accepted, and is replaced.
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import sys
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from atelier import __version__
from atelier.errors import DeviceError, ProgramError
from atelier.program import run_program, say
from serving.config import ServerConfig
from serving.metrics import Metrics
from serving.served_model import ServedModel, load_model
from serving.server import Server


def run_worker(config: ServerConfig, link: Connection, metrics: Metrics, is_first: bool) -> int:
    """Serves until the supervisor says otherwise; the exit code. Errors end as one line on stderr.

    The first worker tells people about the model.
    """

    def main(_arguments: list[str]) -> int:
        # Under load, a tenth to a fifth faster than asyncio's own loop.
        uvloop.run(_serve(config, link, metrics, is_first))
        return os.EX_OK

    return run_program(main, [])


async def _serve(config: ServerConfig, link: Connection, metrics: Metrics, is_first: bool) -> None:
    os.set_blocking(link.fileno(), False)  # a supervisor that does not read must not stop the event loop
    model = load_model(config)
    if is_first:
        for line in model.introduction:
            say(line)
    server = Server(config, model, shares_port=True, metrics=metrics, on_failure=partial(_tell_of, link))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    loop.add_reader(link.fileno(), _on_word, loop, link, server)
    await server.start()
    metrics.describe(_labels_of(model))
    limits = f"batches of up to {model.backend.max_batch_size} images, up to {config.max_queue_size} waiting"
    _tell(link, device=model.backend.device, limits=limits)
    gc.freeze()  # what exists now stays: no collection needs to walk over it again
    gc.set_threshold(50_000, 20, 100)  # looking for cycles, which calls hardly leave, is 6 % of a small request
    watch = asyncio.create_task(_live(link, server, metrics, config.max_memory_growth_mb << 20))
    try:
        await server.run_until_stopped()
    finally:
        watch.cancel()
        gc.unfreeze()
        _tell(link, num_requests=server.num_requests, num_images=server.num_images)


def _on_word(loop: asyncio.AbstractEventLoop, link: Connection, server: Server) -> None:
    """The supervisor says one thing, drain, and its death means the same."""
    loop.remove_reader(link.fileno())
    server.stop()


def _tell(link: Connection, **message: object) -> None:
    with contextlib.suppress(OSError):  # the supervisor is dead, or does not read
        link.send_bytes(json.dumps(message).encode())


def _tell_of(link: Connection, failure: ProgramError) -> None:
    _tell(link, is_leaving=True, has_lost_device=isinstance(failure, DeviceError))


async def _live(link: Connection, server: Server, metrics: Metrics, most_growth_bytes: int) -> None:
    """Tells the supervisor every second that the event loop runs, and the metrics what waits; watches the memory."""
    before = _resident_bytes()
    while (growth := _resident_bytes() - before) <= most_growth_bytes:
        _tell(link, is_alive=True)
        metrics.set_queue_images(server.num_waiting)  # not with every request, which would pay for it
        await asyncio.sleep(1.0)
    what = f"{growth >> 20} MB more than at the start, the limit is {most_growth_bytes >> 20}"
    server.stop(ProgramError("MEMORY_GROWN", what, "another worker takes over; raise --max-memory-growth-mb"))
    while True:
        _tell(link, is_alive=True)
        await asyncio.sleep(1.0)


def _labels_of(model: ServedModel) -> dict[str, str]:
    manifest, backend = model.manifest, model.backend
    return {
        "version": __version__,
        "model": manifest.model_name,
        "model_version": str(manifest.version),
        "backend": backend.name,
        "device": backend.device,
        "precision": manifest.precision,
    }


def _resident_bytes() -> int:
    """What the process holds in memory now; where the system does not tell, the most that it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
