"""Records of one process's requests: when each was handed over, sent and answered, and whether rightly."""

import time
from array import array
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from loadtest.load.load_clients import OK, Answers
from loadtest.load.protocols import Checked, ServerProtocol

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
