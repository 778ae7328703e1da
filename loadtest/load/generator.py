"""Processes of the load generator: LoadGen, a system under test, and what became of the requests.

Each runs apart from whatever measures with it, so that nothing but the load makes it late. Its own lateness, from when
a request was due to when it was sent, is measured like a latency. Latency counts from when a request was due: what a
slow server or a slow generator keeps waiting is not left out (no coordinated omission).
"""

import gc
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import mlperf_loadgen

from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.load.protocols import ServerProtocol
from loadtest.load.records import Records, Share, share_from
from loadtest.load.scenarios import Load, settings_from
from loadtest.load.systems import CannotAskError, system_for
from loadtest.processes import Child
from loadtest.results.measurement import Measurement, measured

READY, GO, STOP = "ready", "go", "stop"
ONE_PROCESS = ("single_stream", "multi_stream")  # single streams are one by definition


def generate(*arguments: Any) -> None:
    """Runs a Generator, made of these arguments, as a process."""
    sys.setswitchinterval(1e-4)  # LoadGen's thread must not wait 5 ms, Python's default, for the others
    Generator(*arguments).run()


class Generator:
    """Answers each Load on the pipe with a Share, until the pipe closes; can be stopped in the midst of one."""

    def __init__(
        self,
        rank: int,
        num_processes: int,
        servers: Mapping[str, ServerProtocol],
        num_images: int,
        log_dir: str,
        pipe: Connection,
    ) -> None:
        self._rank, self._num_processes = rank, num_processes
        self._servers, self._num_images = servers, num_images
        self._pipe, self._log_dir = pipe, str(Path(log_dir, str(rank)))  # LoadGen logs there
        Path(self._log_dir).mkdir()
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._running: tuple[Load, Records] | None = None

    def run(self) -> None:
        """Returns when the parent is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        while (load := self._commands.get()) is not None:
            try:
                share = self._measure(load)
            except CannotAskError as error:
                share = Share(failure=str(error))
            with self._sending:
                self._pipe.send(share)

    def _read(self) -> None:
        """Reads commands, in a thread, for the main one is LoadGen's while it runs."""
        try:
            while (command := self._pipe.recv()) != STOP:
                self._commands.put(command)
            with self._sending:
                if self._running is not None:
                    self._pipe.send(share_from(*self._running))
            os._exit(0)  # LoadGen cannot be told to stop
        except (EOFError, OSError):
            os._exit(0)

    def _measure(self, whole: Load) -> Share:
        load = whole.share(self._rank, self._num_processes)
        system = system_for(load, self._servers[load.contender], self._num_images)
        try:
            system.warm_up()
            self._pipe.send(READY)
            if self._commands.get() != GO:
                return Share()
            self._running = (load, system.records)
            before_s = time.process_time()
            results = _run_loadgen(system.issue, load, self._num_images, self._log_dir)
        finally:
            system.close()
        cpu_s = time.process_time() - before_s
        share = share_from(load, system.records, results, cpu_s)
        self._running = None
        return share


def _run_loadgen(issue: Any, load: Load, num_images: int, log_dir: str) -> dict[str, Any]:
    """Blocks until the last answer; returns LoadGen's results, as its log names them."""
    log = mlperf_loadgen.LogSettings()
    sut = mlperf_loadgen.ConstructFastSUT(issue, _ignore)
    qsl = mlperf_loadgen.ConstructQSL(num_images, num_images, _ignore, _ignore)
    gc.collect()
    gc.freeze()
    try:
        log.log_output.outdir = log_dir
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings_from(load), log, "")
        return _results_from(Path(log_dir, "mlperf_log_detail.txt"))
    finally:
        gc.unfreeze()
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)


def _ignore(*_: Any) -> None:
    """Does nothing: the images are in memory, and nothing is held back that would need flushing."""


def _results_from(log_path: Path) -> dict[str, Any]:
    """Reads LoadGen's verdict and statistics, and its errors, from the JSON lines of its log."""
    results: dict[str, Any] = {"errors": []}
    for line in log_path.read_text().splitlines():
        entry = json.loads(line.removeprefix(":::MLLOG "))
        if entry["metadata"]["is_error"]:
            results["errors"].append(str(entry["value"]))
        elif entry["key"].startswith(("result_", "early_stopping")):
            results[entry["key"]] = entry["value"]
    return results


# --- The processes, seen from the program that starts them ------------------------------------------------------------


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
