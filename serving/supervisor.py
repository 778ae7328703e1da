"""One port, several server processes: start them, watch them, replace those that end, drain them all.

One Python process answers no faster than one core runs its event loop, so a server on the CPU is several processes:
each a whole server with its own model, listening on the same port; the kernel spreads connections over them. One that
dies, hangs or grows without bound is replaced, and costs only what it was working on; backoff.py tells when.

The supervisor uses neither gRPC nor a runtime, and has one thread: so it may fork at any time. A pipe connects it with
each worker. The worker tells that it is ready, and at its end what it has answered; a word on the pipe, or its end when
the supervisor dies, tells the worker to drain. What the workers count lies in the supervisor's memory, and one more
process, which nobody waits for, serves it as the metrics page.
"""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from atelier.errors import ResourceUnavailableError
from atelier.program import say
from atelier.wire import SERVICE
from serving.backoff import failures_in_a_row, pause_s
from serving.child_process import STOP_SIGNALS, Inherited, start_process
from serving.config import ServerConfig, parse_arguments
from serving.metrics import NO_METRICS, Board
from serving.metrics_process import MetricsProcess
from serving.port import is_loopback, reserve_port
from serving.unix_socket import SocketFile
from serving.worker import run_worker

MAX_AUTO_WORKERS = 4
MAX_START_S = 300  # without a word, until a worker is ready
MAX_FAILED_STARTS = 3  # in a row, of workers that were to replace others


@dataclass(eq=False)
class Worker:
    """A process, and the supervisor's end of the pipe to it."""

    process: BaseProcess
    link: Connection
    slot: int  # of the board: where it counts
    num_failures: int  # in a row, of those that it replaces
    host: str  # where it listens
    ready_s: float = math.inf  # when it told that it was, on the monotonic clock
    is_leaving: bool = False  # it drains because it cannot go on; another has been, or will be, started
    num_silent: int = 0  # seconds of the supervisor's own running in which nothing was heard of it

    @property
    def is_ready(self) -> bool:
        """It serves, or has served."""
        return self.ready_s < math.inf


class Replacement(NamedTuple):
    """A worker that is to be started."""

    due_s: float  # on the monotonic clock
    num_failures: int


class Supervisor:
    """Runs as many workers as the settings say. `run` serves until SIGTERM or SIGINT."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._board = Board()
        self._page: MetricsProcess | None = None
        self._socket_file: SocketFile | None = None
        self._workers: list[Worker] = []
        self._replacements: list[Replacement] = []
        self._num_wanted = config.workers or 1  # until the first worker tells its device
        self._is_announced = False
        self._is_stopping = False
        self._num_failed_starts = 0
        self._num_requests = 0
        self._num_images = 0
        self._exit_code = 0
        self._sockets: list[socket.socket] = []
        self._next_tick_s = 0.0
        self._num_stopping = 0  # ticks since the drain began

    def run(self) -> int:
        """The exit code: 0 if all that was accepted when the stop came was answered, else that of the first to fail.

        Raises ResourceUnavailableError if the address is taken, or workers cannot be replaced.
        """
        config = self._config
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal ends no server
        with contextlib.ExitStack() as stack:
            self._take_address(stack)
            if config.has_metrics:
                page = MetricsProcess(self._board, config.metrics_host, config.metrics_port_to_open)
                self._page = stack.enter_context(page)
            signals, sender = stack.enter_context(_signals())
            self._sockets += [signals, sender]
            self._look_after_page()
            self._start_worker()
            while self._workers or self._replacements:
                self._await_event(signals)
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            what = f"{self._num_failed_starts} new workers in a row ended before they could serve"
            raise ResourceUnavailableError("WORKERS_FAIL", what, "see their errors above")
        if self._is_announced:
            say(f"answered {self._num_requests} requests, {self._num_images} images")
        return self._exit_code

    def _take_address(self, stack: contextlib.ExitStack) -> None:
        """Keeps the port or the socket's file for this server's workers, until the stack is closed."""
        config = self._config
        if config.has_unix_socket:
            self._socket_file = stack.enter_context(SocketFile(config.host))
        else:
            reservation = stack.enter_context(reserve_port(config.host, config.port))
            self._sockets.append(reservation)
            self._config = replace(config, port=reservation.getsockname()[1])

    def _start_worker(self, num_failures: int = 0) -> None:
        slot = self._board.free_slot([worker.slot for worker in self._workers])
        metrics = self._board.metrics(slot) if self._page else NO_METRICS
        is_first = not (self._workers or self._is_announced)
        inherited = [*self._handles(), *(self._page.handles if self._page else ())]
        host = self._socket_file.hidden_host() if self._socket_file else self._config.host

        def work(link: Connection) -> int:
            return run_worker(replace(self._config, host=host), link, metrics, is_first)

        process, link = start_process(work, inherited, "worker")
        self._workers.append(Worker(process, link, slot, num_failures, host))

    def _replace(self, worker: Worker, what: str, *, is_failure: bool) -> None:
        """Starts another, now or later; `is_failure` where backoff.py says that it may have to wait."""
        now_s = time.monotonic()
        num_failures = failures_in_a_row(worker.num_failures, now_s - worker.ready_s, is_failure=is_failure)
        wait_s = pause_s(num_failures) if is_failure else 0.0
        say(f"warning: {what}" + (f" in {wait_s:g} s" if wait_s else ""))
        self._replacements.append(Replacement(now_s + wait_s, num_failures))

    def _start_replacements(self) -> None:
        """Those that are due."""
        now_s = time.monotonic()
        due = [replacement for replacement in self._replacements if replacement.due_s <= now_s]
        for replacement in due:
            self._replacements.remove(replacement)
            self._board.supervisor.count_restart()
            self._start_worker(replacement.num_failures)

    def _look_after_page(self) -> None:
        if self._page is not None:
            self._page.look_after(self._handles)

    def _handles(self) -> Inherited:
        """What no process may inherit, besides what is the page's."""
        of_file = self._socket_file.handles if self._socket_file else ()
        return [*(worker.link for worker in self._workers), *self._sockets, *of_file]

    def _await_event(self, signals: socket.socket) -> None:
        links: dict[Any, Worker] = {worker.link: worker for worker in self._workers}
        sentinels: dict[Any, Worker] = {worker.process.sentinel: worker for worker in self._workers}
        next_s = min([self._next_tick_s, *(replacement.due_s for replacement in self._replacements)])
        events = wait([signals, *links, *sentinels], timeout=max(0.0, next_s - time.monotonic()))
        if time.monotonic() >= self._next_tick_s:
            self._on_tick()
        for event in events:
            if event is signals:
                self._on_signal(signals.recv(1)[0])
            elif event in links:
                self._on_message(links[event])
            else:
                self._on_end(sentinels[event])
        self._start_replacements()  # last: a signal to stop leaves none

    def _on_tick(self) -> None:
        """Once a second: ends processes that are not heard of. It counts its own ticks: the machine may stand still."""
        self._next_tick_s = time.monotonic() + 1.0
        self._look_after_page()
        config = self._config
        self._num_stopping += 1 if self._is_stopping else 0
        most_stopping = config.lame_duck_s + config.drain_timeout_s + 10
        for worker in self._workers:
            worker.num_silent += 1
            if worker.num_silent > (config.hang_timeout_s + 5 if worker.is_ready else MAX_START_S):
                say(f"warning: nothing was heard of a worker process for {worker.num_silent} s: it is killed")
                worker.process.kill()
            elif self._num_stopping > most_stopping:
                say(f"warning: a worker process has been draining for {self._num_stopping} s: it is killed")
                worker.process.kill()

    def _on_signal(self, number: int) -> None:
        if self._is_stopping:  # the second one
            self._exit_code = 128 + number
            for worker in self._workers:
                worker.process.kill()
        else:
            self._stop()
            say("draining: new calls are told to retry elsewhere")

    def _on_message(self, worker: Worker) -> bool:
        """Takes one message; false where there is none because the worker has ended: its sentinel tells the rest."""
        try:
            message = json.loads(worker.link.recv_bytes())
        except (EOFError, OSError):
            return False
        worker.num_silent = 0
        if "num_requests" in message:
            self._num_requests += message["num_requests"]
            self._num_images += message["num_images"]
        elif "is_leaving" in message:
            worker.is_leaving = True
            if not self._is_stopping:
                what = "a worker process cannot go on: another takes over"
                self._replace(worker, what, is_failure=message["has_lost_device"])
        elif "device" in message:
            worker.ready_s = time.monotonic()
            self._num_failed_starts = 0
            if self._publish(worker):
                self._complete(**message)
        return True

    def _publish(self, worker: Worker) -> bool:
        """Lets clients reach a worker that is ready; on a port they do already. False if that failed: the end."""
        try:
            if self._socket_file and not self._is_stopping:
                self._socket_file.publish(worker.host)
            return True
        except OSError as error:
            say(f"warning: the socket cannot be put at {self._config.address}: {error.strerror}")
            self._exit_code = os.EX_UNAVAILABLE
            self._stop()
            return False

    def _complete(self, device: str, limits: str) -> None:
        """Starts the other workers once the first is ready, and tells people when all are."""
        if self._is_announced or self._is_stopping:
            return
        if self._config.workers is None:
            self._num_wanted = 1 if self._socket_file else _num_workers_for(device)
        staying = [worker for worker in self._workers if not worker.is_leaving]
        for _ in range(len(staying) + len(self._replacements), self._num_wanted):
            self._start_worker()
        if len(staying) == self._num_wanted and all(worker.is_ready for worker in staying):
            self._is_announced = True
            config, count = self._config, self._num_wanted
            if self._page is not None:
                say(f"metrics at {self._page.url}")
            workers = "one process, with" if count == 1 else f"{count} processes, each with"
            say(f"serving {SERVICE} on {config.address}: {workers} {limits}")

    def _on_end(self, worker: Worker) -> None:
        while worker.link.poll() and self._on_message(worker):
            pass
        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        self._board.release(worker.slot)
        code = worker.process.exitcode or 0
        code = 128 - code if code < 0 else code  # as a shell reports an end by signal
        if worker.is_leaving:
            return  # it has said why; another has been started, or none is needed any more
        if self._is_stopping or not (self._is_announced or worker.is_ready):
            self._exit_code = self._exit_code or code
            self._stop()  # the first start failed: why, the worker has said
            return
        self._num_failed_starts += 0 if worker.is_ready else 1
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            self._stop()
            return
        what = f"a worker process ended with exit code {code}: starting another"
        self._replace(worker, what, is_failure=worker.is_ready)

    def _stop(self) -> None:
        """Tells all workers to drain, and starts no more."""
        self._is_stopping = True
        self._replacements.clear()
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it has just ended
                worker.link.send_bytes(b"drain")


def _num_workers_for(device: str) -> int:
    """On a CPU each core can run one. On a GPU several take turns, and what that costs has yet to be measured there."""
    if device != "cpu" or sys.platform != "linux":  # elsewhere, the kernel does not spread connections
        return 1
    return min(len(os.sched_getaffinity(0)), MAX_AUTO_WORKERS)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets: on the first each SIGTERM and SIGINT arrives as a byte, its number, from the second."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handlers = {each: signal.signal(each, lambda *_: None) for each in STOP_SIGNALS}
        try:
            yield receiver, sender
        finally:
            signal.set_wakeup_fd(before)
            for each, handler in handlers.items():
                signal.signal(each, handler)


def main(arguments: list[str]) -> int:
    """`python -m serving`."""
    config = parse_arguments(arguments)
    if not (config.has_unix_socket or is_loopback(config.host)):
        say(f"warning: {config.host} may be reached by others, and there is no TLS or authentication")
    is_debugging = "--debug" in arguments
    logging.basicConfig(level=logging.INFO if is_debugging else logging.WARNING)
    if not is_debugging:  # what strangers send must not fill the log
        for name in ("grpc", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return Supervisor(config).run()
