"""What the server counts: numbers in memory that its worker processes write and the metrics page reads.

Each worker writes in a slot of its own, so nothing is locked. The memory is the supervisor's and outlives the workers:
one that is killed loses no count, and the one that replaces it goes on counting in the same slot, so no total ever goes
backwards.

prometheus_client has a multiprocess mode for this. There a count costs ten times as much, a histogram takes nothing but
single values, every process that is replaced leaves its files for good, and there is no describing the server. What
that library is good at, the page, is made with it: metrics_page.py.
"""

import json
import mmap
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

METHODS = ("Classify", "GetModel", "other")  # other: health, reflection, and what does not exist
# The statuses that the server answers with; any other would count as UNKNOWN.
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
)

# Upper bounds of the histograms' buckets; one more, +Inf, has the rest.
DURATION_BOUNDS_S = tuple(
    digit * 10.0**exponent
    for exponent in range(-4, 1)
    for digit in (1, 2.5, 5)  # 100 us to 5 s
)
BATCH_SIZE_BOUNDS = tuple(float(2**exponent) for exponent in range(11))  # 1 to 1024


# --- A slot: float64 numbers, each kind at its place, and then a description in JSON ----------------------------------

_LENGTHS = {
    "calls": len(METHODS) * len(CODES),
    "images": 1,
    "batches": 1,
    "failed_batches": 1,
    "batch_size": len(BATCH_SIZE_BOUNDS) + 2,  # of a histogram: a count per bucket, that of +Inf, and the sum
    "queue": len(DURATION_BOUNDS_S) + 2,
    "inference": len(DURATION_BOUNDS_S) + 2,
    "request": len(DURATION_BOUNDS_S) + 2,
    "queue_images": 1,
    "restarts": 1,
    "description_bytes": 1,
}
_STARTS = dict(zip(_LENGTHS, accumulate(_LENGTHS.values(), initial=0), strict=False))
_NUM_NUMBERS = sum(_LENGTHS.values())
_IMAGES, _BATCHES, _FAILED_BATCHES = (_STARTS[name] for name in ("images", "batches", "failed_batches"))
_BATCH_SIZE, _QUEUE, _INFERENCE, _REQUEST = (_STARTS[name] for name in ("batch_size", "queue", "inference", "request"))
_QUEUE_IMAGES, _RESTARTS, _DESCRIPTION_BYTES = (
    _STARTS[name] for name in ("queue_images", "restarts", "description_bytes")
)
_CODE_PLACES = {code: place for place, code in enumerate(CODES)}
_UNKNOWN = _CODE_PLACES["UNKNOWN"]

SLOT_BYTES = 4096
NUM_SLOTS = 64
MAX_LABEL_CHARACTERS = 80  # six labels of these fit, whatever they are


def place_of_calls(method: str) -> int:
    """Where the calls of a method are counted; resolved once, for `Metrics.count_call`."""
    known = method if method in METHODS else "other"
    return _STARTS["calls"] + METHODS.index(known) * len(CODES)


class Metrics:
    """Where one process counts. It lies on the path of every request: nothing here waits, and nothing raises."""

    def __init__(self, slot: "memoryview[int]") -> None:
        """`slot`: SLOT_BYTES writable bytes."""
        self._numbers: memoryview[float] = slot[: 8 * _NUM_NUMBERS].cast("d")
        self._text = slot[8 * _NUM_NUMBERS :]

    def count_call(self, place: int, code: str) -> None:
        """A call that ended with this gRPC status; `place` is place_of_calls' for its method."""
        self._numbers[place + _CODE_PLACES.get(code, _UNKNOWN)] += 1

    def observe_request(self, seconds: float) -> None:
        """A Classify call was answered so long after its message was there."""
        _observe(self._numbers, _REQUEST, DURATION_BOUNDS_S, seconds)

    def observe_queue(self, seconds: float) -> None:
        """A request waited so long for its batch."""
        _observe(self._numbers, _QUEUE, DURATION_BOUNDS_S, seconds)

    def observe_batch(self, num_images: int, seconds: float, num_answered: int) -> None:
        """A batch ran, for so long; `num_answered` images of requests are answered with it."""
        numbers = self._numbers
        numbers[_BATCHES] += 1
        numbers[_IMAGES] += num_answered
        _observe(numbers, _BATCH_SIZE, BATCH_SIZE_BOUNDS, num_images)
        _observe(numbers, _INFERENCE, DURATION_BOUNDS_S, seconds)

    def count_failed_batch(self) -> None:
        """A batch could not be run, or what came out made no sense."""
        self._numbers[_FAILED_BATCHES] += 1

    def count_restart(self) -> None:
        """A worker was replaced."""
        self._numbers[_RESTARTS] += 1

    def set_queue_images(self, num_images: int) -> None:
        """So many images wait, now."""
        self._numbers[_QUEUE_IMAGES] = num_images

    def describe(self, labels: Mapping[str, str]) -> None:
        """From now on this process serves, and this is what."""
        cut = {name: value[:MAX_LABEL_CHARACTERS] for name, value in labels.items()}
        text = json.dumps(cut, ensure_ascii=False).encode(errors="replace")
        self._text[: len(text)] = text
        self._numbers[_DESCRIPTION_BYTES] = len(text)  # last: a reader sees all of it or nothing


class NoMetrics(Metrics):
    """For a server without metrics: counts nothing, and costs next to nothing."""

    def __init__(self) -> None: ...

    def count_call(self, place: int, code: str) -> None: ...

    def observe_request(self, seconds: float) -> None: ...

    def observe_queue(self, seconds: float) -> None: ...

    def observe_batch(self, num_images: int, seconds: float, num_answered: int) -> None: ...

    def count_failed_batch(self) -> None: ...

    def count_restart(self) -> None: ...

    def set_queue_images(self, num_images: int) -> None: ...

    def describe(self, labels: Mapping[str, str]) -> None: ...


NO_METRICS = NoMetrics()


def _observe(numbers: "memoryview[float]", start: int, bounds: tuple[float, ...], value: float) -> None:
    numbers[start + bisect_left(bounds, value)] += 1
    numbers[start + len(bounds) + 1] += value


# --- All slots -------------------------------------------------------------------------------------------------------


class Board:
    """The memory of a server's processes, which they inherit: made before the first is forked."""

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, NUM_SLOTS * SLOT_BYTES))
        self._slots = [memory[start : start + SLOT_BYTES] for start in range(0, len(memory), SLOT_BYTES)]
        self.supervisor = Metrics(self._slots[-1])

    def free_slot(self, taken: list[int]) -> int:
        """The first that is not taken; of more workers than slots, two share one, and may lose counts."""
        return min(range(NUM_SLOTS - 1), key=taken.count)

    def metrics(self, slot: int) -> Metrics:
        """For the worker that counts there."""
        return Metrics(self._slots[slot])

    def release(self, slot: int) -> None:
        """The worker has ended: what it counted stays, what it was and what waited there is no more."""
        numbers = self._slots[slot][: 8 * _NUM_NUMBERS].cast("d")
        numbers[_QUEUE_IMAGES] = numbers[_DESCRIPTION_BYTES] = 0

    def totals(self) -> dict[str, list[float]]:
        """The sums over all workers, living and dead, by kind."""
        rows = [slot[: 8 * _NUM_NUMBERS].cast("d").tolist() for slot in self._slots]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        return {name: sums[_STARTS[name] : _STARTS[name] + length] for name, length in _LENGTHS.items()}

    def descriptions(self) -> list[dict[str, str]]:
        """What each worker serves that is ready."""
        described = []
        for slot in self._slots:
            num_bytes = int(slot[: 8 * _NUM_NUMBERS].cast("d")[_DESCRIPTION_BYTES])
            if num_bytes:
                described.append(json.loads(bytes(slot[8 * _NUM_NUMBERS :][:num_bytes])))
        return described
