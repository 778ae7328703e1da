"""Records of one process's requests: when each was handed over, sent and answered, and whether rightly; and figures."""

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from loadtest.load.load_clients import IS_NATIVE_HERE, OK, Answers
from loadtest.load.protocols import Checked, ServerProtocol, none_found
from loadtest.load.scenarios import Load, schedule_ns

# What became of a request. A refusal is an answer that sheds load, and DEADLINE_EXCEEDED may be one; any other failure
# is a lost answer.
PENDING, CORRECT, WRONG, LOST, REFUSED, EXPIRED = range(6)
MAX_FAULTS = 5  # named by a process, so that a broken server does not fill the memory
OUTCOMES = {
    OK: CORRECT,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: EXPIRED,
}

RESULTS = ("number", "sent_ns", "done_ns", "outcomes", "queue_us", "inference_us", "batch_sizes")

# Histograms count microseconds up to ten minutes, to three significant digits.
LARGEST_US = 600_000_000
SIGNIFICANT_DIGITS = 3
HISTOGRAMS = ("latency", "lateness", "queue", "inference", "transport", "refusal")

CLOCK_S = 0.002  # grpcio counts deadlines in milliseconds


class Records:
    """One process's requests, numbered in the order in which LoadGen issued them. Times are monotonic."""

    def __init__(self) -> None:
        self._issued = array("q")  # two of each request
        self._results = array("q")  # RESULTS of each that is done, in the order in which they were
        self._num_issued = 0
        self.faults: list[str] = []

    def add(self, num_images: int, count: int = 1) -> int:
        """Notes requests that were handed over just now; returns the number of the first."""
        first, self._num_issued = self._num_issued, self._num_issued + count
        self._issued.extend((time.monotonic_ns(), num_images) * count)
        return first

    def note(self, number: int, sent_ns: int, done_ns: int, outcome: int, checked: Checked) -> None:
        """Notes what came of a request."""
        self.note_fault(number, checked.fault)
        self._results.extend((number, sent_ns, done_ns, outcome, *checked[1:]))

    def note_all(self, *results: NDArray[Any]) -> None:
        """Notes what came of many: RESULTS as columns."""
        self._results.frombytes(np.column_stack(results).astype(np.int64, copy=False).tobytes())

    def note_fault(self, number: int, fault: str) -> None:
        """Names a request that was not answered rightly, unless enough are."""
        if fault and len(self.faults) < MAX_FAULTS:
            self.faults.append(f"request {number}: {fault}")

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Returns each as (num_requests,) int64, copied: requests may still be under way."""
        results = np.array(self._results[:], np.int64).reshape(-1, len(RESULTS))  # before what was issued meanwhile
        issued = np.array(self._issued[:], np.int64).reshape(-1, 2)
        columns = {"issued_ns": issued[:, 0].copy(), "num_images": issued[:, 1].copy()}
        numbers = results[:, 0]
        for position, name in enumerate(RESULTS[1:], 1):
            columns[name] = np.full(len(issued), PENDING if name == "outcomes" else 0 if name == "batch_sizes" else -1)
            columns[name][numbers] = results[:, position]
        return columns


def judge(records: Records, server: ServerProtocol, answers: Answers, images: NDArray[np.intp]) -> None:
    """Notes what came of N requests for `images` (N, of each): most are found right in bulk, the others one by one."""
    found = none_found(len(images))
    if IS_NATIVE_HERE:
        found = server.found_right(answers.replies, answers.ends, images)
    outcomes = np.select([answers.codes == code for code in OUTCOMES], list(OUTCOMES.values()), LOST)
    is_ok = answers.codes == OK
    times = np.where(is_ok, found.times.T, np.array([[-1], [-1], [0]]))
    for position in np.flatnonzero(~(is_ok & found.is_right)).tolist():
        number, asked = int(answers.numbers[position]), images[position].tolist()
        if is_ok[position]:
            checked = server.check(answers.reply(position), asked)
            outcomes[position] = WRONG if checked.fault else CORRECT
            times[:, position] = checked[1:]
            records.note_fault(number, checked.fault)
        elif len(records.faults) < MAX_FAULTS:
            records.note_fault(number, f"{named(asked)}: {answers.failure(position)}")
    records.note_all(answers.numbers, answers.sent_ns, answers.done_ns, outcomes, *times)


def named(indices: Sequence[int]) -> str:
    """Names the images of a request."""
    return f"image {indices[0]}" if len(indices) == 1 else f"{len(indices)} images from {indices[0]}"


# --- From records to figures ------------------------------------------------------------------------------------------


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


def share_from(load: Load, records: Records, loadgen: dict[str, Any] | None = None, cpu_s: float = 0.0) -> Share:
    """Sums up the requests so far; those still under way do not count."""
    columns = records.columns()
    due_ns, sent_ns = _due_ns(load, columns), columns["sent_ns"]
    done_ns, outcomes = columns["done_ns"], columns["outcomes"]
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
