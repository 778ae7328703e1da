"""Keeps one serving process running: starts it, watches it, replaces it when it ends, drains it.

The supervisor holds the sockets and the verified bytes of the model, so each process serves the same model on the same
addresses. It uses neither gRPC nor a runtime, and has one thread: so it may fork at any time. A pipe connects it with
the process, which says every second that it has not hung; a word on the pipe, or its end when the supervisor dies,
tells the process to drain.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

from atelier.files import write_atomically
from atelier.program import say
from atelier.wire import SERVICE
from serving.children import SERVING, SIGNALS, Child, Inherited, start_process
from serving.config import ServerConfig
from serving.listening import Listening
from serving.models import ModelVersion
from serving.playground.process import Playground
from serving.process import Process, Serve, run_process
from serving.upgrades import Upgrades

MAX_START_S = 300  # without a word, until a process is ready
# What breaks one process may break the next: a device that is gone, a library that crashes. So one that failed before
# it was ready, or within STABLE_S of it, is replaced at once the first time, and then after 0.25, 0.5, 1 ...
# MAX_PAUSE_S. What others cause from outside (kill -9, what ends grpcio's accept loop) is never a reason to wait.
MAX_PAUSE_S = 5.0


class Supervisor:
    """Runs a front end in a process of its own. `run` serves until SIGTERM or SIGINT."""

    def __init__(
        self,
        config: ServerConfig,
        version: ModelVersion,
        serve: Serve,
        listening: Listening,
        metrics: Listening | None,
        playground: Playground,
        front_end: str,
        why: str,
    ) -> None:
        """`why` says in words why this front end serves; it may be empty."""
        self._config, self._serve = config, serve
        self._upgrades = Upgrades(config, version)
        self._listening, self._metrics, self._playground = listening, metrics, playground
        self._front_end, self._why = front_end, why
        self._is_announced = False
        self._is_stopping = False
        self._kill_code = 0  # after a second signal
        self._num_restarts = 0
        self._num_requests = 0
        self._num_images = 0

    def run(self) -> int:
        """Returns the exit code: 0 if all that was accepted when the stop came was answered.

        A process that has served once is replaced for as long as it takes: a device may come back.
        """
        num_failures = 0
        with _signals() as self._signal_sockets:
            signals = self._signal_sockets[0]
            while True:
                child = self._start()
                self._watch(child, signals)
                exit_code = child.exit_code
                if self._is_stopping or not (self._is_announced or child.is_ready):
                    break  # if the first start failed: why, the process has said
                num_failures = num_failures + 1 if child.may_fail_again else 0
                if not self._pause(child, num_failures, signals):
                    exit_code = 0  # stopped while nothing ran
                    break
                self._num_restarts += 1
        self._upgrades.close()
        if self._is_announced:
            say(f"answered {self._num_requests} requests, {self._num_images} images")
        return self._kill_code or exit_code

    def _start(self) -> Child:
        metrics_sockets = self._metrics.sockets if self._metrics else []

        def work(link: Connection) -> int:
            process = Process(
                config=self._config,
                version=self._upgrades.version,
                previous=self._upgrades.previous,
                addresses=self._listening.addresses,
                sockets=self._listening.sockets,
                metrics_sockets=metrics_sockets,
                entrance=self._playground.entrance,
                page_address=next(iter(self._playground.addresses), ""),
                num_restarts=self._num_restarts,
                link=link,
            )
            return run_process(self._serve, process)

        inherited = [*self._signal_sockets, *self._playground.inherited, *self._upgrades.awaited()]
        return Child(*start_process(work, inherited, SERVING))

    def _look_after_page(self, events: Sequence[object], child: Child) -> None:
        versions = filter(None, (self._upgrades.version, self._upgrades.previous))
        others = (self._listening, self._metrics, self._playground.entrance.listening)
        sockets = [each for listening in others if listening for each in listening.sockets]
        inherited: Inherited = [*self._signal_sockets, *sockets, child.link, *self._upgrades.awaited()]
        self._playground.act(events, list(versions), inherited)

    def _watch(self, child: Child, signals: socket.socket) -> None:
        """Returns when the process has ended; one that is not heard of, or drains for too long, is killed."""
        next_tick_s, num_stopping = time.monotonic() + 1.0, 0
        while child.process.exitcode is None:
            timeout_s = max(0.0, next_tick_s - time.monotonic())
            awaited = [signals, child.link, child.process.sentinel, *self._playground.awaited()]
            if child.is_ready and not self._is_stopping:
                self._give_orders(child)
                timeout_s = min(timeout_s, self._upgrades.due_in_s())
                awaited += self._upgrades.awaited()
            events = wait(awaited, timeout=timeout_s)
            self._look_after_page(events, child)
            if signals in events:
                self._on_signal(signals.recv(1)[0], child)
            if child.link in events and not self._on_message(child):
                child.process.join()
            if time.monotonic() >= next_tick_s:  # ticks are counted: the machine may stand still
                next_tick_s, num_stopping = time.monotonic() + 1.0, num_stopping + self._is_stopping
                self._end_if_hung(child, num_stopping)
        while child.link.poll() and self._on_message(child):
            pass
        child.process.join()
        child.link.close()
        if not self._is_stopping:
            self._upgrades.on_end()

    def _end_if_hung(self, child: Child, num_stopping: int) -> None:
        config = self._config
        child.num_silent += 1
        longest = config.hang_timeout_s + 5 if child.is_ready else MAX_START_S
        if child.num_silent > longest:
            say(f"warning: nothing was heard of the serving process for {child.num_silent} s: it is killed")
            child.process.kill()
        elif child.num_silent + 1 > longest:  # a second before: its stacks show where it stands
            child.ask_for_stacks()
        elif num_stopping > config.limits.lame_duck_s + config.drain_timeout_s + 10:
            say(f"warning: the serving process has been draining for {num_stopping} s: it is killed")
            child.process.kill()

    def _give_orders(self, child: Child) -> None:
        for order in self._upgrades.orders():
            with contextlib.suppress(OSError):  # it has just ended
                child.link.send_bytes(json.dumps(order).encode())

    def _on_signal(self, number: int, child: Child) -> None:
        if number == signal.SIGHUP:  # also of a terminal that is closed: that ends no server
            if not self._is_stopping:
                self._upgrades.ask()
            return
        if self._is_stopping:  # the second one
            self._kill_code = 128 + number
            child.process.kill()
            return
        self._is_stopping = True
        for listening in filter(None, (self._listening, self._playground.entrance.listening)):
            listening.stop()  # the process closes the port after its lame-duck time, and nobody else keeps it open
        with contextlib.suppress(OSError):  # it has just ended
            child.link.send_bytes(json.dumps({"drain": True}).encode())
        say("draining: new calls are told to retry elsewhere")

    def _on_message(self, child: Child) -> bool:
        """Takes one message; false if there is none because the process is ending."""
        try:
            message = json.loads(child.link.recv_bytes())
        except (EOFError, OSError):
            return False
        child.num_silent = 0
        if "num_requests" in message:
            self._num_requests += message["num_requests"]
            self._num_images += message["num_images"]
        elif "failure" in message:
            child.failure, child.has_lost_device = message["failure"], message["has_lost_device"]
        elif "limits" in message:
            child.ready_s = time.monotonic()
            self._announce(message["limits"], message["labels"])
        elif "swapped" in message or "refused" in message:
            self._upgrades.conclude(message.get("refused", ""))
        return True

    def _announce(self, limits: str, labels: dict[str, str]) -> None:
        """Prints, once, where it serves; and writes it for programs, by --ready-file."""
        if self._is_announced or self._is_stopping:
            return
        self._is_announced = True
        pages = [f"http://{address}/metrics" for address in self._metrics.addresses] if self._metrics else []
        for page in pages:
            say(f"metrics at {page}")
        for page in self._playground.addresses:
            say(f"look inside at {page}")
        targets = self._listening.addresses
        say(f"serving {SERVICE} on {', '.join(targets)}: front end {self._front_end}{self._why}, {limits}")
        about = {"targets": targets, "metrics": pages, "playground": self._playground.addresses, "pid": os.getpid()}
        about |= {"front_end": self._front_end} | labels
        if self._config.ready_file:
            try:
                write_atomically(self._config.ready_file, (json.dumps(about) + "\n").encode())
            except OSError as error:
                say(f"warning: {self._config.ready_file} cannot be written: {error.strerror}")

    def _pause(self, child: Child, num_failures: int, signals: socket.socket) -> bool:
        """Waits before the next start, if it must; false if a signal came meanwhile."""
        pause_s = min(MAX_PAUSE_S, 2.0 ** min(num_failures - 4, 10)) if num_failures > 1 else 0.0
        why = f"cannot go on ({child.failure})" if child.failure else f"ended with exit code {child.exit_code}"
        say(f"warning: the serving process {why}: starting another" + (f" in {pause_s:g} s" if pause_s else ""))
        ends_s = time.monotonic() + pause_s
        while not self._is_stopping and wait([signals], timeout=max(0.0, ends_s - time.monotonic())):
            if signals.recv(1)[0] == signal.SIGHUP:
                self._upgrades.ask()
            else:
                self._is_stopping = True
        return not self._is_stopping


@contextlib.contextmanager
def _signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Makes two sockets: on the first each of SIGNALS arrives as a byte, its number, from the second."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handlers = {each: signal.signal(each, lambda *_: None) for each in SIGNALS}
        try:
            yield receiver, sender
        finally:
            signal.set_wakeup_fd(before)
            for each, handler in handlers.items():
                signal.signal(each, handler)
