"""Tries a device that nobody has asked for a while: SERVING then rests on a batch that has really run."""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from atelier.contract import Images, Logits
from serving.batching.runs import Ran
from serving.errors import BackendError, RequestError

logger = logging.getLogger(__name__)

DOUBT_S = 1.0  # after a probe that failed, until the next: as many in a row as may fail decide
TOLERANCE = 1e-3  # of 1 and of the logit: the same device, image and batch size round alike

BAD_PROBE = BackendError("BAD_PROBE", "the device gives other logits for an image than at first")


class Probe:
    """Lives on the event loop, beside the batcher."""

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
