"""The load generator's processes, seen from the program that starts them."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.load.generator import GO, READY, STOP, Share, generate
from loadtest.load.protocols import ServerProtocol
from loadtest.load.scenarios import Load
from loadtest.results.measurement import Measurement, measured

# Single streams are one by definition.
ONE_PROCESS = ("single_stream", "multi_stream")
TICK_S = 0.2


class Generators:
    """Processes that offer a load together. `on_tick` is called several times a second while they do.

    They are spawned, not forked: grpc's threads do not survive a fork.
    """

    def __init__(
        self,
        num_processes: int,
        servers: Mapping[str, ServerProtocol],
        num_images: int,
        on_tick: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._on_tick = on_tick
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._log_dir = tempfile.TemporaryDirectory(prefix="atelier-loadgen-")
        context = multiprocessing.get_context("spawn")
        for rank in range(num_processes):
            pipe, theirs = context.Pipe()
            log_dir = Path(self._log_dir.name, str(rank))
            log_dir.mkdir()
            arguments = (rank, num_processes, servers, num_images, theirs, str(log_dir))
            process = context.Process(target=generate, args=arguments, name=f"generator {rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def measure(self, load: Load) -> Measurement:
        """Offers a load until it is answered. On KeyboardInterrupt, what was measured until then, `interrupted`.

        Raises ResourceUnavailableError where the server cannot be asked, ProgramError where a process died.
        """
        pipes = self._pipes[:1] if load.scenario in ONE_PROCESS else self._pipes
        for pipe in pipes:
            pipe.send(load)
        answers = self._receive(pipes)
        _check(load, answers, READY)
        try:
            for pipe in pipes:
                pipe.send(GO)
            shares = self._receive(pipes)
        except KeyboardInterrupt:
            for pipe in pipes:
                pipe.send(STOP)
            return measured(load, self._receive(pipes), interrupted=True)
        _check(load, shares, Share)
        return measured(load, shares)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._log_dir.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, pipes: Sequence[Connection]) -> list[Any]:
        """One answer of each."""
        answers: dict[Any, Any] = {}
        began_s = time.monotonic()
        while len(answers) < len(pipes):
            waiting: list[Any] = [pipe for pipe in pipes if pipe not in answers]
            answered: list[Any] = wait(waiting, timeout=TICK_S)
            for ready in answered:
                try:
                    answers[ready] = ready.recv()
                except (EOFError, ConnectionResetError):
                    raise ProgramError("GENERATOR_DIED", "a process of the load generator ended early") from None
            self._on_tick(time.monotonic() - began_s)
        return [answers[pipe] for pipe in pipes]


def _check(load: Load, answers: Sequence[Any], expected: Any) -> None:
    for answer in answers:
        if isinstance(answer, Share) and answer.failure:
            what = f"{load.contender} cannot be asked: {answer.failure}"
            raise ResourceUnavailableError("NO_ANSWER", what, "is the server running, and does it speak --protocol?")
    if expected is READY and any(answer != READY for answer in answers):
        raise ProgramError("GENERATOR_CONFUSED", f"expected {READY}, got {answers}")
