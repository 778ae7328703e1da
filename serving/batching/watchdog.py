"""Decides when a device is given up: a batch does not end, or one after the other fails.

Neither can be mended from inside. A call that hangs cannot be ended; and after some of CUDA's errors (an illegal
address, an uncorrectable error of its memory, a device that is gone) all later calls of the process fail too. So the
process ends, and its supervisor starts another.
"""

import asyncio
from collections.abc import Callable

from atelier.errors import DeviceError

MAX_FAILED_BATCHES = 3  # in a row: one may be its images' fault, or want of memory that is free again at the next


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
