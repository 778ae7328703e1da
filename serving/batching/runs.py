"""Runs batches on a backend, so that what fails there costs the rest of its batch nothing.

A batch that fails is run again in halves, and those again, until the image is found on which the backend fails: that
one is an error, the others are answered. If memory ran out, halves may fit, and no larger batch is tried for a while.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from atelier.contract import NUM_CLASSES, Images, Logits
from atelier.memory import is_out_of_memory
from serving.backends.base import Backend
from serving.errors import BackendError, OverloadedError, RequestError

logger = logging.getLogger(__name__)

LOWERED_S = 60.0  # after memory ran out, until a larger batch is tried again

BATCH_FAILED = BackendError("BACKEND_FAILED", "the model could not be run on this batch", "see the server's log")
NO_MEMORY = OverloadedError("OUT_OF_MEMORY", "the device has no memory left for one image", "try again later")
NOT_FINITE = BackendError("BAD_OUTPUT", "the backend answered with logits that are not finite")


class Ran(NamedTuple):
    """Holds what became of a batch: its logits, (N, 10) float32, and why some images, by index, have none."""

    logits: Logits
    failures: Mapping[int, RequestError] = MappingProxyType({})


class BatchRuns:
    """Runs batches, one at a time."""

    def __init__(
        self, backend: Backend, clock: Callable[[], float] = time.monotonic, *, hang_timeout_s: float = 30.0
    ) -> None:
        """A batch is run in parts for half of `hang_timeout_s`: a device that is slow must not be taken for hung."""
        self._infer, self._clock, self._patience_s = backend.infer, clock, hang_timeout_s / 2
        self._max_batch_size = self._most = backend.max_batch_size  # there is memory for `_most`, as far as is known
        self._lowered_until_s = 0.0

    def run(self, images: Images) -> Ran:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32. Raises nothing: why images failed stands in the log."""
        if len(images) > self._most:
            if self._clock() < self._lowered_until_s:
                return self._run_in_parts(images)
            self._most = self._max_batch_size
        try:
            return Ran(self._infer(images))
        except Exception as error:
            logger.exception("a batch of %d images failed", len(images))
            self._note(error, len(images))
            return self._run_in_parts(images, error)

    def _run_in_parts(self, images: Images, why: Exception | None = None) -> Ran:
        """Runs all images; `why` is what the backend raised for all of them at once."""
        logits = np.zeros((len(images), NUM_CLASSES), np.float32)
        failures: dict[int, RequestError] = {}
        # As many failures are looked into as one bad image needs, which is found by 12 more runs of 64: a device that
        # always fails is not asked for every image.
        num_halvings_left = math.ceil(math.log2(len(images)))
        ends_s = self._clock() + self._patience_s
        waiting = deque([range(len(images))])
        while waiting:
            part = waiting.popleft()
            if self._clock() > ends_s:
                failures |= dict.fromkeys(part, BATCH_FAILED)
                continue
            why = why or self._try(images, part, logits)
            if why is None:
                continue
            is_memory, why = is_out_of_memory(why), None
            num_halvings_left -= not is_memory
            if len(part) > 1 and (is_memory or num_halvings_left >= 0):
                middle = len(part) // 2
                waiting += part[:middle], part[middle:]
            else:
                failures |= dict.fromkeys(part, NO_MEMORY if is_memory else BATCH_FAILED)
        if failures:
            logger.error("%d of these %d images failed", len(failures), len(images))
        return Ran(logits, failures)

    def _try(self, images: Images, part: range, logits: Logits) -> Exception | None:
        """Runs some of the images, if there is memory for so many; returns what the backend raised."""
        if len(part) > self._most:
            return MemoryError()
        try:
            rows = self._infer(images[part.start : part.stop])
            if np.shape(rows) != (len(part), NUM_CLASSES):
                raise ValueError(f"the backend answered with shape {np.shape(rows)}")
        except Exception as error:
            self._note(error, len(part))
            return error
        logits[part.start : part.stop] = rows
        return None

    def _note(self, error: Exception, num_images: int) -> None:
        """Tries no batch as large as this for a while, if memory ran out."""
        if is_out_of_memory(error):
            self._most, self._lowered_until_s = max(1, num_images // 2), self._clock() + LOWERED_S
            logger.warning("memory ran out: batches are run %d images at a time for %g s", self._most, LOWERED_S)


def checked(ran: Ran, num_images: int) -> Ran | RequestError:
    """Adds the images whose logits are not finite to the failures: the largest of NaN would be a confident answer.

    Returns why there is no answer at all, if so: logits of another shape, or no image that has any.
    """
    if np.shape(ran.logits) != (num_images, NUM_CLASSES):
        expected = (num_images, NUM_CLASSES)
        error = BackendError(
            "BAD_OUTPUT", f"the backend answered with shape {np.shape(ran.logits)}, expected {expected}"
        )
        logger.error("%s", error)
        return error
    if not np.isfinite(ran.logits).all():
        logger.error("%s", NOT_FINITE)
        bad = np.flatnonzero(~np.isfinite(ran.logits).all(axis=1)).tolist()
        ran = Ran(ran.logits, dict.fromkeys(bad, NOT_FINITE) | dict(ran.failures))
    return ran.failures[0] if len(ran.failures) == num_images else ran


def error_in(outcome: Ran | RequestError, start: int, stop: int) -> RequestError | None:
    """Returns why the images `start` to `stop` of a batch have no answer, if one of them has none."""
    if isinstance(outcome, RequestError):
        return outcome
    return next((error for index, error in outcome.failures.items() if start <= index < stop), None)
