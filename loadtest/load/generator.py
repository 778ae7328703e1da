"""Process of the load generator: LoadGen, a system under test, and what became of the requests.

It runs apart from whatever it measures with, so that nothing but the load makes it late. Its own lateness, from when a
request was due to when it was sent, is measured like a latency. Latency counts from when a request was due: what a
slow server or a slow generator keeps waiting is not left out (no coordinated omission).
"""

import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlperf_loadgen
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from loadtest.load.protocols import ServerProtocol
from loadtest.load.records import CORRECT, EXPIRED, LOST, PENDING, REFUSED, WRONG, Records
from loadtest.load.scenarios import Load, schedule_ns, settings_from
from loadtest.load.systems import CannotAskError, system_for

# Histograms count microseconds up to ten minutes, to three significant digits.
LARGEST_US = 600_000_000
SIGNIFICANT_DIGITS = 3
HISTOGRAMS = ("latency", "lateness", "queue", "inference", "transport", "refusal")

CLOCK_S = 0.002  # grpcio counts deadlines in milliseconds

READY, GO, STOP = "ready", "go", "stop"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Share of one process in what was measured. Histograms are in microseconds, in HdrHistogram's own encoding."""

    histograms: dict[str, bytes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    batch_sizes: dict[int, int] = field(default_factory=dict)  # images by the size of the batch that they ran in
    faults: list[str] = field(default_factory=list)
    started_ns: int = 0  # monotonic: when the first request was due
    ended_ns: int = 0  # when the last was answered
    cpu_s: float = 0.0
    clock_error_us: float = 0.0  # between our median latency and LoadGen's
    loadgen: dict[str, Any] = field(default_factory=dict)  # its results; none where it was interrupted
    failure: str = ""  # why there is nothing else


def new_histogram() -> HdrHistogram:
    """Returns an empty histogram; only such ones can be added up."""
    return HdrHistogram(1, LARGEST_US, SIGNIFICANT_DIGITS)


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


# --- From records to histograms --------------------------------------------------------------------------------------


def share_from(load: Load, records: Records, loadgen: dict[str, Any] | None = None, cpu_s: float = 0.0) -> Share:
    """Sums up the requests so far; those still under way do not count."""
    columns = records.columns()
    due_ns, sent_ns, done_ns, outcomes = _due_ns(load, columns), *(columns[name] for name in COLUMNS)
    correct, latency_ns, late_ns = outcomes == CORRECT, done_ns - due_ns, sent_ns - due_ns
    in_time = (sent_ns >= 0) & (late_ns < 1e9 * (load.timeout_s if load.late_s is None else load.late_s))
    # A server that says DEADLINE_EXCEEDED before the deadline refuses; the client itself says it afterwards.
    refused = (outcomes == REFUSED) | (
        (outcomes == EXPIRED) & in_time & (latency_ns < 1e9 * (load.timeout_s - CLOCK_S))
    )
    expired = (outcomes == EXPIRED) & ~refused
    told = correct & (columns["inference_us"] >= 0)
    on_server_us = columns["queue_us"] + columns["inference_us"]
    values_us = {
        "latency": latency_ns[correct] / 1e3,
        "lateness": late_ns[sent_ns >= 0] / 1e3,
        "queue": columns["queue_us"][told],
        "inference": columns["inference_us"][told],
        "transport": (done_ns - sent_ns)[told] / 1e3 - on_server_us[told],
        "refusal": (done_ns - sent_ns)[refused] / 1e3,
    }
    counted = {
        "correct": correct,
        "wrong": outcomes == WRONG,
        "lost": (outcomes == LOST) | expired,
        "refused": refused,
        "pending": outcomes == PENDING,
        "expired": expired,
        "in_time": in_time & (outcomes != PENDING),
        "within_bound": correct & (latency_ns <= load.latency_p99_ms * 1e6),
    }
    return Share(
        histograms={name: histogram_from(values).encode() for name, values in values_us.items()},
        counts={name: int(which.sum()) for name, which in counted.items()}
        | {"images": int(columns["num_images"][correct].sum())},
        batch_sizes=_images_by_batch_size(columns, correct),
        faults=records.faults,
        started_ns=int(due_ns.min()) if len(due_ns) else 0,
        ended_ns=int(done_ns.max(initial=0)),
        cpu_s=cpu_s,
        clock_error_us=_clock_error_us(latency_ns[outcomes != PENDING], loadgen) if load.scenario != "offline" else 0.0,
        loadgen=loadgen or {},
    )


COLUMNS = ("sent_ns", "done_ns", "outcomes")


def _due_ns(load: Load, columns: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Computes when each request should have been sent, on the monotonic clock."""
    if load.scenario == "offline":
        return np.where(columns["sent_ns"] < 0, columns["issued_ns"], columns["sent_ns"])  # all were due at once
    if load.scenario != "server":
        return columns["issued_ns"]
    after_first_ns = schedule_ns(load.seed, load.target_qps, len(columns["issued_ns"]))
    # LoadGen hands over no request before it is due, and at least one on time: that fixes the start.
    start_ns = int((columns["issued_ns"] - after_first_ns).min(initial=2**62))
    return after_first_ns + start_ns


def histogram_from(values_us: NDArray[Any]) -> HdrHistogram:
    """Values are rounded to whole microseconds and bounded by what the histogram can hold."""
    histogram = new_histogram()
    values, counts = np.unique(np.clip(np.rint(values_us), 0, LARGEST_US).astype(np.int64), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return histogram


def _images_by_batch_size(columns: dict[str, NDArray[np.int64]], correct: NDArray[np.bool_]) -> dict[int, int]:
    told = correct & (columns["batch_sizes"] > 0)
    sizes, inverse = np.unique(columns["batch_sizes"][told], return_inverse=True)
    num_images = np.bincount(inverse, weights=columns["num_images"][told], minlength=len(sizes))
    return dict(zip(sizes.tolist(), num_images.astype(int).tolist(), strict=True))


def _clock_error_us(latency_ns: NDArray[np.int64], loadgen: dict[str, Any] | None) -> float:
    """Compares the medians: LoadGen counts from its own schedule, and were ours another, they would differ."""
    theirs = (loadgen or {}).get("result_50.00_percentile_latency_ns")
    if theirs is None or not len(latency_ns):
        return 0.0
    return abs(float(np.median(latency_ns)) - float(theirs)) / 1e3
