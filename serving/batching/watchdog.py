"""Watches the device: decides when it is given up, and tries it when nobody has asked for a while.

It is given up if a batch does not end, or one after the other fails. Neither can be mended from inside. A call that
hangs cannot be ended; and after some of CUDA's errors (an illegal address, an uncorrectable error of its memory, a
device that is gone) all later calls of the process fail too. So the process ends, and its supervisor starts another.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from atelier.contract import Images, Logits
from atelier.errors import DeviceError
from serving.batching.runs import Ran
from serving.errors import BackendError, RequestError

logger = logging.getLogger(__name__)

MAX_FAILED_BATCHES = 3  # in a row: one may be its images' fault, or want of memory that is free again at the next
DOUBT_S = 1.0  # after a probe that failed, until the next: as many in a row as may fail decide
TOLERANCE = 1e-3  # of 1 and of the logit: the same device, image and batch size round alike

BAD_PROBE = BackendError("BAD_PROBE", "the device gives other logits for an image than at first")


class DeviceWatch:
    """Watches the device for the batcher, on the event loop."""

    def __init__(
        self,
        busy_s: Callable[[], float | None],
        *,
        hang_timeout_s: float,
        on_failure: Callable[[DeviceError], None],
    ) -> None:
        """`busy_s` returns how long the batch on the device has been running; None if there is none."""
        self._busy_s = busy_s
        self._hang_timeout_s = hang_timeout_s
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._next_check: asyncio.Handle | None = None
        self._is_overdue = False
        self._num_failed = 0  # batches in a row

    @property
    def is_in_doubt(self) -> bool:
        """The batch that is on it, or is to come, decides: if that fails too, the device is given up."""
        return self._num_failed >= MAX_FAILED_BATCHES - 1

    def begin(self) -> None:
        """Notes that a batch is on its way to the device."""
        if self._next_check is None:
            self._check_in(self._hang_timeout_s)

    def end(self, *, is_ok: bool) -> None:
        """Notes that a batch has run, and whether logits came out or it failed."""
        self._num_failed = 0 if is_ok else self._num_failed + 1
        if self._num_failed == MAX_FAILED_BATCHES:
            what = f"{MAX_FAILED_BATCHES} batches in a row failed"
            cure = "another process takes over; the errors above say why, nvidia-smi whether a GPU is in order"
            self._give_up(DeviceError("BACKEND_BROKEN", what, cure))

    def close(self) -> None:
        """Looks no more."""
        if self._next_check is not None:
            self._next_check.cancel()

    def _give_up(self, failure: DeviceError) -> None:
        """Tells of it once: a device that hung may come back, and fail."""
        on_failure, self._on_failure = self._on_failure, lambda _failure: None
        on_failure(failure)

    def _check_in(self, delay_s: float) -> None:
        self._next_check = self._loop.call_later(delay_s, self._check_for_hang)

    def _check_for_hang(self) -> None:
        """Fires once per `hang_timeout_s` while there is work: cheaper than a timer for every batch."""
        self._next_check = None
        busy_s = self._busy_s()
        if busy_s is None or busy_s < self._hang_timeout_s:
            self._is_overdue = False
            if busy_s is not None:
                self._check_in(self._hang_timeout_s - busy_s)
        elif not self._is_overdue:  # perhaps the whole process was stopped, and the outcome is just being delivered
            self._is_overdue = True
            self._check_in(min(1.0, self._hang_timeout_s))
        else:
            what = f"a batch ran longer than {self._hang_timeout_s:g} s"
            cure = "another process takes over; raise --hang-timeout-s if it was busy"
            self._give_up(DeviceError("BACKEND_HUNG", what, cure))


class Probe:
    """Tries an idle device, on the event loop: SERVING then rests on a batch that has really run."""

    def __init__(self, image: Images, after_s: float) -> None:
        """`image`: (1, 1, 28, 28) uint8, to be run once nothing has run for `after_s`."""
        self._image, self._after_s = image, after_s
        self._expected: Logits | None = None
        self._has_run = False  # a batch, since the last look
        self._next_look: asyncio.Handle | None = None
        self._is_closed = False

    def start(self, run: Callable[[Images], bool]) -> None:
        """Looks every `after_s`; `run` has the image run, unless the device is busy or given up: then False."""
        self._run = run
        self._look_in(self._after_s)

    def outcome_of(self, outcome: Ran | RequestError, *, is_probe: bool) -> Ran | RequestError:
        """Hears of each batch that has run; returns how it went: a probe with other logits than at first has failed."""
        if not is_probe:
            self._has_run = True
            return outcome
        if isinstance(outcome, Ran):
            if self._expected is None:
                self._expected = outcome.logits
            if not np.allclose(outcome.logits, self._expected, rtol=TOLERANCE, atol=TOLERANCE):
                logger.error("%s", BAD_PROBE)
                outcome = BAD_PROBE
        self._look_in(self._after_s if isinstance(outcome, Ran) else min(DOUBT_S, self._after_s))
        return outcome

    def close(self) -> None:
        """Looks no more, also if a probe is under way."""
        self._is_closed = True
        if self._next_look is not None:
            self._next_look.cancel()

    def _look_in(self, delay_s: float) -> None:
        self._has_run = False
        if not self._is_closed:
            self._next_look = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        if self._has_run or not self._run(self._image):
            self._look_in(self._after_s)
