"""Runs the grpcio server in its process, as the supervisor wants it."""

import asyncio
import gc
import signal
from importlib import import_module
from importlib.util import find_spec

from serving.container_memory import ContainerMemory
from serving.frontends.grpcio.server import Server
from serving.heap import Heap
from serving.loading import Loader
from serving.metrics import NO_METRICS, Metrics, serve_page
from serving.process import Process, labels_of
from serving.request_log import RequestLog


def serve(process: Process) -> None:
    """Serves until the supervisor says otherwise. Raises ProgramError if it cannot go on."""
    loop = "uvloop" if find_spec("uvloop") else "asyncio"  # where it is installed: a tenth to a fifth faster under load
    import_module(loop).run(_serve(process))


async def _serve(process: Process) -> None:
    heap = Heap()
    model = process.open_model()
    metrics = Metrics(labels_of(model), process.num_restarts) if process.metrics_sockets else NO_METRICS
    if process.metrics_sockets:
        serve_page(metrics, process.metrics_sockets)
    log = RequestLog(process.config, labels_of(model))
    server = Server(
        process.config,
        model,
        process.addresses,
        metrics=metrics,
        log=log if process.config.has_records else None,
        on_failure=process.tell_failure,
        entrance=process.entrance,
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    loop.add_reader(process.link.fileno(), _on_orders, loop, process, server, None)
    await server.start()
    metrics.set_ready(lambda: server.num_waiting, lambda: server.num_waiting_requests)
    loader = Loader(process, server)
    loop.add_reader(process.link.fileno(), _on_orders, loop, process, server, loader)
    process.tell_ready(model)
    gc.freeze()  # what exists now stays: no collection needs to walk over it again
    gc.set_threshold(50_000, 20, 100)  # looking for cycles, which calls hardly leave, is 6 % of a small request
    alive = asyncio.create_task(_look_after(process, server, heap))
    try:
        await server.run_until_stopped()
    finally:
        alive.cancel()
        gc.unfreeze()
        log.close()
        process.tell_answered(server.num_requests, server.num_images)


def _on_orders(loop: asyncio.AbstractEventLoop, process: Process, server: Server, loader: Loader | None) -> None:
    """Does what the supervisor wants; drains on its death too. While the server is starting there is no loader yet."""
    while order := process.next_order():
        if order.drain:
            loop.remove_reader(process.link.fileno())
            server.stop()
            break
        if loader is not None:
            loader.carry_out(order)


async def _look_after(process: Process, server: Server, heap: Heap) -> None:
    memory = ContainerMemory()
    while True:
        process.tell_alive()
        heap.look()
        server.set_pressure(memory.pressure())
        server.look_after_certificate()
        await asyncio.sleep(0.25)
