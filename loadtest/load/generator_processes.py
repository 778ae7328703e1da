"""Processes of the load generator, seen from the program that starts them."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.load.generator import GO, READY, STOP, Share, generate
from loadtest.load.protocols import ServerProtocol
from loadtest.load.scenarios import Load
from loadtest.processes import Child
from loadtest.results.measurement import Measurement, measured

# Single streams are one by definition.
ONE_PROCESS = ("single_stream", "multi_stream")


class Generators:
    """Processes that offer a load together."""

    def __init__(self, num_processes: int, servers: Mapping[str, ServerProtocol], num_images: int) -> None:
        self._log_dir = tempfile.TemporaryDirectory(prefix="atelier-loadgen-")
        self._children = [
            Child(f"generator {rank}", generate, rank, num_processes, servers, num_images, self._log_dir.name)
            for rank in range(num_processes)
        ]

    def measure(self, load: Load) -> Measurement:
        """Offers a load until it is answered; on KeyboardInterrupt returns what was measured until then, `interrupted`.

        Raises ResourceUnavailableError if the server cannot be asked, ProgramError if a process died.
        """
        children = self._children[:1] if load.scenario in ONE_PROCESS else self._children
        _check(load, _answers(children, load), READY)
        try:
            shares = _answers(children, GO)
        except KeyboardInterrupt:
            return measured(load, _answers(children, STOP), interrupted=True)
        _check(load, shares, Share)
        return measured(load, shares)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end(patience_s=5)
        self._log_dir.cleanup()


def _answers(children: Sequence[Child], command: Any) -> list[Any]:
    for child in children:
        child.pipe.send(command)
    return [child.receive() for child in children]


def _check(load: Load, answers: Sequence[Any], expected: Any) -> None:
    for answer in answers:
        if isinstance(answer, Share) and answer.failure:
            what = f"{load.contender} cannot be asked: {answer.failure}"
            raise ResourceUnavailableError("NO_ANSWER", what, "is the server running, and does it speak --protocol?")
    if expected is READY and any(answer != READY for answer in answers):
        raise ProgramError("GENERATOR_CONFUSED", f"expected {READY}, got {answers}")
